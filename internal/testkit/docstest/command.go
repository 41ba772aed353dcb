package docstest

import (
	"fmt"
	"io"
	"path"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
)

// Command is one command of a block.
type Command struct {
	Program   string // its name, without a folder
	Arguments []string
	// Background means that the shell does not wait for the command.
	Background bool
}

// Commands returns the commands of a shell script in order. A part that is known only at run time, such as a variable,
// is replaced by "...".
func Commands(script string) ([]Command, error) {
	file, err := syntax.NewParser().Parse(strings.NewReader(script), "")
	if err != nil {
		return nil, err
	}
	var all []Command
	background := map[syntax.Node]bool{}
	syntax.Walk(file, func(node syntax.Node) bool {
		switch n := node.(type) {
		case *syntax.Stmt:
			background[n.Cmd] = n.Background
		case *syntax.CallExpr:
			if len(n.Args) == 0 {
				return true
			}
			var words []string
			for _, word := range n.Args {
				words = append(words, literal(word))
			}
			all = append(all, Command{path.Base(words[0]), words[1:], background[n]})
		}
		return true
	})
	return all, nil
}

// literal returns a word as the program receives it.
func literal(word *syntax.Word) string {
	config := &expand.Config{
		Env:       expand.FuncEnviron(func(string) string { return "..." }),
		CmdSubst:  func(w io.Writer, _ *syntax.CmdSubst) error { _, err := fmt.Fprint(w, "..."); return err },
		ProcSubst: func(*syntax.ProcSubst) (string, error) { return "/dev/null", nil },
	}
	text, err := expand.Literal(config, word)
	if err != nil {
		return "..."
	}
	return text
}
