package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/stepfile"
	"github.com/kizen/kizen-sidecar/internal/terminal"
	"github.com/kizen/kizen-sidecar/internal/ui"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// jobFlags name the step and its input. They are a [stepfile.Source].
type jobFlags struct {
	Step          string   `arg:"" optional:"" help:"Folder of the step, with config.json and script.py." env:"KIZEN_STEP" placeholder:"DIR"`
	Script        string   `help:"Run this script instead of a folder; - reads standard input." placeholder:"FILE" group:"Step"`
	Input         []string `help:"An input, as name=value or name=value:type. Repeatable; overrides --inputs-file." sep:"none" placeholder:"NAME=VALUE[:TYPE]" group:"Step"`
	DeclareOutput []string `help:"An output that the step may assign, as name or name:type. Repeatable." sep:"none" placeholder:"NAME[:TYPE]" group:"Step"`
	InputsFile    string   `help:"JSON object of inputs: typed, bare or in wire form." placeholder:"FILE" group:"Step"`
	OutputsFile   string   `help:"JSON object of output types: {\"doubled\": \"number\"}." placeholder:"FILE" group:"Step"`
	Secret        []string `help:"A secret granted to the step. Without a value, it is read from the environment variable of that name and stays out of the process list. Repeatable." sep:"none" placeholder:"NAME[=VALUE]" group:"Step"`
	SecretsFile   string   `help:"JSON object of secrets: {\"name\": \"value\"}." placeholder:"FILE" group:"Step"`
	Runtime       string   `help:"Python for the step: python-3-12 or python-3-13. Default: that of config.json, or python-3-13 for a script." placeholder:"NAME" group:"Step"`
}

// runCommand is kizen-sidecar run.
type runCommand struct {
	jobFlags
	sandboxFlags
	limitFlags
	executionFlags
	authorityFlags
	JSON       bool   `help:"Print the result as one JSON document." group:"Output"`
	Report     string `help:"Also write the execution's page to this file, as one self-contained HTML document." placeholder:"FILE" group:"Output"`
	Verbose    bool   `help:"Log everything, as KIZEN_LOG=debug does." group:"Logging"`
	HTTPDetail bool   `short:"v" help:"Show headers and bodies of the step's HTTP calls, and the time of each phase." group:"Output"`
}

// Help is the long text of kizen-sidecar run --help.
func (runCommand) Help() string {
	return `Mints a signed key for this execution, opens the local proxy that authenticates the step's requests, runs the step's Python, revokes the key and prints the result.

Examples:
  kizen-sidecar run examples/count_custom_objects --api-root http://127.0.0.1:8080/api
  kizen-sidecar run --script double.py --input n=21:number --declare-output doubled:number
  echo 'outputs.log(inputs.who)' | kizen-sidecar run --script - --input who=world
  ACME_KEY=... kizen-sidecar run steps/notify --secret ACME_KEY --json | jq .values

Exit codes: 0 the step succeeded, 1 the step failed, 2 wrong usage or a refused request, 3 the sidecar could not do its work.`
}

// Run is called by kong.
func (c *runCommand) Run(ctx context.Context, app *app) error {
	observed, flush, err := app.observe(ctx, false, true)
	if err != nil {
		return err
	}
	defer flush()
	done, err := c.execute(ctx, app, observed)
	switch {
	case err != nil && c.JSON:
		return reportFailure(app, done, done.outcome(err), err)
	case err != nil:
		return err
	case c.JSON:
		err = terminal.PrintJSON(app.stdout, done.Result)
	default:
		err = terminal.Page{Out: app.stdout, Detail: c.HTTPDetail}.Print(done.Execution)
	}
	if err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	if err := c.report(done); err != nil {
		return err
	}
	if outcome := done.Result.Outcome; outcome.Failed() {
		return errReported{outcome.ExitCode()}
	}
	return nil
}

// report writes the page of an execution for a browser, if requested. Only the caller may read it, because it contains
// everything that the step saw.
func (c *runCommand) report(done executed) error {
	if c.Report == "" {
		return nil
	}
	document, err := done.Result.MarshalJSON()
	if err != nil {
		return fmt.Errorf("write --report %q: %w", c.Report, err)
	}
	id := done.target.identity()
	var page bytes.Buffer
	err = ui.Report(&page, ui.NewRecord(ui.About{
		ID: id.ExecutionID, Name: done.Name, Runtime: string(done.Runtime), BusinessID: id.BusinessID,
		AccountID:   id.AccountID,
		AccountType: id.AccountType, APIRoot: done.APIRoot, State: "finished", Queued: done.began, Dequeued: done.began,
	}, done.Ended, document))
	if err == nil {
		err = wholefile.Keep(c.Report, page.Bytes(), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write --report %q: %w", c.Report, wholefile.Cause(err))
	}
	return nil
}

// checkReport rejects a path to which no report can be written, before anything runs.
func (c *runCommand) checkReport() error {
	if c.Report == "" {
		return nil
	}
	if _, err := os.Stat(filepath.Dir(c.Report)); err != nil {
		return exit.Usagef("--report %q: no such folder; create it first", c.Report)
	}
	if about, err := os.Stat(c.Report); err == nil && about.IsDir() {
		return exit.Usagef("--report %q is a folder; name a file", c.Report)
	}
	return nil
}

// executed is an execution and its result.
type executed struct {
	terminal.Execution
	target target
	began  time.Time
}

// execute checks the request and runs it. Even with an error, it returns everything that is known.
func (c *runCommand) execute(ctx context.Context, app *app, observed *telemetry.Telemetry) (done executed, err error) {
	if done.target, err = c.resolve(); err != nil {
		return done, err
	}
	if err := c.checkReport(); err != nil {
		return done, err
	}
	checked, err := c.check(app.log)
	if err != nil {
		return done, err
	}
	if err := execution.CheckType(checked.engine, done.target.identity()); err != nil {
		return done, exit.Usagef("--account-type: %w", err)
	}
	limits, err := c.limits()
	if err != nil {
		return done, err
	}
	name, job, err := stepfile.Source(c.jobFlags).Load(app.stdin)
	if err != nil {
		return done, exit.WrongUsage(err)
	}
	done.Name, done.Runtime, done.APIRoot = name, job.Runtime, checked.proxy.APIRoot.String()
	steps, err := runner.New(c.runnerConfig(app.log))
	if err != nil {
		return done, err
	}
	checked.telemetry, checked.learn = observed, c.PolicyMode == "learn"
	host, err := checked.open(steps)
	if err != nil {
		return done, err
	}
	defer host.Close()
	c.announce(app.log)
	defer terminal.StartSpinner(app.stderr, done.Name)()
	done.began = time.Now()
	job.Traceparent = os.Getenv("TRACEPARENT")
	done.Ended, err = host.Executions.Run(ctx, execution.Request{
		Identity: done.target.identity(), Name: done.Name, Job: job, Limits: limits, Tracestate: os.Getenv("TRACESTATE"),
	})
	var fields *runner.FieldErrors
	if errors.As(err, &fields) {
		err = exit.WrongUsage(err)
	}
	return done, err
}

// outcome returns the outcome of an execution that ended with err.
func (e executed) outcome(err error) outcomes.Outcome {
	if exit.Code(err) == exitUsage {
		return outcomes.Refused
	}
	return e.Ended.Outcome(err)
}

// reportFailure prints the document for err, and keeps err for standard error.
func reportFailure(app *app, done executed, outcome outcomes.Outcome, err error) error {
	if printed := terminal.PrintFailure(app.stdout, done.target.executionID, outcome, err); printed != nil {
		return errors.Join(err, printed)
	}
	return err
}
