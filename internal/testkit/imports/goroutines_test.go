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

// startedElsewhere are the ways to have a function run on another goroutine that internal/routine does not know of: the call of one is
// given routine.Safe's result.
var startedElsewhere = map[string]bool{"time.AfterFunc": true, "context.AfterFunc": true}

// TestEveryGoroutineEndsTheProcessInThePromisedWay: a goroutine of ours that panics must not end a command with code 2.
func TestEveryGoroutineEndsTheProcessInThePromisedWay(t *testing.T) {
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
				if qualified(node) == "sync.WaitGroup" && inside != "runner/sandbox/stage/thread.go" { // which counts what is up
					wrong(node, "use routine.Group")
				}
			case *ast.CallExpr:
				if startedElsewhere[qualified(node.Fun)] {
					given, ok := node.Args[1].(*ast.CallExpr)
					if !ok || qualified(given.Fun) != "routine.Safe" {
						wrong(node, "give it routine.Safe of its function")
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

// qualified is the text of package.Name, or "".
func qualified(expression ast.Expr) string {
	if selector, ok := expression.(*ast.SelectorExpr); ok {
		if name, ok := selector.X.(*ast.Ident); ok {
			return name.Name + "." + selector.Sel.Name
		}
	}
	return ""
}
