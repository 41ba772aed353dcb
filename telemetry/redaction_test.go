package telemetry

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

// redaction is testdata/redaction.json, which also tests kizen_runtime.
type redaction struct {
	Mark  string // the text that replaces a secret
	Texts []redactionCase
	// Names are names of JSON fields, of methods and of classes.
	Names []redactionCase
	// Fields and Parameters say which names mark a credential; Python uses only Fields.
	Fields, Parameters map[string]bool
}

type redactionCase struct {
	Secrets    []string
	Text, Want string
}

func readRedaction(t testing.TB) (r redaction) {
	t.Helper()
	data, err := os.ReadFile("testdata/redaction.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &r); err != nil || len(r.Texts) == 0 || len(r.Names) == 0 || len(r.Fields) == 0 ||
		len(r.Parameters) == 0 {
		t.Fatalf("testdata/redaction.json: %v", err)
	}
	return r
}

func TestSecretsAreMaskedAsInPython(t *testing.T) {
	corpus := readRedaction(t)
	if corpus.Mark != redacted.Mark {
		t.Errorf("the mark is %q, in Python %q", redacted.Mark, corpus.Mark)
	}
	for name, mask := range map[string]func(*Mask, string) string{"text": (*Mask).Text, "name": (*Mask).Name} {
		cases := map[string][]redactionCase{"text": corpus.Texts, "name": corpus.Names}[name]
		for _, c := range cases {
			m := NewMask(c.Secrets...)
			if got := mask(m, c.Text); got != c.Want {
				t.Errorf("%s %q without %q: %q, want %q", name, c.Text, c.Secrets, got, c.Want)
			} else if again := mask(m, got); again != got {
				t.Errorf("%s %q becomes %q the second time", name, got, again)
			}
		}
	}
}

func TestNamesOfCredentialsAreTheSameAsInPython(t *testing.T) {
	corpus := readRedaction(t)
	for name, want := range corpus.Fields {
		if got := redacted.Field(name); got != want {
			t.Errorf("field %q: %v, want %v", name, got, want)
		}
	}
	for name, want := range corpus.Parameters {
		if got := redacted.Parameter(name); got != want {
			t.Errorf("parameter %q: %v, want %v", name, got, want)
		}
	}
}
