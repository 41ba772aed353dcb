package main

import (
	"io"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/reference"
)

// withoutFlag are the environment variables without a flag.
var withoutFlag = []reference.Variable{
	{Name: "KIZEN_SIGNING_KEYS", Help: "The key set itself, PEM or JWK, if --keys is not given."},
}

// TestReferenceIsUpToDate: the reference page of kizen-platform lists the flags that its parser has.
func TestReferenceIsUpToDate(t *testing.T) {
	parser, err := new(commandLine).parser(io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	reference.Check(t, "../../docs/reference/kizen-platform.md", parser.Model, withoutFlag)
}

// TestReferenceListsEveryVariableThatIsLookedUp: the reference page lists the environment variables that the source
// reads without a flag.
func TestReferenceListsEveryVariableThatIsLookedUp(t *testing.T) {
	if undocumented, err := reference.Undocumented(withoutFlag, "."); err != nil || len(undocumented) > 0 {
		t.Errorf("the reference does not list %q (%v); add them to withoutFlag, and run make docs", undocumented, err)
	}
}
