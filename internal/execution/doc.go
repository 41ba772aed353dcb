// Package execution runs one whole execution: its key, its proxy, its sandboxed step, and the end of all three.
//
// A [Host] holds everything that the executions of this process share. [Host.Open] returns the [Authority] of a
// standalone proxy; [Host.Run] runs a step from its job to its result:
//  1. it gets a sandboxed Python, warm or new
//  2. the proxy listens where only this execution can reach it
//  3. the key is minted; from now on the proxy has it
//  4. the step runs
//  5. calls in flight are cut, the key is revoked, the listener is closed
//
// An interrupt at any point continues at step 5. So does a panic on the goroutine of an execution, before it ends the
// process. After a crash nothing stays valid beyond the key's own expiry, which the command that writes the key's record
// sets.
package execution
