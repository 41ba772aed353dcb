// Package execution is one execution, whole: its key, its proxy, its sandboxed step, and the end of all three.
//
// A [Host] holds what the executions of this process share. [Host.Open] gives a standing proxy its [Authority];
// [Host.Run] carries a step from its job to its result:
//
//  1. a sandboxed Python is there, or starts
//  2. the proxy listens, where only this execution can reach it
//  3. the key is minted; the proxy has it from here on
//  4. the step runs
//  5. calls in flight are cut, the key is taken back, the listener is closed
//
// Interrupted anywhere, it goes to the last line. So does a panic on the goroutine of an execution, before it ends the
// process. A crash leaves nothing valid past the key's own expiry, which is set by the command that writes the key's
// record.
package execution
