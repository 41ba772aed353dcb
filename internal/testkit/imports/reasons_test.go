package imports

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// endToEnd lists the folders whose tests start whole programs. These tests are slow, so each says what it is for.
var endToEnd = []string{"cmd/kizen-sidecar", "cmd/kizen-platform", "internal/e2e"}

// withoutReason returns the tests of a file that have no comment "NAME: …" or "NAME verb …", and the number of all its
// tests.
func withoutReason(file *ast.File) (names []string, all int) {
	for _, declaration := range file.Decls {
		test, ok := declaration.(*ast.FuncDecl)
		if !ok || test.Recv != nil || !strings.HasPrefix(test.Name.Name, "Test") ||
			test.Name.Name == "TestMain" {
			continue
		}
		all++
		said, found := strings.CutPrefix(test.Doc.Text(), test.Name.Name)
		if !found || len(strings.Fields(said)) < 4 || !strings.ContainsAny(said[:1], ": ") {
			names = append(names, test.Name.Name)
		}
	}
	return names, all
}

// TestEveryEndToEndTestHasAReason: the comment of each end-to-end test begins with its name and says more than that.
func TestEveryEndToEndTestHasAReason(t *testing.T) {
	for _, folder := range endToEnd {
		total := 0
		err := filepath.WalkDir("../../../"+folder, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
			if err != nil {
				return err
			}
			names, all := withoutReason(file)
			for _, name := range names {
				t.Errorf("%s: write above %s a comment that begins with its name, says what must hold, "+
					"and names the parts that meet in it", path, name)
			}
			total += all
			return nil
		})
		if err != nil || total == 0 {
			t.Errorf("%s has %d tests (%v)", folder, total, err)
		}
	}
}

// TestATestWithoutAReasonIsFound: a missing comment, one about another name and one without a reason are found.
func TestATestWithoutAReasonIsFound(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "x_test.go", `package x
func TestNone() {}
// The built binary does something with a real Redis.
func TestUnnamed() {}
// TestOthers: the name of another test is no reason.
func TestOther() {}
// TestEmpty: works.
func TestEmpty() {}
// TestGood: the binary and a real Redis agree.
func TestGood() {}
// TestVerb gives each flag a negative value.
func TestVerb() {}
func TestMain() {}
func helper() {}
`, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	names, all := withoutReason(file)
	if got := strings.Join(names, " "); got != "TestNone TestUnnamed TestOther TestEmpty" || all != 6 {
		t.Errorf("found %q of %d", got, all)
	}
}
