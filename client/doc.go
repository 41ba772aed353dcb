// Package client is what an orchestrator written in Go imports to have Code Steps run.
//
// Over HTTP, a [Client] speaks with kizen-sidecar serve: [Client.Run] waits for the result on one connection; [Client.Start],
// [Client.Wait] and [Client.Events] do the same without holding one. Over a queue, a [Queue] hands executions to a fleet of
// kizen-sidecar worker. [VerifyCallback] checks what either posts to the callback URL of an execution.
//
// A step that fails is a [Result] with an [Outcome], not an error. An error means that the result is not known or that the
// execution was not accepted; what the server said of it is an [*Error].
package client
