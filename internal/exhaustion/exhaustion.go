// Package exhaustion recognises errors that mean that this machine or process has run out of something for the moment.
package exhaustion

import (
	"errors"
	"syscall"
)

// Is reports whether err means that this machine or process has run out of files or memory.
func Is(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
}
