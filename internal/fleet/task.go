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
	"github.com/kizen/kizen-sidecar/internal/payload"
	"github.com/kizen/kizen-sidecar/internal/webhook"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// enqueuedAt returns when a task was enqueued. If its headers have no valid time, it returns now, and the waiting time
// is unknown.
func enqueuedAt(headers map[string]string, now time.Time) time.Time {
	at, err := time.Parse(time.RFC3339, headers[wire.EnqueuedAt])
	if err != nil || at.After(now) || now.Sub(at) > unfinishedLimit {
		return now
	}
	return at
}

// errNewer delays data that a newer program has written.
var errNewer = errors.New("a newer version of kizen-sidecar wrote this; a worker of that version must process it, see docs/upgrade.md")

// newer reports whether the version of a task, a record or a worker is newer than this program understands. It ignores
// a version that is not a number.
func newer(version string) bool {
	n, err := strconv.Atoi(version)
	return err == nil && n > wire.Version
}

// callbackQueue returns the queue for the callbacks of a queue's executions. It is separate, so that slow receivers do
// not take slots of executions.
func callbackQueue(queue string) string { return queue + ":callbacks" }

func callbackQueues(queues []string) []string {
	names := make([]string, len(queues))
	for i, queue := range queues {
		names[i] = callbackQueue(queue)
	}
	return names
}

// taskTimeout is when asynq stops waiting for a handler. Handlers end by their own limits long before that.
const taskTimeout = time.Hour

func callbackOptions(queue, id string) []asynq.Option {
	return []asynq.Option{
		asynq.Queue(callbackQueue(queue)), asynq.TaskID(id), asynq.MaxRetry(webhook.DefaultAttempts - 1),
		asynq.Timeout(taskTimeout),
	}
}

// readReference reads only the fields that identify an execution. If reading the whole payload kills a worker, these
// fields suffice to give the execution up. If the payload names no execution and business, there is no record to end,
// so the error is final.
func readReference(document []byte) (payload.Reference, error) {
	var n payload.Reference
	err := json.Unmarshal(document, &n)
	var mistyped *json.UnmarshalTypeError
	if err != nil && !errors.As(err, &mistyped) {
		return n, deadLetter(fmt.Errorf("the payload is not a JSON object: %w", err))
	}
	if !ids.Valid(n.ExecutionID) || !ids.Valid(n.BusinessID) {
		return n, deadLetter(errors.New("the payload has no execution id and business id"))
	}
	return n, nil
}

func readCallback(document []byte) (webhook.Message, error) {
	var message webhook.Message
	if err := json.Unmarshal(document, &message); err != nil {
		return message, deadLetter(errors.New("the payload is not a callback"))
	}
	return message, nil
}

// deadLetterMark begins the error of every task that a worker archives. The error of a task that asynq archives by
// itself lacks it.
const deadLetterMark = "dead letter: "

// deadLetter wraps err so that asynq archives the task.
func deadLetter(err error) error {
	text := err.Error()
	if !strings.HasPrefix(text, deadLetterMark) {
		text = deadLetterMark + text
	}
	return &archived{text, err}
}

// archived is an error whose exact text asynq keeps.
type archived struct {
	text string
	err  error
}

func (a *archived) Error() string   { return a.text }
func (a *archived) Unwrap() []error { return []error{a.err, asynq.SkipRetry} }

// later is an error that makes asynq deliver a task again after a delay.
type later struct {
	err   error
	after time.Duration
}

func (l *later) Error() string { return l.err.Error() }
func (l *later) Unwrap() error { return l.err }

// isLater reports whether err only delays a task, so that asynq does not count it as a failure.
func isLater(err error) bool {
	var l *later
	return errors.As(err, &l) || errors.Is(err, asynq.ErrLeaseExpired)
}

// delay returns how long asynq waits after a failure; retried counts the earlier ones.
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
