package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/terminal"
	"github.com/kizen/kizen-sidecar/policy"
)

// policyFlags name the rules that decide about calls.
type policyFlags struct {
	Policy []string `help:"Cedar file, or directory of *.cedar files, with rules for API calls and connections; may be repeated. Without one, only the built-in guardrails stop a call." placeholder:"FILE|DIR" group:"Policy"`
}

// engine reads the rules. Every problem in them is a usage error.
func (f policyFlags) engine() (*policy.Engine, error) {
	engine, err := policy.ForCalls(f.Policy...)
	if err != nil {
		return nil, exit.WrongUsage(err)
	}
	return engine, nil
}

// policyCommand is kizen-sidecar policy.
type policyCommand struct {
	Check   policyCheckCommand   `cmd:"" help:"Validate rule files and print the number of rules."`
	Explain policyExplainCommand `cmd:"" help:"Print whether a call or a connection is allowed, by which rule, and why."`
	Suggest policySuggestCommand `cmd:"" help:"Write the rules that the connections in an audit file need."`
}

// policyCheckCommand is kizen-sidecar policy check.
type policyCheckCommand struct {
	Paths []string `arg:"" name:"path" help:"Cedar files, and directories of *.cedar files." placeholder:"FILE|DIR"`
}

// Help is the long text of kizen-sidecar policy check --help.
func (policyCheckCommand) Help() string {
	return `Reports every error with its file, line and rule, and exits with code 2.

Examples:
  kizen-sidecar policy check rules/
  kizen-sidecar policy check own.cedar team.cedar`
}

// Run is called by kong.
func (c *policyCheckCommand) Run(app *app) error {
	engine, err := policyFlags{c.Paths}.engine()
	if err != nil {
		return err
	}
	builtIn, own := engine.Count()
	fmt.Fprintf(app.stdout, "%d rules of yours and %d built in are valid\n", own, builtIn)
	return nil
}

// policyExplainCommand is kizen-sidecar policy explain.
type policyExplainCommand struct {
	policyFlags
	Method      string   `arg:"" help:"HTTP method of the call, or connect for a connection."`
	Path        string   `arg:"" help:"Path of the call, relative to the API root, in any spelling; or HOST:PORT of the connection."`
	AccountType string   `help:"Type of the calling account." default:"service_automation" placeholder:"TYPE"`
	BusinessID  string   `help:"Business that the account belongs to. Default: a development id." placeholder:"ID"`
	UserID      string   `help:"Calling account. Default: a development id." placeholder:"ID"`
	Transport   string   `help:"Transport of the connection: tcp or udp." enum:"tcp,udp" default:"tcp" placeholder:"TRANSPORT"`
	Address     []string `help:"Address of the connection's host. Default: the addresses that its name has on this machine. Repeatable." placeholder:"ADDRESS"`
	StepName    string   `help:"Name of the connecting step." placeholder:"NAME"`
	JSON        bool     `name:"json" help:"Print one JSON document."`
}

// Help is the long text of kizen-sidecar policy explain --help.
func (policyExplainCommand) Help() string {
	return `Makes the decision of the proxy or the sandbox without a call or a connection. The exit code is 0 whether it is allowed or not.

Examples:
  kizen-sidecar policy explain POST /api-keys
  kizen-sidecar policy explain GET /records/deals --account-type service_integration --policy rules/
  kizen-sidecar policy explain connect db.example.com:5432 --account-type service_plugin --policy rules/`
}

// Run is called by kong.
func (c *policyExplainCommand) Run(ctx context.Context, app *app) error {
	engine, err := c.engine()
	if err != nil {
		return err
	}
	if !httpguts.ValidHeaderFieldName(c.Method) { // a method is a token, like a field name
		return exit.Usagef("%q is not an HTTP method", c.Method)
	}
	account := policy.Account{ID: cmp.Or(c.UserID, developmentUser), Type: c.AccountType,
		BusinessID: cmp.Or(c.BusinessID, developmentBusiness)}
	principal, err := engine.For(account)
	if err != nil {
		return exit.Usagef("--account-type: %w", err)
	}
	if c.Method == "connect" && !strings.HasPrefix(c.Path, "/") {
		return c.explainConnection(ctx, app, principal)
	}
	answer := engine.Explain(ctx, principal, c.Method, c.Path)
	if c.JSON {
		return terminal.PrintJSON(app.stdout, answer)
	}
	_, err = fmt.Fprint(app.stdout, answer)
	return err
}
