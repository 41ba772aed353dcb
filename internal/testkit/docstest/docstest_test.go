package docstest

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func mustParse(t *testing.T, text string) Page {
	t.Helper()
	page, err := parse("page.md", strings.ReplaceAll(text, "'''", "```"))
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func TestInfoStringsOfBlocksAreParsed(t *testing.T) {
	page := mustParse(t, `Text with `+"`kizen-sidecar run`"+`.

'''sh exit=3
false
'''
prints
'''text output
nothing
'''
- in a list
  '''sh norun=docker
  docker ps
    indented
  '''
'''yaml file=a/b.yaml
a: 1
'''
'''go policy/account.go
x
'''
`)
	if len(page.Blocks) != 4 || len(page.Spans) != 1 || page.Spans[0] != (Span{1, "kizen-sidecar run"}) {
		t.Fatalf("%+v", page)
	}
	first, second, third := page.Blocks[0], page.Blocks[1], page.Blocks[2]
	if !first.Run() || first.Exit != 3 || first.Line != 4 || *first.Output != "nothing\n" {
		t.Errorf("%+v", first)
	}
	if second.Run() || second.NoRun != "docker" || second.Text != "docker ps\n  indented\n" {
		t.Errorf("%+v", second)
	}
	if third.File != "a/b.yaml" || third.Text != "a: 1\n" {
		t.Errorf("%+v", third)
	}
}

func TestInvalidBlocksAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"'''\nls\n'''":                      "page.md:2: a block has no type",
		"'''sh exit=never\nls\n'''":         "invalid syntax",
		"'''sh skip=true\nls\n'''":          `unknown option "skip=true"`,
		"'''text norun=x\nls\n'''":          `unknown option "norun=x"`,
		"'''text output\nx\n'''":            "output without a command",
		"'''sh norun=a\nls\n":               "a block does not end",
		"'''yaml\n'''\n'''text output\n'''": "output without a command",
	} {
		text = strings.ReplaceAll(text, "'''", "```")
		if _, err := parse("page.md", text); err == nil || !strings.Contains(err.Error(), want) &&
			!strings.Contains(err.Error(), strings.TrimPrefix(want, "page.md:2: ")) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestOutputIsComparedExceptForChangingParts(t *testing.T) {
	for _, c := range []struct {
		shown, got string
		same       bool
	}{
		{"a\nb\n", "a\nb\n", true},
		{"a\nb\n", "a\n", false},
		{"a\n", "a\nb\n", false},
		{"a ... c\n", "a bb c\n", true},
		{"a ... c\n", "a\nc\n", false},
		{"...\nlast\n", "one\ntwo\nlast\n", true},
		{"...\nlast\n", "last\n", true},
		{"...\nlast\n", "one\ntwo\n", false},
		{"took 12.5 ms   at 2026-01-01T00:00:00Z\n", "took 3 ms at 2026-11-25T14:00:00.123Z\n", true},
		{"took 12.5 ms\n", "took 2.28 s\n", true}, // on a busy machine
		{"id 00000000-0000-4000-8000-00000000b001\n", "id 6f9619ff-8b86-4011-b42d-00c04fc964ff\n", true},
		{"a.b\n", "axb\n", false},
		{"...\n", "", true},
	} {
		if shows(c.shown, c.got) != c.same {
			t.Errorf("%q for %q: same is not %v", c.shown, c.got, c.same)
		}
	}
}

func TestEveryCommandOfAScriptIsFound(t *testing.T) {
	got, err := Commands("A=1 bin/x run \"a b\" $V --k=$(y sub) | z 'q' &\nif u; then x two; fi\n")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, command := range got {
		lines = append(lines, strings.Join(append([]string{command.Program}, command.Arguments...), " "))
	}
	want := "x run a b ... --k=...|y sub|z q|u|x two"
	if strings.Join(lines, "|") != want {
		t.Errorf("%q, want %q", lines, want)
	}
}

func TestOnlyTheCommandBeforeAnAmpersandIsInTheBackground(t *testing.T) {
	got, err := Commands("kizen-platform --listen x &\nkizen-sidecar run\nredis-server &\nsleep 1 &\n")
	if err != nil || len(got) != 4 || !got[0].Background || got[1].Background || !got[2].Background {
		t.Errorf("%+v (%v)", got, err)
	}
}

// runPage runs a page in the same way as the documentation test.
func runPage(t *testing.T, text string) error {
	t.Helper()
	stage := Stage{Environment: []string{"PATH=" + os.Getenv("PATH")}, Patience: time.Second}
	err := stage.Run(t.Context(), mustParse(t, text), t.TempDir())
	if errors.Is(err, ErrNoNetwork) && os.Getenv("KIZEN_TEST_REQUIRE") == "" {
		t.Skipf("SKIPPED: %v", err)
	}
	return err
}

func TestAPageRunsInOneShellAndItsOwnNetwork(t *testing.T) {
	for range 2 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			if err := runPage(t, `
'''text file=dir/greeting
hello
'''
'''sh
where=dir
python3 -m http.server --bind 127.0.0.1 8080 &
server=$!
'''
'''sh
until curl -s http://127.0.0.1:8080/$where/greeting; do :; done
'''
'''text output
hello
'''
'''sh exit=4
kill $server
wait $server
(exit 4)
'''
'''sh
echo "still here"
'''
'''text output
still ...
'''
`); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestADifferenceFromThePageIsAnError(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"a command fails": {"'''sh\necho one; cat /nowhere\necho two\n'''",
			"page.md:2: a command failed\none\ncat: /nowhere"},
		"one of a pipe fails": {"'''sh\nfalse | cat\n'''", "a command failed"},
		"another status":      {"'''sh exit=2\n(exit 1)\n'''", "the status is 1, not 2"},
		"other output": {"'''sh\necho one\n'''\n'''text output\ntwo\n'''",
			"it does not print what the page shows, but\none"},
		"a server that exits":      {"'''sh\nkizen-nothing &\n'''", "a background command has ended"},
		"a process is left":        {"'''sh\nsetsid sh -c 'echo up; exec sleep 300' &\ndisown\nuntil grep -q up .blocks/1.out; do :; done\n'''", `left running: ["sleep 300 "]`},
		"a job that does not stop": {"'''sh\nbash -c 'trap \"exit 7\" TERM; echo up; while :; do read -rt 1 <> <(:); done' &\nuntil grep -q up .blocks/1.out; do :; done\n'''", " 7\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := runPage(t, c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
