package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/backoff"
	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/payload"
	"github.com/kizen/kizen-sidecar/internal/tombstone"
	"github.com/kizen/kizen-sidecar/internal/wire"
	"github.com/kizen/kizen-sidecar/runner"
)

// Operator inspects and changes the queue of a fleet from outside the workers.
type Operator struct {
	redis     redis.UniversalClient
	queue     string
	queues    []string // asynq's names
	records   records
	letters   letters
	inspector *asynq.Inspector
	cancelled cancellations
}

// NewOperator returns an operator of a queue that consists of n queues of asynq, see [wire.QueueNames]. It dials
// nothing.
func NewOperator(client redis.UniversalClient, queue string, n int) *Operator {
	return &Operator{
		redis: client, queue: queue, queues: wire.QueueNames(queue, n), records: records{redis: client},
		letters:   letters{client},
		cancelled: cancellations{client, queue},
		inspector: asynq.NewInspectorFromRedisClient(client),
	}
}

// The states of a task.
const (
	TaskWaiting = "waiting" // for any worker
	TaskPutOff  = "put_off" // until a given time
	TaskActive  = "active"  // a worker has it
	TaskDead    = "dead"    // given up and kept
	TaskTrimmed = "trimmed" // given up; asynq has deleted the task, and only its record is left
	TaskGone    = "gone"    // completed; only its record is left
)

// Task is an execution, or a callback, as the queue shows it.
type Task struct {
	ID    string `json:"id"`
	State string `json:"state"`
	// Reason is why the last attempt failed, or why the task was given up.
	Reason string `json:"reason,omitempty"`
	// Next is when the task is delivered again; Since is when it was given up.
	Next  *time.Time `json:"next,omitempty"`
	Since *time.Time `json:"since,omitempty"`
	Bytes int        `json:"bytes,omitempty"` // of the payload
}

// Counts is the number of tasks of a queue by state.
type Counts struct {
	Queue   string `json:"queue"`
	Paused  bool   `json:"paused"` // workers take nothing from it
	Waiting int    `json:"waiting"`
	PutOff  int    `json:"put_off"`
	Active  int    `json:"active"`
	Dead    int    `json:"dead"`
	// Trimmed counts the dead letters that asynq has deleted.
	Trimmed int `json:"trimmed"`
}

// add adds the counts of another queue.
func (c *Counts) add(other Counts) {
	c.Paused = c.Paused || other.Paused
	c.Waiting += other.Waiting
	c.PutOff += other.PutOff
	c.Active += other.Active
	c.Dead += other.Dead
	c.Trimmed += other.Trimmed
}

// Overview is the state of a queue: its counts and some of its tasks.
type Overview struct {
	Counts
	// Queues are the counts of each of asynq's queues, if there are several.
	Queues []Counts `json:"queues,omitempty"`
	Tasks  []Task   `json:"tasks"`
}

// List returns the tasks of a queue that are in a state, at most limit of each. If state is empty, it lists all
// states. If callbacks is true, it lists callbacks in place of executions.
func (o *Operator) List(ctx context.Context, callbacks bool, state string, limit int) (Overview, error) {
	names := o.names(callbacks)
	found := Overview{Counts: Counts{Queue: names[0]}, Tasks: []Task{}}
	room := map[string]int{} // the number of tasks still to list, by state
	for _, state := range []string{TaskWaiting, TaskPutOff, TaskActive, TaskDead, TaskTrimmed} {
		room[state] = limit
	}
	for _, queue := range names {
		counts, err := o.list(ctx, queue, state, room, &found.Tasks)
		if err != nil {
			return found, err
		}
		found.add(counts)
		if len(names) > 1 {
			found.Queues = append(found.Queues, counts)
		}
	}
	return found, nil
}

// names returns asynq's names for the queues of executions or of callbacks.
func (o *Operator) names(callbacks bool) []string {
	if callbacks {
		return callbackQueues(o.queues)
	}
	return o.queues
}

