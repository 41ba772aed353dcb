package main

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/kizen/kizen-sidecar/internal/testkit/docstest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// documentation returns every page, by its path in the project, except THIRD_PARTY.md, which contains the licences of
// other projects.
func documentation(t *testing.T) (pages []docstest.Page) {
	t.Helper()
	for _, pattern := range []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md",
		"docs/*/*.md"} {
		files, err := filepath.Glob(filepath.Join(projectRoot, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("no pages are %s (%v)", pattern, err)
		}
		for _, file := range files {
			page, err := docstest.Read(file)
			if err != nil {
				t.Fatal(err)
			}
			page.Name = strings.TrimPrefix(file, projectRoot+"/")
			pages = append(pages, page)
		}
	}
	return pages
}

// TestEveryPageDoesWhatItSays runs the commands of each page, in order, in a folder with bin and examples, and
// compares their output with the page.
func TestEveryPageDoesWhatItSays(t *testing.T) {
	for _, program := range []string{"bash", "curl", "openssl", "redis-server"} {
		requireProgram(t, program)
	}
	python := pythonWithRequests(t)
	for _, page := range documentation(t) {
		t.Run(page.Name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for link, target := range map[string]string{
				"bin": sidecartest.Program(""), "examples": filepath.Join(projectRoot, "examples"),
			} {
				symlink(t, target, filepath.Join(dir, link))
			}
			environment := []string{
				"PATH=" + strings.Join([]string{dir + "/bin", filepath.Dir(python), os.Getenv("PATH")}, ":"),
				"HOME=" + os.Getenv("HOME"), "TMPDIR=" + filepath.Join(dir, "tmp"),
			}
			if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o755); err != nil {
				t.Fatal(err)
			}
			stage := docstest.Stage{Environment: environment, Patience: 30 * time.Second}
			err := stage.Run(t.Context(), page, dir)
			if errors.Is(err, docstest.ErrNoNetwork) && os.Getenv("KIZEN_TEST_REQUIRE") == "" {
				t.Skipf("SKIPPED: %v", err)
			}
			if err != nil {
				t.Error(err)
			}
			if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) > 0 {
				t.Errorf("left in the temporary folder: %v (%v)", left, err)
			}
		})
	}
}

