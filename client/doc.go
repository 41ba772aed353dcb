// Package client lets orchestrators written in Go run Code Steps.
//
// Over HTTP, a [Client] calls kizen-sidecar serve: [Client.Run] waits for the result on one connection; [Client.Start],
// [Client.Wait] and [Client.Events] do the same without holding a connection open. Over a queue, a [Queue] submits
// executions to a fleet of kizen-sidecar workers. [VerifyCallback] verifies the callbacks of both.
//
// A failed step is a [Result] with an [Outcome], not an error. An error means that the result is unknown or that the
// execution was not accepted; a refusal by the server is an [*Error].
package client
