// Package wire names the tasks, headers and keys that orchestrators and workers share in the Redis of a queue.
package wire

import (
	"hash/crc32"
	"strconv"
)

// DefaultQueue is the default name of a queue.
const DefaultQueue = "kizen"

// The types of tasks. The payload of an ExecutionTask is the body of POST /executions, that of a CallbackTask a
// callback to deliver.
const (
	ExecutionTask = "kizen:execution"
	CallbackTask  = "kizen:callback"
)

// The headers of a task: the time at which it was enqueued, in RFC 3339 (asynq does not keep it), and the W3C trace
// context that it belongs to.
const (
	EnqueuedAt  = "enqueued_at"
	Traceparent = "traceparent"
	Tracestate  = "tracestate"
)

// Version is the newest version of tasks and records that this program understands. Raise it when an older worker would
// mishandle data that a newer program writes; docs/upgrade.md has the rules. Data that older workers handle correctly
// keeps its older version.
const Version = 2

// The versions that this program writes.
const (
	// PlainVersion is the version of tasks and records in the first format.
	PlainVersion = 1
	// StoredVersion is the version of a task that refers to a stored payload, and of a record with a compressed result.
	StoredVersion = 2
)

// VersionHeader is the header with the version of a task. A task without it has version 1.
const VersionHeader = "version"

// QueueNames returns the queues of asynq that a fleet with this queue uses, when it uses n of them. Their names are hash
// tags, so they are in different slots of a Redis Cluster. The first has the name itself.
func QueueNames(queue string, n int) []string {
	names := []string{queue}
	for i := 1; i < n; i++ {
		names = append(names, queue+":"+strconv.Itoa(i))
	}
	return names
}

// QueueOf returns the one of n queues that has the executions of a business. Workers take an execution from any of
// them.
func QueueOf(queue string, n int, business string) string {
	return QueueNames(queue, n)[crc32.ChecksumIEEE([]byte(business))%uint32(max(n, 1))]
}

// MaxQueues bounds the queues of a fleet: an idle worker asks each of them for tasks about once a second.
const MaxQueues = 64

// TaskID returns the id of the task of an execution. asynq rejects a second task with the same id.
func TaskID(business, execution string) string { return business + "/" + execution }

// RecordKey returns the key of the hash that records the state of an execution.
func RecordKey(business, execution string) string {
	return "kizen:{" + business + "}:run:" + execution
}

// The fields of the hash at RecordKey.
const (
	FieldState   = "state"
	FieldDigest  = "digest" // SHA-256 of the task's payload, in hexadecimal
	FieldOutcome = "outcome"
	FieldResult  = "result"
)

// StateFinished is the value of the field "state" when the hash has an outcome.
const StateFinished = "finished"
