package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/hibiken/asynq"

	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/request"
	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/webhook"
)

// The types of tasks. The payload of the first is a request.Body, that of the second a webhook.Message.
const (
	ExecutionTask = "kizen:execution"
	CallbackTask  = "kizen:callback"
)

// EnqueuedAt is the header of a task that says when it was put into the queue, as RFC 3339 writes it; asynq does not keep that.
// The headers traceparent and tracestate say which trace it belongs to.
const EnqueuedAt = "enqueued_at"

// enqueuedAt is when a task was put into the queue. Where its headers do not say so, or say what cannot be, that is now, and
// nobody knows how long it waited.
func enqueuedAt(headers map[string]string, now time.Time) time.Time {
	at, err := time.Parse(time.RFC3339, headers[EnqueuedAt])
	if err != nil || at.After(now) || now.Sub(at) > unfinishedLimit {
		return now
	}
	return at
}

// callbackQueue is where the callbacks of a queue's executions wait: slow receivers must not hold slots of executions.
func callbackQueue(queue string) string { return queue + ":callbacks" }

// copyMark stands between the id of a task and the worker that took it to its grave.
const copyMark = "~"

// copyID is the id of a task's copy for those who live, the same whoever makes it.
func copyID(task, dead string) string {
	original, _, _ := strings.Cut(task, copyMark)
	return original + copyMark + dead
}

// retries is never reached. A worker counts the attempts in the record, and asynq archives what runs out of its own retries
// without telling anybody.
const retries = math.MaxInt32

// taskTimeout is when asynq gives up waiting for a handler. Ours end by their own limits, long before.
const taskTimeout = time.Hour

func executionOptions(queue, id string) []asynq.Option {
	return []asynq.Option{asynq.Queue(queue), asynq.TaskID(id), asynq.MaxRetry(retries), asynq.Timeout(taskTimeout)}
}

func callbackOptions(queue, id string) []asynq.Option {
	return []asynq.Option{
		asynq.Queue(callbackQueue(queue)), asynq.TaskID(id), asynq.MaxRetry(webhook.DefaultAttempts - 1), asynq.Timeout(taskTimeout),
	}
}

// readExecution reads a payload. Where it names an execution and a business, what is wrong with the rest is refused, and that
// is how the execution ends; elsewhere there is none, and the error is final.
func readExecution(payload []byte) (body request.Body, refused, err error) {
	body, refused = request.Decode(payload)
	if !request.ValidID(body.ExecutionID) || !request.ValidID(body.BusinessID) {
		err := errors.Join(errors.New("the payload names no execution and business"), refused)
		return body, nil, fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	return body, refused, nil
}

func readCallback(payload []byte) (webhook.Message, error) {
	var message webhook.Message
	if err := json.Unmarshal(payload, &message); err != nil {
		return message, fmt.Errorf("the payload is not a callback: %w", asynq.SkipRetry)
	}
	return message, nil
}

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
