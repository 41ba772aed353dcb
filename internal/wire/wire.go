// Package wire names what orchestrators and workers share in the Redis of a queue.
package wire

// DefaultQueue is the name of a queue of which nothing else is said.
const DefaultQueue = "kizen"

// The types of tasks. The payload of the first is the body of POST /executions, that of the second a callback to deliver.
const (
	ExecutionTask = "kizen:execution"
	CallbackTask  = "kizen:callback"
)

// The headers of a task: when it was put into the queue, as RFC 3339 writes it (asynq does not keep that), and the W3C trace
// context that it belongs to.
const (
	EnqueuedAt  = "enqueued_at"
	Traceparent = "traceparent"
	Tracestate  = "tracestate"
)

// Version is that of the tasks and records that this program writes, and the newest that it understands. It is raised where an older worker
// would do something wrong with what a newer program has written; docs/upgrade.md has the rules.
const Version = 1

// VersionHeader is the header of a task that has its version. Without it the version is 1.
const VersionHeader = "version"

// TaskID returns the id of the task of an execution. asynq queues an id once.
func TaskID(business, execution string) string { return business + "/" + execution }

// RecordKey returns the key of the hash that says how far an execution has come.
func RecordKey(business, execution string) string {
	return "kizen:{" + business + "}:run:" + execution
}

// Fields of that hash.
const (
	FieldState    = "state"
	FieldOutcome  = "outcome"
	FieldResult   = "result"
	FieldFinished = "finished_at" // in milliseconds since 1970
	FieldCallback = "callback"
)

// StateFinished is the value of the field "state" once the outcome is there.
const StateFinished = "finished"
