package outcomes

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// declared reads the constants of type Outcome from the source.
func declared(t *testing.T) (found []Outcome) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "outcomes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Outcome" {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, Outcome(text))
		}
		return true
	})
	return found
}

func TestEveryOutcomeIsInTheTableOnce(t *testing.T) {
	if all := All(); !slices.Equal(all, declared(t)) {
		t.Errorf("the table has %v, the constants are %v", all, declared(t))
	}
}

func TestEveryOutcomeSaysWhatItMeans(t *testing.T) {
	for _, o := range append(All(), "of_another_version") {
		if !strings.HasSuffix(o.Sentence(), ".") || o.Status() < 200 {
			t.Errorf("%s: %d, %q", o, o.Status(), o.Sentence())
		}
		if succeeded := o == OK; succeeded == o.Failed() || succeeded != (o.ExitCode() == 0) ||
			succeeded != (o.Status() == 200) {
			t.Errorf("%s: failed %t, exit code %d, status %d", o, o.Failed(), o.ExitCode(), o.Status())
		}
	}
}

// TestOnlyNotStartedIsRetryable: the effects of a step that has started cannot be undone.
func TestOnlyNotStartedIsRetryable(t *testing.T) {
	for _, o := range append(All(), "of_another_version") {
		if o.Retryable() != (o == NotStarted) {
			t.Errorf("%s: %t", o, o.Retryable())
		}
	}
}
