// Package fleet shares executions among many machines, over a queue in Redis.
//
// An orchestrator enqueues a task of type [wire.ExecutionTask]; a [Worker] takes it, runs it and has its result
// delivered. The queue is hibiken/asynq's, which delivers each task at least once. A record of every execution makes
// that safe; scripts that Redis runs one at a time change it:
//
//	queued    a worker gave it back; it waits for another
//	claimed   a worker prepares it; only the latest claim counts
//	started   the step's code may have begun, and never begins again
//	finished  it has a result, which does not change
//
// The step's code starts only after the attempt that claimed the record has changed it from claimed to started. So it
// starts at most once, however often the task is delivered. If a worker dies before the start, another one runs the
// execution. If it dies afterwards, the execution ends with a result that says so.
//
// Workers renew their membership, and one of them, the keeper, watches the others; see members and keeper. Each
// records which tasks it has, so that the keeper requeues exactly those when it dies; see held. A worker that cannot
// reach Redis ends its steps before another may take over; see term. When Redis restarts without its last writes, the
// workers write their state again; see redisRun. A broken worker takes no tasks; see intake.
//
// The record keeps a result for a while. The callback is a separate task, whose state is in the record too.
package fleet
