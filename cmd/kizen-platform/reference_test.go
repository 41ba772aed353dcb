package main

import (
	"io"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/reference"
)

// besides are the variables that stand for no flag.
var besides = []reference.Variable{
	{Name: "KIZEN_SIGNING_KEYS", Help: "The key set itself, PEM or JWK, if --keys is not given."},
}

func TestReferenceIsWhatTheCommandLineSays(t *testing.T) {
	parser, err := new(commandLine).parser(io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	reference.Check(t, "../../docs/reference/kizen-platform.md", parser.Model, besides)
}

func TestReferenceTellsOfEveryVariableThatIsLookedUp(t *testing.T) {
	if undocumented, err := reference.Undocumented(besides, "."); err != nil || len(undocumented) > 0 {
		t.Errorf("the reference does not list %q (%v); add them to besides, and run make docs", undocumented, err)
	}
}
