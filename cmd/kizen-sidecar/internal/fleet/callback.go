package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hibiken/asynq"

	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/webhook"
)

// enqueueCallback queues a message once.
func (w *Worker) enqueueCallback(ctx context.Context, m webhook.Message) error {
	payload, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("write the callback: %w", err)
	}
	_, err = w.client.EnqueueContext(ctx, asynq.NewTask(CallbackTask, payload), callbackOptions(w.config.Queue, m.ID)...)
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
	w.config.Log.Warn("a callback was not delivered", "message_id", message.ID, "error", err)
	if webhook.Final(err) {
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	return err
}
