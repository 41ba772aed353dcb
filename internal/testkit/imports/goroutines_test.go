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

// startedElsewhere lists the functions that start a goroutine outside internal/routine. Their argument must be wrapped
// in routine.Safe.
var startedElsewhere = map[string]bool{"time.AfterFunc": true, "context.AfterFunc": true}

// TestEveryGoroutineReportsPanics: a panic in one of our goroutines must not end a command with exit code 2.
func TestEveryGoroutineReportsPanics(t *testing.T) {
	const root = "../../.."
	files := 0
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		inside := strings.TrimPrefix(filepath.ToSlash(path), root+"/")
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && path != root || within(inside, "internal/testkit") ||
			within(inside, "internal/routine") || within(inside, "examples")):
			return fs.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		files++
		positions := token.NewFileSet()
		file, err := parser.ParseFile(positions, path, nil, 0)
		if err != nil {
			return err
		}
		wrong := func(node ast.Node, what string) { t.Errorf("%s: %s", positions.Position(node.Pos()), what) }
		ast.Inspect(file, func(node ast.Node) bool {
			switch node := node.(type) {
			case *ast.GoStmt:
				wrong(node, "use routine.Go")
			case *ast.ImportSpec:
				if node.Path.Value == `"golang.org/x/sync/errgroup"` {
					wrong(node, "use routine.Group")
				}
			case *ast.SelectorExpr:
				// That file uses it only to count running goroutines.
				if qualified(node) == "sync.WaitGroup" && inside != "runner/sandbox/stage/thread.go" {
					wrong(node, "use routine.Group")
				}
			case *ast.CallExpr:
				if startedElsewhere[qualified(node.Fun)] {
					given, ok := node.Args[1].(*ast.CallExpr)
					if !ok || qualified(given.Fun) != "routine.Safe" {
						wrong(node, "wrap its function in routine.Safe")
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil || files < 100 {
		t.Fatalf("%d files, %v", files, err)
	}
}

// qualified returns the text of package.Name, or "".
func qualified(expression ast.Expr) string {
	if selector, ok := expression.(*ast.SelectorExpr); ok {
		if name, ok := selector.X.(*ast.Ident); ok {
			return name.Name + "." + selector.Sel.Name
		}
	}
	return ""
}
