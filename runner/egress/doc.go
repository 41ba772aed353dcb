// Package egress decides on every connection of a step. A seccomp filter, see [Filter], stops the system calls that
// can reach another process or machine, and notifies a [Supervisor] of them. The supervisor reads the address once,
// asks a [Policy], and makes the call itself, on the step's own socket and with the address that it has read. So the
// kernel connects to the address that was checked, even if the step changes its memory meanwhile. After that, only the
// kernel and the step use the socket; no byte passes through the supervisor. Without a supervisor, the kernel refuses
// all these calls.
package egress
