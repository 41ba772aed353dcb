package exit

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestCode(t *testing.T) {
	for want, errs := range map[int][]error{
		OK:      {nil},
		Nothing: {Nothingf("no key %q", "k"), fmt.Errorf("revoke: %w", Nothingf("no key"))},
		Usage: {Usagef("--slots %d", -1), WrongUsage(io.EOF), errors.Join(io.EOF, Usagef("--slots")),
			WrongUsage(Nothingf("no key"))},
		Failed: {io.EOF, errors.Join(io.EOF, io.ErrUnexpectedEOF)},
	} {
		for _, err := range errs {
			if got := Code(err); got != want {
				t.Errorf("%v: exit code %d, want %d", err, got, want)
			}
		}
	}
	if err := WrongUsage(io.EOF); !errors.Is(err, io.EOF) || err.Error() != io.EOF.Error() {
		t.Errorf("the error itself is lost: %v", err)
	}
}
