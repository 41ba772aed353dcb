package docstest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../../.."

// source is a file and its declarations, in the forms "Name", "Type.Method" and "Struct.Field".
type source struct {
	path  string // relative to the project's folder
	names []string
}

// sources returns the files of the tree by qualifier: the package in Go, the module in Python and JavaScript.
func sources(t *testing.T) map[string][]source {
	t.Helper()
	all := map[string][]source{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if path != root && strings.HasPrefix(entry.Name(), ".") {
				return filepath.SkipDir
			}
			return nil
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		module := strings.TrimSuffix(entry.Name(), filepath.Ext(path))
		var names []string
		switch extension := filepath.Ext(path); {
		case strings.HasSuffix(path, "_test.go"):
			return nil
		case extension == ".go":
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			module, names = file.Name.Name, declaredInGo(file)
		case extension == ".py", extension == ".js":
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			names = declaredInScript(string(text))
		default:
			return nil
		}
		all[module] = append(all[module], source{relative, names})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func declaredInGo(file *ast.File) (names []string) {
	for _, declaration := range file.Decls {
		switch d := declaration.(type) {
		case *ast.FuncDecl:
			name := d.Name.Name
			if d.Recv != nil {
				name = receiver(d.Recv.List[0].Type) + "." + name
			}
			names = append(names, name)
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.ValueSpec:
					for _, name := range s.Names {
						names = append(names, name.Name)
					}
				case *ast.TypeSpec:
					names = append(names, s.Name.Name)
					if structure, ok := s.Type.(*ast.StructType); ok {
						for _, field := range structure.Fields.List {
							for _, name := range field.Names {
								names = append(names, s.Name.Name+"."+name.Name)
							}
						}
					}
				}
			}
		}
	}
	return names
}

// receiver returns the name of a method's receiver type.
func receiver(expression ast.Expr) string {
	switch e := expression.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

var scriptName = regexp.MustCompile(`(?m)^( *)(?:export )?(class|def|function|const) (\w+)`)

func declaredInScript(text string) (names []string) {
	class := ""
	for _, match := range scriptName.FindAllStringSubmatch(text, -1) {
		name := match[3]
		switch {
		case match[1] == "" && match[2] == "class":
			class = name
		case match[1] == "":
			class = ""
		case class != "":
			name = class + "." + name
		}
		names = append(names, name)
	}
	return names
}

var (
	pathSpan     = regexp.MustCompile(`^[\w.*-]+(/[\w.*-]+)+$`)
	nameSpan     = regexp.MustCompile(`^[a-z_]+(\.[A-Za-z_]\w*){1,2}$`)
	startOfBlock = regexp.MustCompile(`^(\s*(\d+\.|-) |\||$)`)
)

// missing returns the names in a page's text that do not exist. If a list item, a table row or a paragraph names
// files, the identifiers in it must be declared in those files.
func missing(text string, known map[string][]source) (problems []string) {
	var names, paths []string
	check := func() {
		for _, name := range names {
			module, rest, _ := strings.Cut(name, ".")
			var at []string
			for _, file := range known[module] {
				if slices.Contains(file.names, rest) {
					at = append(at, file.path)
				}
			}
			named := func(file string) bool {
				return slices.ContainsFunc(paths, func(path string) bool { return file == path || filepath.Dir(file) == path })
			}
			switch {
			case len(at) == 0:
				problems = append(problems, fmt.Sprintf("%s does not exist", name))
			case len(paths) > 0 && !slices.ContainsFunc(at, named):
				problems = append(problems, fmt.Sprintf("%s is in %s, not in %s", name, strings.Join(at, ", "),
					strings.Join(paths, ", ")))
			}
		}
		names, paths = nil, nil
	}
	inBlock := false
	for line := range strings.SplitSeq(text, "\n") {
		if fence.MatchString(line) {
			inBlock = !inBlock
		}
		if inBlock {
			continue
		}
		if startOfBlock.MatchString(line) {
			check()
		}
		for _, match := range span.FindAllStringSubmatch(line, -1) {
			switch code := match[1]; {
			case pathSpan.MatchString(code):
				if found, err := filepath.Glob(filepath.Join(root, code)); err != nil || len(found) == 0 {
					problems = append(problems, fmt.Sprintf("%s does not exist", code))
				}
				paths = append(paths, code)
			case nameSpan.MatchString(code):
				names = append(names, code)
			}
		}
	}
	check()
	return problems
}

func TestEveryNameOnTheArchitecturePageExists(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range missing(string(text), sources(t)) {
		t.Errorf("docs/architecture.md: %s", problem)
	}
}

func TestNamesThatDoNotExistAreFound(t *testing.T) {
	known := sources(t)
	for text, want := range map[string]string{
		"`docstest.Read` in `internal/testkit/docstest/page.go`":                       "",
		"`docstest.Block.Run` and `docstest.Page.Name` in `internal/testkit/docstest`": "",
		"`job.Job.run` in `runner/python/kizen_runtime/job.py`":                        "",
		"`docstest.Reed`":    "docstest.Reed does not exist",
		"`job.Job.walk`":     "job.Job.walk does not exist",
		"`nothing.Read`":     "nothing.Read does not exist",
		"`internal/nothing`": "internal/nothing does not exist",
		"`docstest.Read` in `internal/testkit/docstest/shell.go`":                          "is in internal/testkit/docstest/page.go, not in",
		"| `docstest.Read` |\n| `internal/testkit/docstest/shell.go` |":                    "",
		"1. `docstest.Read`, as\n   `internal/testkit/docstest/shell.go` has it":           "is in internal/testkit/docstest/page.go, not in",
		"```text\n`docstest.Reed`\n```\n\nand `kizen-sidecar run`, `--flag`, `{\"a\": 1}`": "",
	} {
		problems := strings.Join(missing(text, known), "\n")
		if (want == "") != (problems == "") || !strings.Contains(problems, want) {
			t.Errorf("%q: %q, want %q", text, problems, want)
		}
	}
}
