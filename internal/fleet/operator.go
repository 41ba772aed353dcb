package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/backoff"
	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner"
)

// Operator looks at the queue of a fleet and changes what waits in it, from outside of the fleet's workers.
type Operator struct {
	redis     redis.UniversalClient
	queue     string
	records   records
	letters   letters
	inspector *asynq.Inspector
	cancelled cancellations
}

// NewOperator returns an operator of a queue. It dials nothing.
func NewOperator(client redis.UniversalClient, queue string) *Operator {
	return &Operator{
		redis: client, queue: queue, records: records{redis: client}, letters: letters{client}, cancelled: cancellations{client, queue},
		inspector: asynq.NewInspectorFromRedisClient(client),
	}
}

// Where a task is.
const (
	TaskWaiting = "waiting" // for any worker
	TaskPutOff  = "put_off" // until a time
	TaskActive  = "active"  // a worker has it
	TaskDead    = "dead"    // it was given up, and is kept
	TaskTrimmed = "trimmed" // it was given up, and asynq has deleted it: only what is known of it is left
	TaskGone    = "gone"    // it was concluded; only its record is left
)

// Task is an execution, or a callback, as its queue knows it.
type Task struct {
	ID    string `json:"id"`
	State string `json:"state"`
	// Reason is why the last attempt came to nothing, or why it was given up.
	Reason string `json:"reason,omitempty"`
	// Next is when it is delivered again, Since when it was given up.
	Next  *time.Time `json:"next,omitempty"`
	Since *time.Time `json:"since,omitempty"`
	Bytes int        `json:"bytes,omitempty"` // of its payload
}

// Overview is how many tasks a queue has of each kind.
type Overview struct {
	Queue   string `json:"queue"`
	Paused  bool   `json:"paused"` // nothing is taken from it
	Waiting int    `json:"waiting"`
	PutOff  int    `json:"put_off"`
	Active  int    `json:"active"`
	Dead    int    `json:"dead"`
	// Trimmed is how many were given up and deleted by asynq since.
	Trimmed int    `json:"trimmed"`
	Tasks   []Task `json:"tasks"`
}

// List returns the tasks of a queue that are in a state, or in any if that is empty, limit of each at most; callbacks looks at callbacks in
// place of executions.
func (o *Operator) List(ctx context.Context, callbacks bool, state string, limit int) (Overview, error) {
	queue := o.queue
	if callbacks {
		queue = callbackQueue(queue)
	}
	found := Overview{Queue: queue, Tasks: []Task{}}
	info, err := queueInfo(ctx, o.redis, o.inspector, queue)
	if err != nil {
		return found, err
	}
	found.Paused, found.Waiting, found.PutOff, found.Active, found.Dead = info.Paused, info.Pending, info.Retry+info.Scheduled, info.Active, info.Archived
	trimmed, total, err := o.letters.trimmed(ctx, queue, limit)
	if err != nil {
		return found, err
	}
	found.Trimmed = total
	type list = func(string, ...asynq.ListOption) ([]*asynq.TaskInfo, error)
	for _, part := range []struct {
		state string
		count int
		list  list
	}{
		{TaskActive, found.Active, o.inspector.ListActiveTasks}, {TaskWaiting, found.Waiting, o.inspector.ListPendingTasks},
		{TaskPutOff, found.PutOff, o.inspector.ListRetryTasks}, {TaskPutOff, found.PutOff, o.inspector.ListScheduledTasks},
		{TaskDead, found.Dead, o.inspector.ListArchivedTasks},
	} {
		if part.count == 0 || state != "" && state != part.state {
			continue
		}
		tasks, err := part.list(queue, asynq.PageSize(limit))
		if err != nil {
			return found, fmt.Errorf("list queue %q: %w", queue, err)
		}
		for _, task := range tasks {
			found.Tasks = append(found.Tasks, taskOf(task))
		}
	}
	if state == "" || state == TaskTrimmed {
		found.Tasks = append(found.Tasks, trimmed...)
	}
	return found, nil
}

// queueInfo is asynq's, and says of a queue that nothing was ever put into that it is empty. asynq's own error cannot be told from others.
func queueInfo(ctx context.Context, client redis.UniversalClient, inspector *asynq.Inspector, queue string) (*asynq.QueueInfo, error) {
	exists, err := client.SIsMember(ctx, "asynq:queues", queue).Result()
	info := &asynq.QueueInfo{Queue: queue}
	if err == nil && exists {
		info, err = inspector.GetQueueInfo(queue)
	}
	if err != nil {
		return nil, fmt.Errorf("look at queue %q: %w", queue, err)
	}
	return info, nil
}

