package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hibiken/asynq"

	"github.com/kizen/kizen-sidecar/internal/ids"
	"github.com/kizen/kizen-sidecar/internal/webhook"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// enqueuedAt is when a task was put into the queue. Where its headers do not say so, or say what cannot be, that is now, and
// how long it waited is not known.
func enqueuedAt(headers map[string]string, now time.Time) time.Time {
	at, err := time.Parse(time.RFC3339, headers[wire.EnqueuedAt])
	if err != nil || at.After(now) || now.Sub(at) > unfinishedLimit {
		return now
	}
	return at
}

// errNewer puts off what a newer program has written.
var errNewer = errors.New("a newer version of kizen-sidecar wrote this; it is left to a worker that understands it, see docs/upgrade.md")

// newer reports whether the version of a task, of a record or of a worker is beyond what this program understands. A version that is no
// number is ignored.
func newer(version string) bool {
	n, err := strconv.Atoi(version)
	return err == nil && n > wire.Version
}

// callbackQueue is where the callbacks of a queue's executions wait: slow receivers must not hold slots of executions.
func callbackQueue(queue string) string { return queue + ":callbacks" }

// taskTimeout is when asynq gives up waiting for a handler. Ours end by their own limits, long before.
const taskTimeout = time.Hour

func callbackOptions(queue, id string) []asynq.Option {
	return []asynq.Option{
		asynq.Queue(callbackQueue(queue)), asynq.TaskID(id), asynq.MaxRetry(webhook.DefaultAttempts - 1), asynq.Timeout(taskTimeout),
	}
}

// names are the parts of a payload that are read before the rest, and at next to no cost: a payload that ends the worker which
// reads it whole can be given up by these.
type names struct {
	ExecutionID string `json:"execution_id"`
	BusinessID  string `json:"business_id"`
	CallbackURL string `json:"callback_url"`
	Traceparent string `json:"traceparent"`
}

// readNames fails where the payload names no execution and business: there is no record to end, and the error is final.
func readNames(payload []byte) (names, error) {
	var n names
	err := json.Unmarshal(payload, &n)
	var mistyped *json.UnmarshalTypeError
	if err != nil && !errors.As(err, &mistyped) {
		return n, deadLetter(fmt.Errorf("the payload is not a JSON object: %w", err))
	}
	if !ids.Valid(n.ExecutionID) || !ids.Valid(n.BusinessID) {
		return n, deadLetter(errors.New("the payload names no execution and business"))
	}
	return n, nil
}

func readCallback(payload []byte) (webhook.Message, error) {
	var message webhook.Message
	if err := json.Unmarshal(payload, &message); err != nil {
		return message, deadLetter(errors.New("the payload is not a callback"))
	}
	return message, nil
}

// deadLetterMark begins the error of every task that a worker archives. What asynq archives by itself lacks it.
const deadLetterMark = "dead letter: "

// deadLetter has asynq archive a task, because of err.
func deadLetter(err error) error {
	text := err.Error()
	if !strings.HasPrefix(text, deadLetterMark) {
		text = deadLetterMark + text
	}
	return &archived{text, err}
}

// archived is an error of which asynq keeps exactly the text.
type archived struct {
	text string
	err  error
}

func (a *archived) Error() string   { return a.text }
func (a *archived) Unwrap() []error { return []error{a.err, asynq.SkipRetry} }

// later says when a task is to be delivered again, and why.
type later struct {
	err   error
	after time.Duration
}

func (l *later) Error() string { return l.err.Error() }
func (l *later) Unwrap() error { return l.err }

// isLater tells asynq not to count what is put off as a failure.
func isLater(err error) bool {
	var l *later
	return errors.As(err, &l) || errors.Is(err, asynq.ErrLeaseExpired)
}

// delay is how long asynq waits after a failure; retried counts those before it.
func delay(retried int, err error, _ *asynq.Task) time.Duration {
	var l *later
	switch {
	case errors.As(err, &l):
		return l.after
	case errors.Is(err, asynq.ErrLeaseExpired):
		return 0
	}
	return webhook.Delay(retried+1, err)
}