func symlink(t *testing.T, target, link string) {
	t.Helper()
	absolute, err := filepath.Abs(target)
	if err == nil {
		err = os.Symlink(absolute, link)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// reasons are the reasons why a test may not run the commands of a block, with the programs that each covers.
var reasons = map[string][]string{
	"build":   {"make", "go", "run", "python"}, // they build or test this project, which a test must not
	"docker":  {"docker"},                      // a Docker engine
	"cluster": {"kubectl"},                     // a Kubernetes cluster
	"example": nil,                             // of a command's own help, in the reference
}

// TestCommandsThatAreNotRunNameOnlyWhatExists: each block that a page excludes from running has a valid reason, and its
// commands, flags and files exist. The pages are compared with the built binaries.
func TestCommandsThatAreNotRunNameOnlyWhatExists(t *testing.T) {
	used := map[string]bool{}
	for _, page := range documentation(t) {
		for _, block := range page.Blocks {
			if block.NoRun == "" {
				continue
			}
			programs, known := reasons[block.NoRun]
			if !known || (block.NoRun == "example") != strings.HasPrefix(page.Name, "docs/reference/") {
				t.Errorf("%s:%d: %q is not a valid reason", page.Name, block.Line, block.NoRun)
			}
			used[block.NoRun] = true
			commands, err := docstest.Commands(block.Text)
			if err != nil {
				t.Errorf("%s:%d: %v", page.Name, block.Line, err)
			}
			for _, command := range commands {
				ours := strings.HasPrefix(command.Program, "kizen-")
				if !ours && block.NoRun != "example" && !slices.Contains(programs, command.Program) {
					t.Errorf("%s:%d: %s can be run", page.Name, block.Line, command.Program)
				}
				if err := checkCommand(t, command); err != nil {
					t.Errorf("%s:%d: %s %s: %v", page.Name, block.Line, command.Program, strings.Join(command.Arguments, " "), err)
				}
			}
		}
	}
	for reason := range reasons {
		if !used[reason] {
			t.Errorf("no block has the reason %q", reason)
		}
	}
}

// checkCommand returns an error if a command names something that does not exist.
func checkCommand(t *testing.T, command docstest.Command) error {
	switch command.Program {
	case "kizen-sidecar":
		if slices.Contains(command.Arguments, "--help") {
			return nil
		}
		arguments := slices.Clone(command.Arguments)
		if at := slices.Index(arguments, "--config"); at >= 0 {
			arguments = slices.Delete(arguments, at, at+2) // the parser would read the file
		}
		_, err := grammar(t).Parse(arguments)
		return err
	case "kizen-platform":
		sidecartest.RequireFlags(t, append([]string{command.Program}, command.Arguments...))
	case "make":
		return checkTargets(t, command.Arguments)
	case "go":
		return checkGo(t, command.Arguments)
	case "kubectl", "docker":
		return checkFiles(command.Arguments)
	}
	return nil
}

// checkTargets finds arguments of make that are not targets.
func checkTargets(t *testing.T, arguments []string) error {
	makefile := readText(t, "Makefile")
	for _, target := range arguments {
		if !strings.Contains(target, "=") && !strings.Contains(makefile, "\n"+target+": ") {
			return errors.New("no such target")
		}
	}
	return nil
}

// checkFiles finds arguments that look like files but do not exist.
func checkFiles(arguments []string) error {
	for _, argument := range arguments {
		if ext := path.Ext(argument); ext == ".yaml" || ext == ".json" {
			if _, err := os.Stat(filepath.Join(projectRoot, argument)); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkGo finds packages that do not exist, and test patterns that match no test in them.
func checkGo(t *testing.T, arguments []string) error {
	module := ""
	if at := slices.Index(arguments, "-C"); at >= 0 { // another module, in a folder of this one
		module = arguments[at+1]
	}
	var names []string
	for _, argument := range arguments {
		if folder, ok := strings.CutPrefix(argument, "./"); ok {
			names = append(names, testsIn(t, path.Join(module, folder))...)
		}
	}
	for i, argument := range arguments[:max(0, len(arguments)-1)] {
		pattern := strings.Trim(arguments[i+1], "'")
		if !slices.Contains([]string{"-run", "-bench", "-fuzz"}, argument) || pattern == "^$" {
			continue
		}
		matches, err := regexp.Compile(pattern)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(names, matches.MatchString) {
			return errors.New("no test matches " + pattern)
		}
	}
	return nil
}

// testsIn returns the names of the tests in a folder and, if it ends in "...", below it.
func testsIn(t *testing.T, folder string) (names []string) {
	t.Helper()
	root, all := strings.CutSuffix(folder, "...")
	found := false
	err := filepath.WalkDir(filepath.Join(projectRoot, root), func(file string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && !all && file != filepath.Join(projectRoot, root) {
			return filepath.SkipDir
		}
		found = found || strings.HasSuffix(file, ".go")
		if !strings.HasSuffix(file, "_test.go") {
			return nil
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, declaration := range tree.Decls {
			if function, ok := declaration.(*ast.FuncDecl); ok {
				names = append(names, function.Name.Name)
			}
		}
		return nil
	})
	if err != nil || !found {
		t.Errorf("%s contains no package (%v)", folder, err)
	}
	return names
}

// TestNoCommandOfThePagesIsUnchecked finds commands outside the blocks that are run or checked, and flags and
// variables in the text that do not exist.
func TestNoCommandOfThePagesIsUnchecked(t *testing.T) {
	known := grammar(t).Model
	flags, variables := map[string]bool{}, readText(t, "docs/reference/kizen-sidecar.md")+readText(t,
		"docs/reference/kizen-platform.md")
	for _, flag := range regexp.MustCompile("`--[a-z-]+").FindAllString(variables, -1) {
		flags[strings.Trim(flag, "`")] = true
	}
	command := regexp.MustCompile(`(?m)^ *\$? ?(bin/)?kizen-(sidecar|platform)( |$)`)
	flag, variable := regexp.MustCompile(`(^|\s)--[a-z][a-z-]+`), regexp.MustCompile(`\bKIZEN_[A-Z_]+[A-Z]\b`)
	for _, page := range documentation(t) {
		for _, block := range page.Blocks {
			if block.File != "" && !strings.Contains(page.Prose, "`"+block.File+"`") {
				t.Errorf("%s:%d: the text does not say that this goes into %s", page.Name, block.Line, block.File)
			}
			if block.Language != "sh" && command.MatchString(block.Text) {
				t.Errorf("%s:%d: commands of ours in a block of %s; write ```sh", page.Name, block.Line, block.Language)
			}
		}
		if indented := regexp.MustCompile(`(?m)^( {4,}|\t)\S.*$`).FindString(page.Prose); indented != "" {
			t.Errorf("%s: a block without marks: %q; write ```sh or ```text around it", page.Name, indented)
		}
		for _, span := range page.Spans {
			for _, name := range flag.FindAllString(span.Text, -1) {
				if name = strings.TrimSpace(name); !flags[name] && !foreign[name] {
					t.Errorf("%s:%d: unknown flag %s", page.Name, span.Line, name)
				}
			}
			for _, name := range variable.FindAllString(span.Text, -1) {
				if !strings.Contains(variables, "`"+name+"`") && !foreign[name] {
					t.Errorf("%s:%d: unknown variable %s", page.Name, span.Line, name)
				}
			}
			words := strings.Fields(span.Text)
			if len(words) > 1 && words[0] == "kizen-sidecar" && !strings.HasPrefix(words[1], "-") &&
				!slices.ContainsFunc(known.Children, func(n *kong.Node) bool { return n.Name == words[1] }) {
				t.Errorf("%s:%d: unknown command %s", page.Name, span.Line, words[1])
			}
		}
	}
}

// foreign are the flags and variables in pages that none of our commands has.
var foreign = map[string]bool{"--help": true, "KIZEN_TEST_REQUIRE": true, "KIZEN_TEST_BIN": true}

// TestFilesThatThePagesNameExist: each path in the pages leads to a file of this repository.
func TestFilesThatThePagesNameExist(t *testing.T) {
	ours := regexp.MustCompile(`^(client|cmd|docs|examples|internal|minter|policy|proxy|runner|telemetry|\.ci)/[A-Za-z0-9_.*/-]*$`)
	for _, page := range documentation(t) {
		for _, span := range page.Spans {
			if !ours.MatchString(span.Text) {
				continue
			}
			if found, err := filepath.Glob(filepath.Join(projectRoot, span.Text)); err != nil || len(found) == 0 {
				t.Errorf("%s:%d: %s does not exist (%v)", page.Name, span.Line, span.Text, err)
			}
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#\s]*)(#[^)\s]*)?\)`)

// TestLinksOfThePagesLeadSomewhere: each link between pages leads to an existing page and heading, and README.md links
// every page.
func TestLinksOfThePagesLeadSomewhere(t *testing.T) {
	headings := regexp.MustCompile(`(?m)^#+ (.*)$`)
	anchors := func(page string) (found []string) {
		for _, heading := range headings.FindAllStringSubmatch(readText(t, page), -1) {
			plain := regexp.MustCompile("[^a-z0-9 _-]").ReplaceAllString(strings.ToLower(heading[1]), "")
			found = append(found, "#"+strings.ReplaceAll(plain, " ", "-"))
		}
		return found
	}
	linked := map[string]bool{}
	for _, page := range documentation(t) {
		for _, match := range link.FindAllStringSubmatch(readText(t, page.Name), -1) {
			target := page.Name
			if strings.Contains(match[1], "://") {
				continue
			}
			if match[1] != "" {
				target = path.Join(path.Dir(page.Name), match[1])
			}
			if _, err := os.Stat(filepath.Join(projectRoot, target)); err != nil {
				t.Errorf("%s links %s: %v", page.Name, match[0], err)
				continue
			}
			if match[2] != "" && !slices.Contains(anchors(target), match[2]) {
				t.Errorf("%s links %s, but that page has no such heading", page.Name, match[0])
			}
			if page.Name == "README.md" {
				linked[target] = true
			}
		}
	}
	for _, page := range documentation(t) {
		if page.Name != "README.md" && !linked[page.Name] {
			t.Errorf("README.md does not link %s", page.Name)
		}
	}
}