// list counts the tasks of one of asynq's queues, and appends them to tasks, for each state at most as many as room
// has left.
func (o *Operator) list(ctx context.Context, queue, state string, room map[string]int, tasks *[]Task) (Counts, error) {
	info, err := queueInfo(ctx, o.redis, o.inspector, queue)
	if err != nil {
		return Counts{}, err
	}
	trimmed, total, err := o.letters.trimmed(ctx, queue, room[TaskTrimmed])
	if err != nil {
		return Counts{}, err
	}
	counts := Counts{Queue: queue, Paused: info.Paused, Waiting: info.Pending, PutOff: info.Retry + info.Scheduled,
		Active: info.Active, Dead: info.Archived, Trimmed: total}
	type list = func(string, ...asynq.ListOption) ([]*asynq.TaskInfo, error)
	for _, part := range []struct {
		state string
		count int
		list  list
	}{
		{TaskActive, info.Active, o.inspector.ListActiveTasks}, {TaskWaiting, info.Pending, o.inspector.ListPendingTasks},
		{TaskPutOff, info.Retry, o.inspector.ListRetryTasks}, {TaskPutOff, info.Scheduled, o.inspector.ListScheduledTasks},
		{TaskDead, info.Archived, o.inspector.ListArchivedTasks},
	} {
		if part.count == 0 || room[part.state] == 0 || state != "" && state != part.state {
			continue
		}
		listed, err := part.list(queue, asynq.PageSize(room[part.state]))
		if err != nil {
			return counts, fmt.Errorf("list queue %q: %w", queue, err)
		}
		room[part.state] -= len(listed)
		for _, task := range listed {
			*tasks = append(*tasks, taskOf(task))
		}
	}
	if state == "" || state == TaskTrimmed {
		room[TaskTrimmed] -= len(trimmed)
		*tasks = append(*tasks, trimmed...)
	}
	return counts, nil
}

// queueInfo wraps asynq's call and reports a queue that was never used as empty. asynq's own error for it has no type.
func queueInfo(ctx context.Context, client redis.UniversalClient, inspector *asynq.Inspector,
	queue string) (*asynq.QueueInfo, error) {
	exists, err := client.SIsMember(ctx, "asynq:queues", queue).Result()
	info := &asynq.QueueInfo{Queue: queue}
	switch {
	case err != nil:
	case exists:
		info, err = inspector.GetQueueInfo(queue)
	default: // it may be drained already
		var paused int64
		paused, err = client.Exists(ctx, "asynq:{"+queue+"}:paused").Result()
		info.Paused = paused == 1
	}
	if err != nil {
		return nil, fmt.Errorf("inspect queue %q: %w", queue, err)
	}
	return info, nil
}

