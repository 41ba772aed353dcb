package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/exit"
)

// policySuggestCommand is kizen-sidecar policy suggest.
type policySuggestCommand struct {
	AuditFile string `arg:"" help:"File that --audit-file has written with --policy-mode=learn." placeholder:"FILE"`
}

// Help is the long text of kizen-sidecar policy suggest --help.
func (policySuggestCommand) Help() string {
	return `Prints one rule for each destination that only --policy-mode=learn permitted, ready to review. The exit code is 1 if there is none.

Examples:
  kizen-sidecar policy suggest audit.jsonl
  kizen-sidecar policy suggest audit.jsonl > rules/learned.cedar`
}

// learned is a destination of an account type that needs a rule.
type learned struct {
	Type      string `json:"account_type"`
	Host      string `json:"host"`
	Address   string `json:"address"`
	Port      int    `json:"port"`
	Transport string `json:"transport"`
}

// Run is called by kong.
func (c *policySuggestCommand) Run(app *app) error {
	data, err := readFile("audit file", c.AuditFile)
	if err != nil {
		return err
	}
	counts := map[learned]int{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, len(data)+1)
	for number := 1; lines.Scan(); number++ {
		var line struct {
			learned
			Kind   string `json:"kind"`
			Policy string `json:"policy"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return exit.Usagef("audit file %q: line %d is not a JSON object", c.AuditFile, number)
		}
		if line.Kind != "connection" || line.Policy != execution.Learned {
			continue
		}
		if line.Host != "" {
			line.Address = "" // it may change, the name does not
		}
		counts[line.learned]++
	}
	if len(counts) == 0 {
		return exit.Nothingf("no connection in %q needs a rule; record some with --policy-mode=learn", c.AuditFile)
	}
	needed := slices.SortedFunc(maps.Keys(counts), func(a, b learned) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.Transport, b.Transport))
	})
	for i, l := range needed {
		fmt.Fprint(app.stdout, l.rule(i+1, counts[l]))
	}
	return nil
}

// rule is the Cedar rule that permits the destination.
func (l learned) rule(number, seen int) string {
	where := "context.address == ip(" + strconv.Quote(l.Address) + ")"
	if l.Host != "" {
		where = "context.host == " + strconv.Quote(l.Host)
	}
	return fmt.Sprintf(`// connections: %d
@id("learned-%d")
permit (principal in AccountType::%q, action == Action::"connect", resource)
when { %s && context.port == %d && context.transport == %q };

`, seen, number, l.Type, where, l.Port, l.Transport)
}