// taskInfo is asynq's, and nil where the queue has no such task.
func taskInfo(ctx context.Context, client redis.UniversalClient, inspector *asynq.Inspector, queue, id string) (*asynq.TaskInfo, error) {
	exists, err := client.Exists(ctx, "asynq:{"+queue+"}:t:"+id).Result()
	if err == nil && exists == 0 {
		return nil, nil
	}
	var info *asynq.TaskInfo
	if err == nil {
		info, err = inspector.GetTaskInfo(queue, id)
	}
	if err != nil {
		return nil, fmt.Errorf("look at task %q of queue %q: %w", id, queue, err)
	}
	return info, nil
}

func taskOf(info *asynq.TaskInfo) Task {
	task := Task{ID: info.ID, Reason: info.LastErr, Bytes: len(info.Payload)}
	switch info.State {
	case asynq.TaskStatePending:
		task.State = TaskWaiting
	case asynq.TaskStateActive:
		task.State = TaskActive
	case asynq.TaskStateArchived:
		task.State, task.Since = TaskDead, &info.LastFailedAt
	default:
		task.State, task.Next = TaskPutOff, &info.NextProcessAt
	}
	return task
}

// Execution is what is known of one.
type Execution struct {
	Task
	BusinessID  string `json:"business_id"`
	ExecutionID string `json:"execution_id"`
	// Record is how far it has come, a State; empty: no worker has had it, or its record has expired.
	Record   State            `json:"record,omitempty"`
	Attempts int64            `json:"attempts,omitempty"`
	Run      int64            `json:"run,omitempty"` // how often it was retried
	Worker   string           `json:"worker,omitempty"`
	Outcome  outcomes.Outcome `json:"outcome,omitempty"`
	Result   json.RawMessage  `json:"result,omitempty"`
	Finished *time.Time       `json:"finished_at,omitempty"`
	Callback string           `json:"callback,omitempty"`
	Failure  string           `json:"callback_error,omitempty"`
	Late     outcomes.Outcome `json:"late_outcome,omitempty"`
}

// ErrNothing says that there is nothing to act on.
var ErrNothing = errors.New("nothing to act on")

func nothing(format string, arguments ...any) error {
	return fmt.Errorf(format+": %w", append(arguments, ErrNothing)...)
}

// find returns a task of the queue, nil if it has none of this id, and which execution the id names: the payload says so, or the id itself
// as [wire.TaskID] makes it.
func (o *Operator) find(ctx context.Context, id string) (info *asynq.TaskInfo, named names, err error) {
	if info, err = taskInfo(ctx, o.redis, o.inspector, o.queue, id); err != nil {
		return nil, named, err
	}
	if info != nil {
		named, _ = readNames(info.Payload) // what names no execution is shown all the same
	} else {
		named.BusinessID, named.ExecutionID, _ = strings.Cut(id, "/")
	}
	return info, named, nil
}

// Show returns what is known of an execution. The error is [ErrNothing] if that is nothing.
func (o *Operator) Show(ctx context.Context, id string) (Execution, error) {
	info, named, err := o.find(ctx, id)
	if err != nil {
		return Execution{}, err
	}
	known, err := o.records.read(ctx, named.BusinessID, named.ExecutionID)
	if err != nil {
		return Execution{}, err
	}
	if info == nil && known.state == "" {
		return Execution{}, nothing("queue %q has no task %q, and there is no record of it", o.queue, id)
	}
	shown := Execution{
		Task: Task{ID: id, State: TaskGone, Reason: known.deadLetter}, BusinessID: named.BusinessID, ExecutionID: named.ExecutionID,
		Record: known.state, Attempts: known.attempts, Run: known.run, Outcome: known.outcome, Result: known.result,
		Callback: known.callback.state, Failure: known.callback.failure, Late: known.late.outcome,
	}
	switch {
	case info != nil:
		shown.Task = taskOf(info)
	case known.deadLetter != "":
		shown.State = TaskTrimmed
	}
	if known.owner != "" && known.state != Finished {
		shown.Worker = known.worker()
	}
	if known.state == Finished {
		shown.Finished = &known.at
	}
	return shown, nil
}