// taskInfo wraps asynq's call and returns nil if the queue has no such task.
func taskInfo(ctx context.Context, client redis.UniversalClient, inspector *asynq.Inspector, queue,
	id string) (*asynq.TaskInfo, error) {
	exists, err := client.Exists(ctx, "asynq:{"+queue+"}:t:"+id).Result()
	if err == nil && exists == 0 {
		return nil, nil
	}
	var info *asynq.TaskInfo
	if err == nil {
		info, err = inspector.GetTaskInfo(queue, id)
	}
	if err != nil {
		return nil, fmt.Errorf("inspect task %q of queue %q: %w", id, queue, err)
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

// Execution is the state of an execution, from the queue and from its record.
type Execution struct {
	Task
	BusinessID  string `json:"business_id"`
	ExecutionID string `json:"execution_id"`
	// Record is the State of the record. It is empty if no worker has had the execution, or if its record has expired.
	Record   State            `json:"record,omitempty"`
	Attempts int64            `json:"attempts,omitempty"`
	Run      int64            `json:"run,omitempty"` // how often a dead letter was run again
	Worker   string           `json:"worker,omitempty"`
	Outcome  outcomes.Outcome `json:"outcome,omitempty"`
	Result   json.RawMessage  `json:"result,omitempty"`
	Finished *time.Time       `json:"finished_at,omitempty"`
	Callback string           `json:"callback,omitempty"`
	Failure  string           `json:"callback_error,omitempty"`
	Late     outcomes.Outcome `json:"late_outcome,omitempty"`
}

// ErrNothing means that no task or record matches.
var ErrNothing = errors.New("nothing to act on")

func nothing(format string, arguments ...any) error {
	return fmt.Errorf(format+": %w", append(arguments, ErrNothing)...)
}

// located is an execution that an id names.
type located struct {
	// queue is asynq's queue that has its task, or would have it.
	queue string
	// info is the task, or nil if no queue has it.
	info *asynq.TaskInfo
	// named has the names in the payload, or those in the id itself if [wire.TaskID] made it.
	named payload.Reference
}

// find returns the execution that an id names. Its task is in the queue of its business. It is in another queue if the
// number of queues has changed since, or if the orchestrator chose the id of the task.
func (o *Operator) find(ctx context.Context, id string) (located, error) {
	var l located
	l.named.BusinessID, l.named.ExecutionID, _ = strings.Cut(id, "/")
	l.queue = wire.QueueOf(o.queue, len(o.queues), l.named.BusinessID)
	for _, queue := range append([]string{l.queue}, o.queues...) {
		info, err := taskInfo(ctx, o.redis, o.inspector, queue, id)
		if err != nil {
			return l, err
		}
		if info != nil {
			l.queue, l.info = queue, info
			l.named, _ = readReference(info.Payload) // a payload without names is still shown
			return l, nil
		}
	}
	return l, nil
}

// findCallback returns the task of a callback and its queue, or nil if no queue has it.
func (o *Operator) findCallback(ctx context.Context, id string) (queue string, info *asynq.TaskInfo, err error) {
	for _, queue := range callbackQueues(o.queues) {
		if info, err = taskInfo(ctx, o.redis, o.inspector, queue, id); info != nil || err != nil {
			return queue, info, err
		}
	}
	return callbackQueue(o.queue), nil, nil
}

// Show returns the state of an execution. The error is [ErrNothing] if the execution is unknown.
func (o *Operator) Show(ctx context.Context, id string) (Execution, error) {
	l, err := o.find(ctx, id)
	if err != nil {
		return Execution{}, err
	}
	info, named := l.info, l.named
	known, err := o.records.read(ctx, named.BusinessID, named.ExecutionID)
	if err != nil {
		return Execution{}, err
	}
	if info == nil && known.state == "" {
		ran, err := tombstone.Store{Redis: o.redis}.Begun(ctx, named.BusinessID, named.ExecutionID)
		switch {
		case err != nil:
			return Execution{}, fmt.Errorf("look for %q: %w", id, err)
		case ran:
			return Execution{}, nothing("%q has run, and its result is no longer kept", id)
		}
		return Execution{}, nothing("queue %q has no task %q and no record of it", o.queue, id)
	}
	shown := Execution{
		Task: Task{ID: id, State: TaskGone, Reason: known.deadLetter}, BusinessID: named.BusinessID,
		ExecutionID: named.ExecutionID,
		Record:      known.state, Attempts: known.attempts, Run: known.run, Outcome: known.outcome, Result: known.result,
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

// Retry runs a dead letter again, as a new attempt with its own callback, and runs a delayed task now. The error is
// [ErrNothing] if the task does not exist.
func (o *Operator) Retry(ctx context.Context, id string) error {
	l, err := o.find(ctx, id)
	if err != nil {
		return err
	}
	info, named := l.info, l.named
	if info == nil {
		known, err := o.records.read(ctx, named.BusinessID, named.ExecutionID)
		switch {
		case err != nil:
			return err
		case known.deadLetter != "":
			return nothing("%q was given up, and asynq has since deleted its request (it keeps 10,000); enqueue it again under a new id", id)
		case known.state == Finished:
			return nothing("%q has ended as %s, and its request is not kept; enqueue it again under a new id", id, known.outcome)
		}
		return nothing("queue %q has no task %q", o.queue, id)
	}
	if info.State == asynq.TaskStateActive || info.State == asynq.TaskStatePending {
		return nothing("%q is %s already", id, taskOf(info).State)
	}
	if err := o.inspector.RunTask(l.queue, id); err != nil {
		return fmt.Errorf("requeue %q in queue %q: %w", id, l.queue, err)
	}
	return nil
}

// RetryCallback redelivers a callback that was given up, and sends a delayed one now. The error is [ErrNothing] if the
// callback does not exist.
func (o *Operator) RetryCallback(ctx context.Context, id string) error {
	queue, info, err := o.findCallback(ctx, id)
	switch {
	case err != nil:
		return err
	case info == nil:
		return nothing("queue %q has no callback %q: it was delivered, or asynq has deleted it", queue, id)
	case info.State == asynq.TaskStateActive || info.State == asynq.TaskStatePending:
		return nothing("callback %q is %s already", id, taskOf(info).State)
	}
	if err := o.inspector.RunTask(queue, id); err != nil {
		return fmt.Errorf("requeue callback %q in queue %q: %w", id, queue, err)
	}
	return nil
}

// RetryDead runs all dead letters again, or redelivers all callbacks that were given up, and returns their number.
func (o *Operator) RetryDead(ctx context.Context, callbacks bool) (int, error) {
	total := 0
	for _, queue := range o.names(callbacks) {
		info, err := queueInfo(ctx, o.redis, o.inspector, queue)
		if err != nil {
			return total, err
		}
		if info.Archived == 0 {
			continue
		}
		n, err := o.inspector.RunAllArchivedTasks(queue)
		total += n
		if err != nil {
			return total, fmt.Errorf("requeue the dead letters of queue %q: %w", queue, err)
		}
	}
	if total == 0 {
		return 0, nothing("queue %q has no dead letters", o.names(callbacks)[0])
	}
	return total, nil
}

// Discard deletes a dead letter: its task, its stored request and its record. Its id does not run again while the
// tombstone exists. The error is [ErrNothing] if the execution is not a dead letter.
func (o *Operator) Discard(ctx context.Context, id string) error {
	l, err := o.find(ctx, id)
	if err != nil {
		return err
	}
	info, named := l.info, l.named
	known, err := o.records.read(ctx, named.BusinessID, named.ExecutionID)
	if err != nil {
		return err
	}
	switch {
	case info == nil:
	case info.State != asynq.TaskStateArchived:
		return nothing("%q is %s and no dead letter; queue cancel ends it", id, taskOf(info).State)
	case info.LastErr != "" && !strings.HasPrefix(info.LastErr, deadLetterMark) && known.state != Finished:
		return nothing("%q has not ended: asynq archived it by itself, and a worker will requeue it", id)
	}
	// If Discard fails in between, the rest can still be discarded, or expires.
	if err := o.deleteTask(ctx, l.queue, id, info); err != nil {
		return err
	}
	ended := known.deadLetter != "" && (info == nil || info.LastErr == known.deadLetter)
	if ended {
		err = o.records.discard(ctx, named.BusinessID, named.ExecutionID, known.deadLetter)
	}
	if err == nil && named.SHA256 != "" {
		err = payload.Store{Redis: o.redis}.Delete(ctx, named)
	}
	if err != nil {
		return fmt.Errorf("delete what %q has left: %w", id, err)
	}
	listed, err := o.unlist(ctx, o.queues, id)
	if err == nil && info == nil && !ended && !listed {
		return nothing("queue %q has no dead letter %q", o.queue, id)
	}
	return err
}

// unlist removes a dead letter from the list, and reports whether it was listed.
func (o *Operator) unlist(ctx context.Context, queues []string, id string) (listed bool, err error) {
	for _, queue := range queues {
		existed, err := o.letters.remove(ctx, queue, id)
		if err != nil {
			return listed, err
		}
		listed = listed || existed
	}
	return listed, nil
}

// DiscardCallback deletes a callback that was given up. The record of its execution stays. The error is [ErrNothing]
// if no such callback exists.
func (o *Operator) DiscardCallback(ctx context.Context, id string) error {
	queue, info, err := o.findCallback(ctx, id)
	switch {
	case err != nil:
		return err
	case info != nil && info.State != asynq.TaskStateArchived:
		return nothing("callback %q is %s and not given up", id, taskOf(info).State)
	}
	if err := o.deleteTask(ctx, queue, id, info); err != nil {
		return err
	}
	listed, err := o.unlist(ctx, callbackQueues(o.queues), id)
	if err == nil && info == nil && !listed {
		return nothing("queue %q has no callback %q that was given up", queue, id)
	}
	return err
}

// deleteTask deletes an archived task, unless info is nil.
func (o *Operator) deleteTask(ctx context.Context, queue, id string, info *asynq.TaskInfo) error {
	if info == nil {
		return nil
	}
	err := o.inspector.DeleteTask(queue, id)
	if err == nil {
		return nil
	}
	// asynq's error for a missing task has no type: another operator may have deleted the task.
	if left, unknown := taskInfo(ctx, o.redis, o.inspector, queue, id); left == nil && unknown == nil {
		return nil
	}
	return fmt.Errorf("delete %q from queue %q: %w", id, queue, err)
}

// DiscardDead discards all dead letters, or all callbacks that were given up, and returns their number. It includes
// those whose task asynq has deleted.
func (o *Operator) DiscardDead(ctx context.Context, callbacks bool) (n int, err error) {
	discard := o.Discard
	if callbacks {
		discard = o.DiscardCallback
	}
	for _, queue := range o.names(callbacks) {
		dead, err := o.redis.ZRange(ctx, "asynq:{"+queue+"}:archived", 0, -1).Result()
		if err != nil {
			return n, fmt.Errorf("list the dead letters of queue %q: %w", queue, err)
		}
		trimmed, _, err := o.letters.trimmed(ctx, queue, math.MaxInt)
		if err != nil {
			return n, err
		}
		for _, task := range trimmed {
			dead = append(dead, task.ID)
		}
		for _, id := range dead {
			switch err := discard(ctx, id); {
			case errors.Is(err, ErrNothing): // it runs again, or another operator has discarded it
			case err != nil:
				return n, err
			default:
				n++
			}
		}
	}
	if n == 0 {
		return 0, nothing("queue %q has no dead letters", o.names(callbacks)[0])
	}
	return n, nil
}

// Cancel ends an execution. If no worker has it, it ends at once and running is false. Otherwise running is true, and
// the worker that has it ends it within a third of --lease. The error is [ErrNothing] if the execution has ended or is
// unknown.
func (o *Operator) Cancel(ctx context.Context, id string) (running bool, err error) {
	l, err := o.find(ctx, id)
	info, named := l.info, l.named
	switch {
	case err != nil:
		return false, err
	case info == nil:
		return false, nothing("queue %q has no task %q: it has ended, or was never enqueued", o.queue, id)
	case info.State == asynq.TaskStateArchived:
		return false, nothing("%q was already given up; queue discard deletes it", id)
	}
	digest := sha256.Sum256(info.Payload)
	state, err := o.records.cancel(ctx, newTicket(named.BusinessID, named.ExecutionID, "operator"),
		hex.EncodeToString(digest[:]))
	switch {
	case err != nil:
		return false, err
	case state == Finished:
		return false, nothing("%q has ended", id)
	case state != "":
		return true, o.cancelled.add(ctx, named.BusinessID, named.ExecutionID)
	}
	// A worker sends the callback. It receives waiting tasks anyway, but delayed ones only if they run now.
	if info.State == asynq.TaskStateRetry || info.State == asynq.TaskStateScheduled {
		if err := o.inspector.RunTask(l.queue, id); err != nil && !errors.Is(err, asynq.ErrTaskNotFound) {
			return false, fmt.Errorf("queue the callback of %q: %w", id, err)
		}
	}
	return false, nil
}

// drainPoll is how often a drain checks the active tasks.
const drainPoll = 200 * time.Millisecond

// Drain stops workers from taking tasks of the queue. It returns when they have finished those they had, or when ctx
// ends. It calls report with the number left whenever that changes.
func (o *Operator) Drain(ctx context.Context, report func(active int)) error {
	for _, queue := range o.queues {
		if err := o.inspector.PauseQueue(queue); err != nil && !strings.Contains(err.Error(), "already paused") {
			return fmt.Errorf("pause queue %q: %w", queue, err)
		}
	}
	for before := -1; ; {
		active := 0
		for _, queue := range o.queues {
			info, err := queueInfo(ctx, o.redis, o.inspector, queue)
			if err != nil {
				return err
			}
			active += info.Active
		}
		if active != before {
			report(active)
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

// Resume ends a drain. The error is [ErrNothing] if the queue is not drained.
func (o *Operator) Resume() error {
	drained := false
	for _, queue := range o.queues {
		switch err := o.inspector.UnpauseQueue(queue); {
		case err == nil:
			drained = true
		case !strings.Contains(err.Error(), "is not paused"):
			return fmt.Errorf("resume queue %q: %w", queue, err)
		}
	}
	if !drained {
		return nothing("queue %q is not drained", o.queue)
	}
	return nil
}

// cancelledEnd returns the end of an execution that an operator cancelled before a worker had it.
func cancelledEnd(id string) (ending, error) {
	document, err := runner.Result{
		RequestID: id, Outcome: outcomes.Cancelled, Error: &runner.StepError{Message: execution.ErrCancelled.Error()},
	}.MarshalJSON()
	return ending{outcome: outcomes.Cancelled, result: document, at: time.Now()}, err
}
