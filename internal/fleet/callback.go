package fleet

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hibiken/asynq"

	"github.com/kizen/kizen-sidecar/internal/payload"
	"github.com/kizen/kizen-sidecar/internal/webhook"
	"github.com/kizen/kizen-sidecar/internal/wire"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// The headers of a callback name its execution, for the log and for the record.
const (
	executionHeader = "execution_id"
	businessHeader  = "business_id"
	lateHeader      = "late" // the record does not track the delivery: of a late result, or of a conflict
)

// enqueueCallback queues a message, unless it is already queued.
func (w *Worker) enqueueCallback(ctx context.Context, s subject, m webhook.Message, late bool) error {
	document, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("write the callback: %w", err)
	}
	headers := map[string]string{executionHeader: s.id, businessHeader: s.business, wire.Traceparent: s.traceparent,
		wire.VersionHeader: strconv.Itoa(wire.PlainVersion)}
	if late {
		headers[lateHeader] = "1"
	}
	task := asynq.NewTaskWithHeaders(wire.CallbackTask, document, headers)
	_, err = w.client.EnqueueContext(ctx, task, callbackOptions(s.queue, m.ID)...)
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		return nil
	}
	return err
}

// notify queues the callback of a finished execution, unless it is already queued.
func (w *Worker) notify(ctx context.Context, s subject, known entry) error {
	if known.callback.state != "" || s.callback == "" {
		return nil
	}
	finished := webhook.Finished{ExecutionID: s.id, BusinessID: s.business, Outcome: known.outcome, Result: known.result,
		Run: known.run}
	message, err := finished.Message(s.callback, known.at)
	if err != nil {
		return deadLetter(fmt.Errorf("write the callback: %w", err))
	}
	if err := w.enqueueCallback(ctx, s, message, false); err != nil {
		return err
	}
	_, err = w.records.setCallback(ctx, s.business, s.id, CallbackQueued, "")
	return err
}

// notifyLate queues a callback about a result that arrived after the fleet had ended the execution.
func (w *Worker) notifyLate(ctx context.Context, s subject, e ending) error {
	if s.callback == "" {
		return nil
	}
	finished := webhook.Finished{ExecutionID: s.id, BusinessID: s.business, Outcome: e.outcome, Result: e.result,
		Late: true}
	message, err := finished.Message(s.callback, e.at)
	if err != nil {
		return err
	}
	return w.enqueueCallback(ctx, s, message, true)
}

// notifyConflict queues a callback about a task that was refused because another request has its id.
func (w *Worker) notifyConflict(ctx context.Context, s subject, e ending) error {
	if s.callback == "" {
		return nil
	}
	finished := webhook.Finished{ExecutionID: s.id, BusinessID: s.business, Outcome: e.outcome, Result: e.result,
		Conflict: s.digest}
	message, err := finished.Message(s.callback, e.at)
	if err != nil {
		return err
	}
	return w.enqueueCallback(ctx, s, message, true)
}

// errNoTurn delays a callback until other callbacks of its business are done.
var errNoTurn = errors.New("the business has its full share of callbacks under way")

// deliverCallback makes one attempt to deliver a message. asynq schedules the next one, and keeps a message that is
// given up as a dead letter. The record tracks the state of the delivery.
func (w *Worker) deliverCallback(ctx context.Context, task *asynq.Task) error {
	id, _ := asynq.GetTaskID(ctx)
	queue, _ := asynq.GetQueueName(ctx)
	return w.listDeadLetter(context.WithoutCancel(ctx), queue, id, w.tryCallback(ctx, queue, id, task))
}

func (w *Worker) tryCallback(ctx context.Context, queue, id string, task *asynq.Task) error {
	message, err := readCallback(task.Payload())
	if err != nil {
		return err
	}
	headers := task.Headers()
	business, began := headers[businessHeader], time.Now()
	if after, ok := w.turns.take(business, began); !ok {
		return &later{errNoTurn, after}
	}
	failed := w.config.Sender.Try(ctx, message)
	w.turns.end(business, time.Since(began))
	about := telemetry.WithExecution(telemetry.WithTrace(ctx, headers[wire.Traceparent]), headers[executionHeader])
	state, failure := CallbackDelivered, ""
	if failed != nil {
		w.config.Log.WarnContext(about, "a callback was not delivered", "message_id", message.ID, "error", failed)
		state, failure = CallbackQueued, failed.Error()
		retried, _ := asynq.GetRetryCount(ctx)
		limit, _ := asynq.GetMaxRetry(ctx)
		if webhook.Final(failed) || retried >= limit {
			state, failed = CallbackFailed, deadLetter(failed)
			w.config.Log.ErrorContext(about, "a callback was given up; it is kept as a dead letter", "message_id", message.ID,
				"error", failed)
		}
	}
	lasting := context.WithoutCancel(ctx)
	before := CallbackFailed // the record says nothing about a late result
	if headers[lateHeader] == "" && business != "" {
		if before, err = w.records.setCallback(lasting, business, headers[executionHeader], state, failure); err != nil {
			w.config.Log.WarnContext(about, "the state of a callback could not be recorded", "state", state, "error", err)
		}
	}
	if failed == nil && before == CallbackFailed {
		if _, err := w.letters.remove(lasting, queue, id); err != nil {
			w.config.Log.WarnContext(about, "a delivered callback is still listed as a dead letter", "message_id", message.ID,
				"error", err)
		}
	}
	return failed
}

// traceOf returns the trace id of a task.
func traceOf(n payload.Reference, headers map[string]string) string {
	return cmp.Or(n.Traceparent, headers[wire.Traceparent])
}
