package reference

import (
	"errors"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

var update = flag.Bool("update", false, "write the generated pages anew")

// Check compares the reference in a file with the definitions of app, as [CheckFile] does.
func Check(t *testing.T, file string, app *kong.Application, besides []Variable) {
	t.Helper()
	CheckFile(t, file, Markdown(app, besides))
}

// CheckFile compares a generated file with its expected content, and rewrites it if the test was started with -update.
func CheckFile(t *testing.T, file, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != want {
		t.Errorf("%s is stale: run make docs (%v)", file, err)
	}
}

// Undocumented returns the variables that the Go files in folders look up by name and that besides does not list. It
// ignores tests and packages for tests.
func Undocumented(besides []Variable, folders ...string) (names []string, err error) {
	var documented []string
	for _, variable := range besides {
		documented = append(documented, strings.Fields(variable.Name)...)
	}
	for _, folder := range folders {
		err = errors.Join(err, filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() && strings.HasSuffix(path, "test") {
				return fs.SkipDir
			}
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			for _, name := range lookedUp(file) {
				if !slices.Contains(documented, name) {
					names = append(names, name)
				}
			}
			return nil
		}))
	}
	return names, err
}

// lookedUp returns the names that a file passes to os.Getenv, os.LookupEnv or a function that wraps them, as literals
// or as constants of the file.
func lookedUp(file *ast.File) (names []string) {
	constants := map[string]string{}
	ast.Inspect(file, func(node ast.Node) bool {
		switch n := node.(type) {
		case *ast.ValueSpec:
			for i, name := range n.Names {
				if i < len(n.Values) {
					constants[name.Name] = literal(n.Values[i])
				}
			}
		case *ast.CallExpr:
			if !looksUp(n.Fun) || len(n.Args) != 1 {
				return true
			}
			name := literal(n.Args[0])
			if constant, ok := n.Args[0].(*ast.Ident); ok {
				name = constants[constant.Name]
			}
			if name != "" {
				names = append(names, name)
			}
		}
		return true
	})
	return names
}

func looksUp(function ast.Expr) bool {
	switch f := function.(type) {
	case *ast.SelectorExpr:
		return f.Sel.Name == "Getenv" || f.Sel.Name == "LookupEnv"
	case *ast.Ident:
		return f.Name == "getenv"
	}
	return false
}

// literal returns the value of a string literal, or "" for any other expression.
func literal(expression ast.Expr) string {
	basic, ok := expression.(*ast.BasicLit)
	if !ok || basic.Kind != token.STRING {
		return ""
	}
	value, _ := strconv.Unquote(basic.Value) // the file was parsed successfully
	return value
}
