package main

import (
	"fmt"

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

// Run is called by kong.
func (c *policySuggestCommand) Run(app *app) error {
	data, err := readFile("audit file", c.AuditFile)
	if err != nil {
		return err
	}
	rules, err := execution.Suggest(data)
	if err != nil {
		return exit.Usagef("audit file %q: %w", c.AuditFile, err)
	}
	if rules == "" {
		return exit.Nothingf("no connection in %q needs a rule; record some with --policy-mode=learn", c.AuditFile)
	}
	_, err = fmt.Fprint(app.stdout, rules)
	return err
}
