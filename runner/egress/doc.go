// Package egress decides on every connection of a step. A seccomp filter, see [Filter], stops the system calls that
// can reach another process or machine and notifies a [Supervisor] of them. The supervisor reads the address once,
// asks a [Policy], and makes the call itself, on the step's own socket and with the address that it has read: what was
// checked is what is dialled, whatever the step changes meanwhile. From then on the socket belongs to the kernel and
// the step; no byte passes through the supervisor. When the supervisor has gone, the kernel refuses all these calls.
package egress