// Retry has a dead letter run again, under a new attempt and with a callback of its own, and what was put off run now. The error is
// [ErrNothing] where no such task is.
func (o *Operator) Retry(ctx context.Context, id string) error {
	info, named, err := o.find(ctx, id)
	if err != nil {
		return err
	}
	if info == nil {
		known, err := o.records.read(ctx, named.BusinessID, named.ExecutionID)
		switch {
		case err != nil:
			return err
		case known.deadLetter != "":
			return nothing("%q was given up, and asynq has deleted its request since (it keeps 10,000); enqueue it again under a new id", id)
		case known.state == Finished:
			return nothing("%q has ended as %s, and its request is not kept; enqueue it again under a new id", id, known.outcome)
		}
		return nothing("queue %q has no task %q", o.queue, id)
	}
	if info.State == asynq.TaskStateActive || info.State == asynq.TaskStatePending {
		return nothing("%q is %s already", id, taskOf(info).State)
	}
	if err := o.inspector.RunTask(o.queue, id); err != nil {
		return fmt.Errorf("put %q back into queue %q: %w", id, o.queue, err)
	}
	return nil
}

// RetryDead has all dead letters run again, and returns how many.
func (o *Operator) RetryDead(ctx context.Context) (int, error) {
	info, err := queueInfo(ctx, o.redis, o.inspector, o.queue)
	if err != nil {
		return 0, err
	}
	if info.Archived == 0 {
		return 0, nothing("queue %q has no dead letters", o.queue)
	}
	n, err := o.inspector.RunAllArchivedTasks(o.queue)
	if err != nil {
		return n, fmt.Errorf("put the dead letters back into queue %q: %w", o.queue, err)
	}
	return n, nil
}

// Cancel ends an execution. One that no worker has ends at once, and running is false; the worker that has it is told otherwise, and ends it
// within a third of --lease. The error is [ErrNothing] if it has ended, or is not known.
func (o *Operator) Cancel(ctx context.Context, id string) (running bool, err error) {
	info, named, err := o.find(ctx, id)
	switch {
	case err != nil:
		return false, err
	case info == nil:
		return false, nothing("queue %q has no task %q: it has ended, or was never enqueued", o.queue, id)
	case info.State == asynq.TaskStateArchived:
		return false, nothing("%q was given up already", id)
	}
	digest := sha256.Sum256(info.Payload)
	state, err := o.records.cancel(ctx, newTicket(named.BusinessID, named.ExecutionID, "operator"), hex.EncodeToString(digest[:]))
	switch {
	case err != nil:
		return false, err
	case state == Finished:
		return false, nothing("%q has ended", id)
	case state != "":
		return true, o.cancelled.add(ctx, named.BusinessID, named.ExecutionID)
	}
	// A worker tells of the end. What waits for its turn does so without this.
	if info.State == asynq.TaskStateRetry || info.State == asynq.TaskStateScheduled {
		if err := o.inspector.RunTask(o.queue, id); err != nil && !errors.Is(err, asynq.ErrTaskNotFound) {
			return false, fmt.Errorf("have the end of %q told: %w", id, err)
		}
	}
	return false, nil
}

// drainPoll is how often a drain looks at what is active.
const drainPoll = 200 * time.Millisecond

// Drain has workers take nothing more from the queue, and returns when they have nothing of it left, or when ctx ends. It tells how much
// there is whenever that changes.
func (o *Operator) Drain(ctx context.Context, told func(active int)) error {
	if err := o.inspector.PauseQueue(o.queue); err != nil && !strings.Contains(err.Error(), "already paused") {
		return fmt.Errorf("pause queue %q: %w", o.queue, err)
	}
	for before := -1; ; {
		info, err := queueInfo(ctx, o.redis, o.inspector, o.queue)
		if err != nil {
			return err
		}
		active := info.Active
		if active != before {
			told(active)
		}
		if active == 0 {
			return nil
		}
		before = active
		if backoff.Wait(ctx, drainPoll) != nil {
			return fmt.Errorf("%d executions of queue %q are still active: %w", active, o.queue, context.Cause(ctx))
		}
	}
}

// Resume ends a drain. The error is [ErrNothing] if there is none.
func (o *Operator) Resume() error {
	err := o.inspector.UnpauseQueue(o.queue)
	if err != nil && strings.Contains(err.Error(), "is not paused") {
		return nothing("queue %q is not drained", o.queue)
	}
	return err
}

// cancelledEnd is the end of an execution that an operator has cancelled before a worker had it.
func cancelledEnd(id string) (ending, error) {
	document, err := runner.Result{
		RequestID: id, Outcome: outcomes.Cancelled, Error: &runner.StepError{Message: execution.ErrCancelled.Error()},
	}.MarshalJSON()
	return ending{outcome: outcomes.Cancelled, result: document, at: time.Now()}, err
}
