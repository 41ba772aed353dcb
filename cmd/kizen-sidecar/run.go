package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/kizen/kizen-sidecar/runner"
)

// keyGrace is how long a key outlives the step's limit: start-up before it and
// the last call's answer after it.
const keyGrace = 15 * time.Second

// runCommand is kizen-sidecar run.
type runCommand struct {
	jobFlags
	sandboxFlags
	limitFlags
	authorityFlags
	JSON       bool `help:"Print the result as one JSON document." group:"Output"`
	HTTPDetail bool `short:"v" help:"Show headers and bodies of the step's HTTP calls, and where the time went." group:"Output"`
}

// Help is the long text of kizen-sidecar run --help.
func (runCommand) Help() string {
	return `Mints a signed key for this execution, opens the local proxy that authenticates the step's requests, runs the step's Python, takes the key back and prints the result.

Examples:
  kizen-sidecar run examples/count_custom_objects --api-root http://127.0.0.1:8080/api
  kizen-sidecar run --script double.py --input n=21:number --declare-output doubled:number
  echo 'outputs.log(inputs.who)' | kizen-sidecar run --script - --input who=world
  ACME_KEY=... kizen-sidecar run steps/notify --secret ACME_KEY --json | jq .values

Exit codes: 0 the step succeeded, 1 the step failed, 2 wrong usage or a refused request, 3 the sidecar could not do its work.`
}

// Run is called by kong.
func (c *runCommand) Run(ctx context.Context, app *app) error {
	execution, err := c.execute(ctx, app)
	switch {
	case err != nil && c.JSON:
		return reportFailure(app, execution, err)
	case err != nil:
		return err
	case c.JSON:
		err = printJSON(app, execution.result)
	default:
		err = page{out: app.stdout, detail: c.HTTPDetail}.print(execution)
	}
	if err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	if execution.result.Error != nil {
		return errReported{exitStepFailed}
	}
	return nil
}

// executed is an execution and what became of it.
type executed struct {
	job    job
	target target
	result runner.Result
	phases phases
}

// phases are the parts of an execution that are not the runner's.
type phases struct {
	mint, teardown time.Duration
}

// execute checks the request, then runs it. What it returns is as complete as
// it got.
func (c *runCommand) execute(ctx context.Context, app *app) (done executed, err error) {
	granted, err := c.check(app.log)
	done.target = granted.target
	if err != nil {
		return done, err
	}
	limits, err := c.limits()
	if err != nil {
		return done, err
	}
	if done.job, err = c.load(app.stdin); err != nil {
		return done, err
	}
	steps, err := runner.New(c.runnerConfig(app.log))
	if err != nil {
		return done, err
	}
	// Python starts while the key is minted.
	prepared, err := steps.Prepare(context.WithoutCancel(ctx), done.job.execution.Runtime, limits)
	if err != nil {
		return done, err
	}
	keyLifetime := limits.Wall + keyGrace
	authority, err := granted.open(ctx, serving{
		listener: prepared.Listener(), keyLifetime: keyLifetime, deadline: time.Now().Add(keyLifetime),
	})
	if err != nil {
		prepared.Discard()
		return done, err
	}
	done.result, err = c.runStep(ctx, app, prepared, &done, authority)
	began := time.Now()
	// The step has ended: nobody waits for what it left in flight.
	authority.close(ctx, 0)
	done.phases = phases{mint: authority.minting, teardown: time.Since(began)}
	return done, err
}

func (c *runCommand) runStep(ctx context.Context, app *app, prepared *runner.Prepared, done *executed, authority *authority) (runner.Result, error) {
	execution := &done.job.execution
	execution.ID = done.target.executionID
	execution.APIURL = authority.proxy.URL()
	execution.APIRoot = done.target.apiRoot.String()
	defer startSpinner(app.stderr, done.job.name)()
	return prepared.Run(ctx, *execution)
}

// printJSON writes the one document of --json.
func printJSON(app *app, document any) error {
	encoder := json.NewEncoder(app.stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(document)
}

// failure is the document of an execution that never ran, or whose outcome is
// not known.
type failure struct {
	RequestID    string   `json:"request_id"`
	DurationMS   float64  `json:"duration_ms"`
	Values       any      `json:"values"`
	Logs         []string `json:"logs"`
	HTTPRequests any      `json:"http_requests"`
	Error        any      `json:"error"`
}

// reportFailure prints the document for err, and keeps err for standard error.
func reportFailure(app *app, done executed, err error) error {
	document := failure{RequestID: done.target.executionID, Logs: []string{}}
	document.Error = map[string]string{"error": err.Error(), "detail": ""}
	var fields *runner.FieldErrors
	if errors.As(err, &fields) {
		document.Error = fields
	}
	if printed := printJSON(app, document); printed != nil {
		return errors.Join(err, printed)
	}
	return err
}
