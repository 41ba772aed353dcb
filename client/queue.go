package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	"github.com/kizen/kizen-sidecar/internal/tombstone"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// Errors of a [Queue].
var (
	// ErrEnqueued reports that an execution with this ID is or was in the queue. It does not run again.
	ErrEnqueued = errors.New("an execution with this id was enqueued before")
	// ErrConflict reports that another request was submitted under this ID. Use a new ID.
	ErrConflict = errors.New("another request was submitted under the id of this execution; use a new id")
	// ErrUnknown reports that no execution of this business has this ID, or that its result is no longer kept.
	ErrUnknown = errors.New("the execution has no record")
)

// Queue submits executions to a fleet of kizen-sidecar workers. It is safe for concurrent use.
type Queue struct {
	// Redis is the Redis of the fleet. The caller closes it.
	Redis redis.UniversalClient
	// Name is the --queue of the workers; default "kizen".
	Name string
	// Queues is the --queues of the workers; default 1.
	Queues int
}

// name returns asynq's name for the queue of a business.
func (q *Queue) name(business string) string {
	return wire.QueueOf(cmp.Or(q.Name, wire.DefaultQueue), q.Queues, business)
}

// Enqueue puts an execution into the queue and returns its ID. It rejects a request whose BusinessID, UserID or
// ExecutionID is not a valid ID; a worker reports other errors of the request in the result. If the queue already knows
// the ID, the error is [ErrEnqueued]. The same request under an ID whose execution has ended is accepted but does not
// run again, and Get still returns the first result. For another request under a known ID the error is [ErrConflict].
func (q *Queue) Enqueue(ctx context.Context, request Request) (id string, err error) {
	chosen := request.ExecutionID != ""
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
	if chosen {
		if err := q.checkID(ctx, request.BusinessID, request.ExecutionID, body); err != nil {
			q.discard(ctx, stored, nil)
			return "", err
		}
	}
	headers := map[string]string{wire.EnqueuedAt: time.Now().Format(time.RFC3339Nano),
		wire.VersionHeader: strconv.Itoa(version)}
	task := asynq.NewTaskWithHeaders(wire.ExecutionTask, body, headers)
	_, err = asynq.NewClientFromRedisClient(q.Redis).EnqueueContext(ctx, task,
		asynq.Queue(q.name(request.BusinessID)), asynq.TaskID(wire.TaskID(request.BusinessID, request.ExecutionID)))
	switch {
	case errors.Is(err, asynq.ErrTaskIDConflict):
		return "", q.refused(ctx, stored, body)
	case err != nil:
		return "", fmt.Errorf("enqueue the execution: %w", err)
	}
	return request.ExecutionID, nil
}

// checkID returns [ErrConflict] if another request has run, or been claimed, under an id; body is that of the task.
func (q *Queue) checkID(ctx context.Context, business, id string, body []byte) error {
	var recorded, marked *redis.SliceCmd
	_, err := q.Redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		recorded = pipe.HMGet(ctx, wire.RecordKey(business, id), wire.FieldDigest)
		marked = pipe.MGet(ctx, tombstone.Key(business, id))
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for execution %s: %w", id, err)
	}
	digest := sha256.Sum256(body)
	for _, known := range append(recorded.Val(), marked.Val()...) {
		if known != nil && known != hex.EncodeToString(digest[:]) {
			return ErrConflict
		}
	}
	return nil
}

// refused returns the error for a request whose id has a task, and deletes its stored request unless that task needs
// it.
func (q *Queue) refused(ctx context.Context, stored payload.Reference, body []byte) error {
	id := wire.TaskID(stored.BusinessID, stored.ExecutionID)
	task, err := asynq.NewInspectorFromRedisClient(q.Redis).GetTaskInfo(q.name(stored.BusinessID), id)
	if err != nil { // the execution has ended meanwhile, or the queue cannot be read
		return ErrEnqueued
	}
	if bytes.Equal(task.Payload, body) {
		return ErrEnqueued
	}
	q.discard(ctx, stored, task.Payload)
	return ErrConflict
}

// discard deletes a stored request that no task refers to; queued is the payload of the task with its id, if any. It is
// best effort: a request that stays expires.
func (q *Queue) discard(ctx context.Context, stored payload.Reference, queued []byte) {
	var other payload.Reference
	_ = json.Unmarshal(queued, &other) // a payload that is not a reference needs no stored request
	if stored.SHA256 != "" && stored.SHA256 != other.SHA256 {
		_ = payload.Store{Redis: q.Redis}.Delete(ctx, stored)
	}
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
