package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/kizen/kizen-sidecar/internal/daemon"
	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/hosts"
	"github.com/kizen/kizen-sidecar/internal/serve"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/proxy"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// proxyCommand is kizen-sidecar proxy.
type proxyCommand struct {
	executionFlags
	authorityFlags
	Listen        string        `help:"Loopback address to listen on; port 0 takes a free one." default:"127.0.0.1:0" placeholder:"ADDRESS" group:"Proxy"`
	EnvFile       string        `help:"File to which KIZEN_API_URL is written once the proxy is serving. It is removed at the end." placeholder:"FILE" group:"Proxy"`
	EnvFileMode   string        `help:"Permissions of --env-file, in octal. Anyone who can read it can act as the execution." default:"0600" placeholder:"MODE" group:"Proxy"`
	TTL           time.Duration `name:"ttl" help:"Stop after this time; 0 means until a signal." default:"0s" least:"0s" placeholder:"DURATION" group:"Proxy"`
	KeyLifetime   time.Duration `help:"Lifetime of a signed key; it is renewed before it expires." default:"5m" least:"1s" placeholder:"DURATION" group:"Proxy"`
	AdminListen   string        `help:"Address of /healthz, /readyz and /metrics; empty disables them." placeholder:"HOST:PORT" group:"Proxy"`
	ShutdownGrace time.Duration `help:"Time for requests in flight to finish at the end." default:"5s" least:"0s" placeholder:"DURATION" group:"Proxy"`
}

// Help is the long text of kizen-sidecar proxy --help.
func (proxyCommand) Help() string {
	return `Serves the authenticating proxy of one execution, for a step that runs in a neighbouring container sharing this network namespace. Prints KIZEN_API_URL, whose path is the capability for access; serves until SIGTERM, SIGINT or --ttl; then revokes the key.

Examples:
  kizen-sidecar proxy --env-file /run/kizen/env &
  . /run/kizen/env && curl "$KIZEN_API_URL/custom-objects"
  kizen-sidecar proxy --listen 127.0.0.1:8377 --ttl 55s --redis-url redis://redis:6379/0`
}

// Run is called by kong.
func (c *proxyCommand) Run(ctx context.Context, app *app) error {
	mode, err := c.validate()
	if err != nil {
		return err
	}
	target, err := c.resolve()
	if err != nil {
		return err
	}
	checked, err := c.check(app.log)
	if err != nil {
		return err
	}
	if err := execution.CheckType(checked.engine, target.identity()); err != nil {
		return exit.Usagef("--account-type: %w", err)
	}
	observed, flush, err := app.observe(ctx, c.AdminListen != "", false)
	if err != nil {
		return err
	}
	defer flush()
	checked.telemetry = observed
	host, err := checked.open(nil)
	if err != nil {
		return err
	}
	defer host.Close()
	c.targetFlags.announce(app.log)
	defer host.Follow(ctx)()
	stop, err := c.admin(host, observed, app.log)
	if err != nil {
		return err
	}
	defer stop()
	serving := execution.Serving{
		Address: c.Listen, KeyLifetime: c.KeyLifetime,
		Traceparent: os.Getenv("TRACEPARENT"), Tracestate: os.Getenv("TRACESTATE"),
	}
	if c.TTL > 0 {
		serving.Deadline = time.Now().Add(c.TTL + c.ShutdownGrace)
	}
	authority, err := host.Executions.Open(ctx, target.identity(), serving)
	if err != nil {
		return err
	}
	defer func() {
		authority.Close(ctx, max(c.ShutdownGrace, time.Millisecond)) // without any grace, no call would get a response
		authority.Log().Info("stopped", counted(authority.Calls()))
	}()
	if err := c.announce(app, authority, mode); err != nil {
		return err
	}
	defer c.withdraw(app)
	authority.Log().Info("serving", "api_root", checked.proxy.APIRoot.String())
	c.wait(ctx)
	authority.Log().Info("stopping")
	return nil
}

// admin answers operators until stop is called.
func (c *proxyCommand) admin(host *daemon.Host, observed *telemetry.Telemetry,
	log *slog.Logger) (stop func(), err error) {
	if c.AdminListen == "" {
		return func() {}, nil
	}
	checks := host.Checks()
	checks["redis"] = host.Executions.Ready
	server, err := daemon.BindAdmin(c.AdminListen, hosts.Names{}, nil,
		serve.AdminConfig{Ready: checks, Metrics: observed.Handler()})
	if err != nil {
		return nil, err
	}
	log.Info("answering operators", "admin_url", server.URL)
	return server.Start(log), nil
}

// counted returns how many calls ended with each outcome, for the log.
func counted(calls map[proxy.Outcome]uint64) slog.Attr {
	var counts []slog.Attr
	for _, outcome := range slices.Sorted(maps.Keys(calls)) {
		counts = append(counts, slog.Uint64(string(outcome), calls[outcome]))
	}
	return slog.GroupAttrs("calls", counts...)
}

// wait returns when a signal arrives or --ttl has passed.
func (c *proxyCommand) wait(ctx context.Context) {
	if c.TTL > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.TTL)
		defer cancel()
	}
	<-ctx.Done()
}

// withdraw removes the file that announced the proxy.
func (c *proxyCommand) withdraw(app *app) {
	if c.EnvFile == "" {
		return
	}
	if err := os.Remove(c.EnvFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		app.log.Warn("the env file could not be removed", "file", c.EnvFile, "error", err)
	}
}

func (c *proxyCommand) validate() (fs.FileMode, error) {
	if err := daemon.CheckAddress("--listen", c.Listen); err != nil {
		return 0, err
	}
	if c.AdminListen != "" {
		if err := daemon.CheckAddress("--admin-listen", c.AdminListen); err != nil {
			return 0, err
		}
	}
	if !hosts.IsLoopback(c.Listen) {
		return 0, exit.Usagef("--listen %s can be reached from other machines; use 127.0.0.1", c.Listen)
	}
	mode, err := strconv.ParseUint(c.EnvFileMode, 8, 9)
	if err != nil {
		return 0, exit.Usagef("--env-file-mode %q is not an octal mode; write it like 0600", c.EnvFileMode)
	}
	if c.KeyLifetime < time.Second || c.KeyLifetime > minter.MaxLifetime {
		return 0, exit.Usagef("--key-lifetime %s is out of range; use 1s to %s", c.KeyLifetime, minter.MaxLifetime)
	}
	return fs.FileMode(mode), nil
}

// announce prints the proxy's address and the trace of its calls to standard output, for people, and writes them to
// the file, for scripts.
func (c *proxyCommand) announce(app *app, authority *execution.Authority, mode fs.FileMode) error {
	line := "KIZEN_API_URL=" + authority.URL() + "\n"
	if traceparent, _ := authority.StepContext(); traceparent != "" {
		line += "TRACEPARENT=" + traceparent + "\n"
	}
	if c.EnvFile != "" {
		if err := wholefile.Write(c.EnvFile, []byte(line), mode); err != nil {
			return fmt.Errorf("write --env-file %q: %w", c.EnvFile, wholefile.Cause(err))
		}
	}
	_, err := fmt.Fprint(app.stdout, line)
	return err
}
