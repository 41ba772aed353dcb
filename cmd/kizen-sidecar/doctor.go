package main

import (
	"context"
	"fmt"

	"github.com/kizen/kizen-sidecar/internal/doctor"
	"github.com/kizen/kizen-sidecar/internal/terminal"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

// doctorCommand is kizen-sidecar doctor.
type doctorCommand struct {
	sandboxFlags
	redisFlags
	apiClockFlags
	JSON bool `help:"Print one JSON document." group:"Output"`
}

// apiClockFlags name the API whose clock is compared.
type apiClockFlags struct {
	APIRoot string `help:"API root whose clock is compared with this machine's clock. Default: none." placeholder:"URL" group:"Platform"`
	APICA   string `name:"api-ca" help:"PEM file of the certificate authority that verifies the API's certificate. Default: the system's authorities." placeholder:"FILE" group:"Platform"`
}

// Help is the long text of kizen-sidecar doctor --help.
func (doctorCommand) Help() string {
	return `Builds an empty sandbox, looks for the Python of every runtime, writes to a configured Redis as minting does, compares the clocks of Redis and of the API with this machine's clock, and prints the results.

Examples:
  kizen-sidecar doctor
  kizen-sidecar doctor --sandbox required --redis-url redis://redis:6379

Exit codes: 0 steps can run, 3 they cannot, or a layer is missing that --sandbox=required insists on.`
}

// Run is called by kong.
func (c *doctorCommand) Run(ctx context.Context, app *app) error {
	config, err := c.config()
	if err != nil {
		return err
	}
	if config.Redis != nil {
		defer func() { _ = config.Redis.Close() }()
	}
	found, err := doctor.Diagnose(ctx, config)
	if err != nil {
		return err
	}
	if c.JSON {
		err = terminal.PrintJSON(app.stdout, found)
	} else {
		err = found.Print(app.stdout)
	}
	if err != nil {
		return fmt.Errorf("print the diagnosis: %w", err)
	}
	return found.Problem(config.Sandbox == sandbox.ModeRequired)
}

// config checks the flags and returns the configuration.
func (c *doctorCommand) config() (config doctor.Config, err error) {
	config = doctor.Config{Sandbox: sandbox.Mode(c.Sandbox), Python: c.Python, StrictRuntime: c.StrictRuntime}
	if c.APIRoot != "" {
		if config.APIRoot, err = parseAPIRoot(c.APIRoot); err != nil {
			return config, err
		}
		if config.APICA, err = (apiFlags{APICA: c.APICA}).certificates(); err != nil {
			return config, err
		}
	}
	if c.RedisURL != "" {
		config.Redis, err = c.redisFlags.require()
	}
	return config, err
}
