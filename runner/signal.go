package runner

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// signalName returns "SIGKILL" for 9.
func signalName(signal syscall.Signal) string {
	if name := unix.SignalName(signal); name != "" {
		return name
	}
	return signal.String()
}
