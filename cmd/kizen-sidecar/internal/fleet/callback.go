package fleet

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hibiken/asynq"

	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/webhook"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// executionHeader says which execution a callback is about, for the log.
const executionHeader = "execution_id"

// enqueueCallback queues a message once.
func (a *attempt) enqueueCallback(ctx context.Context, m webhook.Message) error {
	payload, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("write the callback: %w", err)
	}
	headers := map[string]string{executionHeader: a.id, "traceparent": cmp.Or(a.body.Traceparent, a.headers["traceparent"])}
	task := asynq.NewTaskWithHeaders(CallbackTask, payload, headers)
	_, err = a.client.EnqueueContext(ctx, task, callbackOptions(a.config.Queue, m.ID)...)
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		return nil
	}
	return err
}

// callback makes one attempt to deliver a message. asynq makes the next; what is given up it keeps as a dead letter.
func (w *Worker) callback(ctx context.Context, task *asynq.Task) error {
	message, err := readCallback(task.Payload())
	if err != nil {
		return err
	}
	err = w.config.Sender.Try(ctx, message)
	if err == nil {
		return nil
	}
	about := telemetry.WithTrace(ctx, task.Headers()["traceparent"])
	about = telemetry.WithExecution(about, task.Headers()[executionHeader])
	w.config.Log.WarnContext(about, "a callback was not delivered", "message_id", message.ID, "error", err)
	if webhook.Final(err) {
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	return err
}
