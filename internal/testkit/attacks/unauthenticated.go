package attacks

import "strings"

// UnauthenticatedInput is input that a client without a password sends to a shared Redis.
type UnauthenticatedInput struct{ Name, Sends string }

// UnauthenticatedInputs returns all such inputs. The first two would crash an unprotected miniredis, and its process
// with it.
func UnauthenticatedInputs() []UnauthenticatedInput { return unauthenticatedInputs }

var unauthenticatedInputs = []UnauthenticatedInput{
	{"a string of 2^63 bytes", "*1\r\n$9223372036854775000\r\n"},
	{"an empty array", "*0\r\n"},
	{"a negative array", "*-1\r\n"},
	{"an array of 2^31 strings", "*2147483648\r\n"},
	{"a negative string", "*1\r\n$-1\r\n"},
	{"no number", "*x\r\n"},
	{"no line end", "*1\n$4\nPING\n"},
	{"a simple string", "+PING\r\n"},
	{"an inline command", "PING\r\n"},
	{"a string with the wrong terminator", "*1\r\n$4\r\nPINGxx"},
	{"a long line", "*" + strings.Repeat("1", 1<<20)},
	{"a string that is too big", "*2\r\n$4\r\nECHO\r\n$1048576\r\n" + strings.Repeat("x", 1<<20)},
}
