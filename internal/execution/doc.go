// An interrupt at any point continues at step 5. So does a panic on the goroutine of an execution, before it ends the
// process. After a crash nothing stays valid beyond the key's own expiry, which the command that writes the key's
// record sets.
package execution
