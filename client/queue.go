package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/backoff"
	"github.com/kizen/kizen-sidecar/internal/ids"
	"github.com/kizen/kizen-sidecar/internal/payload"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// Errors of a [Queue].
var (
	// ErrEnqueued reports that an execution with this ID is or was in the queue. It does not run again.
	ErrEnqueued = errors.New("an execution with this id was enqueued before")
	// ErrUnknown reports that no execution of this business has this ID, or that its result is no longer kept.
	ErrUnknown = errors.New("the execution has no record")
)

// Queue submits executions to a fleet of kizen-sidecar workers. It is safe for concurrent use.
type Queue struct {
	// Redis is the Redis of the fleet. The caller closes it.
	Redis redis.UniversalClient
	// Name is the --queue of the workers; default "kizen".
	Name string
}

// Enqueue puts an execution into the queue and returns its ID. It rejects a request whose BusinessID, UserID or
// ExecutionID is not a valid ID; a worker reports other errors of the request in the result. If the queue already knows
// the ID, the error is [ErrEnqueued]. An ID whose execution has ended is accepted but does not run again, and Get still
// returns the first result.
func (q *Queue) Enqueue(ctx context.Context, request Request) (id string, err error) {
	request.ExecutionID = cmp.Or(request.ExecutionID, uuid.NewString())
	// Without valid IDs a worker cannot keep a record, so the error would never be reported.
	err = errors.Join(ids.Check("BusinessID", request.BusinessID), ids.Check("UserID", request.UserID),
		ids.Check("ExecutionID", request.ExecutionID))
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(request)
	if err != nil {
		return "", fmt.Errorf("encode the request: %w", err)
	}
	version := wire.PlainVersion
	stored := payload.Reference{
		ExecutionID: request.ExecutionID, BusinessID: request.BusinessID, CallbackURL: request.CallbackURL,
		Traceparent: request.Traceparent,
	}
	if len(body) > payload.Inline {
		if err := (payload.Store{Redis: q.Redis}).Put(ctx, &stored, body); err != nil {
			return "", fmt.Errorf("store the request: %w", err)
		}
		version = wire.StoredVersion
		if body, err = json.Marshal(stored); err != nil {
			return "", fmt.Errorf("encode the request: %w", err)
		}
	}
	headers := map[string]string{wire.EnqueuedAt: time.Now().Format(time.RFC3339Nano),
		wire.VersionHeader: strconv.Itoa(version)}
	task := asynq.NewTaskWithHeaders(wire.ExecutionTask, body, headers)
	_, err = asynq.NewClientFromRedisClient(q.Redis).EnqueueContext(ctx, task,
		asynq.Queue(cmp.Or(q.Name, wire.DefaultQueue)), asynq.TaskID(wire.TaskID(request.BusinessID, request.ExecutionID)))
	switch {
	case errors.Is(err, asynq.ErrTaskIDConflict):
		if version == wire.StoredVersion {
			q.discard(ctx, stored)
		}
		return "", ErrEnqueued
	case err != nil:
		return "", fmt.Errorf("enqueue the execution: %w", err)
	}
	return request.ExecutionID, nil
}

// discard deletes a stored request that no task refers to, because the queue has another one with the same ID. It is
// best effort: a request that stays expires.
func (q *Queue) discard(ctx context.Context, stored payload.Reference) {
	queue, id := cmp.Or(q.Name, wire.DefaultQueue), wire.TaskID(stored.BusinessID, stored.ExecutionID)
	var queued payload.Reference
	task, err := asynq.NewInspectorFromRedisClient(q.Redis).GetTaskInfo(queue, id)
	if err != nil || json.Unmarshal(task.Payload, &queued) != nil || queued.SHA256 == stored.SHA256 {
		return // the task needs this request, or it is not known which one it needs
	}
	_ = payload.Store{Redis: q.Redis}.Delete(ctx, stored)
}

// Finished is an execution of a fleet that has ended.
type Finished struct {
	ExecutionID string  `json:"execution_id"`
	BusinessID  string  `json:"business_id"`
	Outcome     Outcome `json:"outcome"`
	// Result is the execution's result. If its step did not run, Error has the reason.
	Result Result `json:"result"`
}

// minPoll and maxPoll limit the interval at which Wait reads a record.
const (
	minPoll = 25 * time.Millisecond
	maxPoll = time.Second
)

// Wait waits until an execution of a business has ended. It polls the execution's record, with a growing interval. If
// the execution was never enqueued, Wait waits until ctx ends.
func (q *Queue) Wait(ctx context.Context, businessID, id string) (Finished, error) {
	for pause := minPoll; ; pause = min(pause*3/2, maxPoll) {
		finished, err := q.Get(ctx, businessID, id)
		if err == nil || !errors.Is(err, ErrUnknown) && !errors.Is(err, errUnfinished) {
			return finished, err
		}
		if err := backoff.Wait(ctx, pause); err != nil {
			return Finished{}, fmt.Errorf("no worker has finished execution %s; is one running on this Redis: %w", id, err)
		}
	}
}

var errUnfinished = errors.New("the execution has not finished")

// Get returns an execution that has ended. If it has no record, the error is [ErrUnknown].
func (q *Queue) Get(ctx context.Context, businessID, id string) (Finished, error) {
	record, err := q.Redis.HMGet(ctx, wire.RecordKey(businessID, id), wire.FieldState, wire.FieldOutcome,
		wire.FieldResult).Result()
	if err != nil {
		return Finished{}, fmt.Errorf("read the record of execution %s: %w", id, err)
	}
	var fields [3]string
	for i := range fields {
		fields[i], _ = record[i].(string)
	}
	switch fields[0] {
	case "":
		return Finished{}, ErrUnknown
	case wire.StateFinished:
	default:
		return Finished{}, errUnfinished
	}
	finished := Finished{ExecutionID: id, BusinessID: businessID, Outcome: Outcome(fields[1])}
	document, err := payload.Expand([]byte(fields[2]))
	if err == nil {
		err = json.Unmarshal(document, &finished.Result)
	}
	if err != nil {
		return finished, fmt.Errorf("read the result of execution %s: %w", id, err)
	}
	return finished, nil
}
