// Package exit holds the exit codes of the commands, and the errors that carry one.
package exit

import (
	"errors"
	"fmt"
)

// The exit codes that scripts may rely on.
const (
	OK         = 0 // the command did what it was asked
	StepFailed = 1 // the step raised, ran out of time or memory, or was killed
	Nothing    = 1 // a management command found nothing to act on
	Usage      = 2 // wrong usage, or a refused request
	Failed     = 3 // the command could not do its own work
)

// Error is an error with the exit code of its command.
type Error struct {
	Code int
	Err  error
}

// Error implements error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the error without its code.
func (e *Error) Unwrap() error { return e.Err }

// WrongUsage marks err as a mistake of the caller.
func WrongUsage(err error) error { return &Error{Usage, err} }

// Usagef returns a mistake of the caller with a formatted message.
func Usagef(format string, arguments ...any) error {
	return WrongUsage(fmt.Errorf(format, arguments...))
}

// Nothingf returns an error with a formatted message: a command found nothing to act on.
func Nothingf(format string, arguments ...any) error {
	return &Error{Nothing, fmt.Errorf(format, arguments...)}
}

// Code returns the exit code for err: that of the outermost [Error] in it, [OK] for nil, and [Failed] for any other.
func Code(err error) int {
	if err == nil {
		return OK
	}
	if coded, ok := errors.AsType[*Error](err); ok {
		return coded.Code
	}
	return Failed
}
