// Package fleet shares executions among many machines, over a queue in Redis.
//
// An orchestrator enqueues a task of type [wire.ExecutionTask]; a [Worker] takes it, runs it and has its result delivered. The
// queue is hibiken/asynq's, which delivers each task at least once. What makes that safe is a record of every execution,
// changed by scripts that Redis runs one at a time:
//
//	queued    it was given back, and waits
//	claimed   a worker prepares it: the last claim holds
//	started   the step's code may have begun, and never begins again
//	finished  its result stands
//
// The step's code starts only after claimed has become started, by the attempt that claimed it. So it starts at most once, however
// often the task is delivered. What had not started when its worker died is run by another one; what had started is ended with
// a result that says so.
//
// Workers show that they live, and one of them, the keeper, looks after the others; see members and keeper. Each writes down which
// tasks it holds, so that the keeper puts back exactly those when it dies; see held. A worker that cannot reach Redis ends its
// steps before that; see term. When Redis comes back without its last writes the workers write down again what they know; see
// redisRun. A worker that is broken takes nothing; see intake.
//
// A result is kept in the record for a while, and its callback is a task of its own, whose state the record says.
package fleet
