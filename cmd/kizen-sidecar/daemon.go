package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/kizen/kizen-sidecar/internal/clocks"
	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/flagfile"
	"github.com/kizen/kizen-sidecar/internal/hosts"
	"github.com/kizen/kizen-sidecar/internal/peer"
	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/internal/serve"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/pool"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// configFlags let the flags of a command be written into a file.
type configFlags struct {
	Config      flagfile.Path `help:"YAML file of flags: their names without dashes, and their values. The command line wins over the environment, which wins over the file." placeholder:"FILE" group:"Configuration"`
	PrintConfig bool          `help:"Print the effective configuration, secrets masked, and exit." group:"Configuration" env:"-"`
}

// daemonFlags are what every command has that runs executions until it is
// told to stop.
type daemonFlags struct {
	configFlags
	operationFlags
	webhookFlags
	sandboxFlags
	limitFlags
	authorityFlags
}

// operationFlags say how much runs at once, and how operators see and stop it.
type operationFlags struct {
	Slots         int           `help:"Executions at once. Default: four for each core." placeholder:"N" group:"Operation"`
	Warm          int           `help:"Interpreters that wait for an execution, loaded, for each runtime that was asked for; each is used once. 0: none." default:"2" placeholder:"N" group:"Operation"`
	WarmIsolation string        `help:"How they are made: fork, from one Python that has loaded everything, or exec, each executed and loaded for itself, which takes as long as a cold start and shares neither the seed of hash() nor the layout of memory." enum:"fork,exec" default:"fork" placeholder:"MODE" group:"Operation"`
	DrainTimeout  time.Duration `help:"Time that running steps get to finish after SIGTERM." default:"60s" placeholder:"DURATION" group:"Operation"`
	AdminListen   string        `help:"Address of /healthz, /readyz and /metrics; empty: none." default:"127.0.0.1:9091" placeholder:"HOST:PORT" group:"Operation"`
	HostName      []string      `help:"Host name under which the API and the address for operators are reached, beside their addresses, localhost, this machine's name and the names in --tls-cert; \"*.\" in front stands for one label. Repeat it for more." placeholder:"NAME" group:"Operation"`
	ReadyFile     string        `help:"Write a JSON object of the addresses, url and admin_url, and the token of --token-file, token, here while executions are taken. Mode 0600." placeholder:"FILE" group:"Operation"`
	SecretsFile   string        `help:"JSON object of the secrets that steps may be granted: {\"BUSINESS\": {\"NAME\": \"value\"}}." placeholder:"FILE" group:"Operation"`
}

// fill puts in what was left out, and checks the rest.
func (f *operationFlags) fill() error {
	if f.Slots == 0 {
		f.Slots = 4 * runtime.NumCPU()
	}
	switch {
	case f.Slots < 0:
		return usagef("--slots must be positive")
	case f.Warm < 0:
		return usagef("--warm must not be negative")
	case f.DrainTimeout < 0:
		return usagef("--drain-timeout must not be negative")
	case f.AdminListen != "":
		return checkAddress("--admin-listen", f.AdminListen)
	}
	return nil
}

// daemon is what serve and worker have in common: the parts that executions are run with, and how they start and drain.
type daemon struct {
	host      *openHost
	flags     *daemonFlags
	checked   checkedFlags
	limits    runner.Limits
	secrets   execution.SecretsByBusiness
	steps     *runner.Runner
	warm      *pool.Pool
	callback  *serve.Callbacks
	memory    memoryShares
	telemetry *telemetry.Telemetry
	flush     func()
	log       *slog.Logger
}

// open checks everything that the flags name, and opens nothing but Redis and
// the audit.
func (f *daemonFlags) open(ctx context.Context, app *app) (*daemon, error) {
	w := &daemon{flags: f, log: app.log, memory: limitMemory()}
	if err := w.check(app); err != nil {
		return nil, err
	}
	var err error
	if w.telemetry, w.flush, err = app.observe(ctx, f.AdminListen != "", false); err != nil {
		return nil, err
	}
	w.warm = pool.New(pool.Config{Source: w.steps, Size: f.Warm, Exec: f.WarmIsolation == "exec", Limits: w.limits, Log: app.log})
	w.checked.telemetry = w.telemetry
	if w.host, err = w.checked.open(w.warm); err != nil {
		w.flush()
		return nil, err
	}
	return w, nil
}

func (w *daemon) check(app *app) (err error) {
	f := w.flags
	if w.secrets, err = loadSecrets(f.SecretsFile); err != nil {
		return err
	}
	if w.limits, err = f.limits(); err != nil {
		return err
	}
	if w.callback, err = f.callbacks(w.memory.callbacks, app.log); err != nil {
		return err
	}
	if w.checked, err = f.check(app.log); err != nil {
		return err
	}
	w.steps, err = runner.New(f.runnerConfig(app.log))
	return err
}

// callbackGrace is how long the last callbacks may take.
const callbackGrace = 5 * time.Second

func (w *daemon) close() {
	w.warm.Close()
	w.callback.Close(callbackGrace)
	w.host.close()
	w.flush()
}

// listeners are what a daemon serves, from the first answer of the listeners to the
// last. A part that is not configured is nil.
type listeners struct {
	api, operators *server
	// token is what requests to api must carry, and tokenFile where it is kept. Both are empty where callers have tokens of
	// their own.
	token     runner.Secret
	tokenFile string
	// begin takes work; nil: listening is all. drain takes no more, and lets
	// what runs finish until ctx ends.
	begin func() error
	drain func(ctx context.Context)
	// running is how many executions are under way; for the log.
	running func() int
}

// servers are the listeners, that of the operators last: they watch the end.
func (s listeners) servers() (all []*server) {
	for _, one := range []*server{s.api, s.operators} {
		if one != nil {
			all = append(all, one)
		}
	}
	return all
}

// work serves until ctx ends or a listener fails.
func (w *daemon) work(ctx context.Context, s listeners) error {
	defer reloadKeys(ctx, w.checked.keys, w.log)()
	defer w.host.audit.Follow(w.log)()
	if w.host.store.embedded == nil {
		defer clocks.Watch(ctx, w.host.store, w.log)()
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	routine.Go(func() { returnMemory(watching) })
	w.warm.Keep(runner.DefaultRuntime)
	servers := s.servers()
	failed := make(chan error, len(servers))
	for _, running := range servers {
		routine.Go(func() { failed <- running.serve() })
	}
	err := w.begin(s)
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-failed:
			failed <- nil
		}
		w.retract()
	}
	w.drain(context.WithoutCancel(ctx), s)
	for range servers {
		err = errors.Join(err, <-failed)
	}
	return err
}

// begin takes work, and writes its addresses to the log and to the ready file.
func (w *daemon) begin(s listeners) error {
	if s.begin != nil {
		if err := s.begin(); err != nil {
			return err
		}
	}
	addresses := map[string]string{}
	if s.api != nil {
		addresses["url"] = s.api.url
	}
	if s.operators != nil {
		addresses["admin_url"] = s.operators.url
	}
	attributes := []any{"slots", w.flags.Slots}
	for _, name := range slices.Sorted(maps.Keys(addresses)) {
		attributes = append(attributes, name, addresses[name])
	}
	if w.flags.ReadyFile != "" {
		if token := s.token.Reveal(); token != "" {
			addresses["token"] = token
		}
		if err := writeJSONFile(w.flags.ReadyFile, addresses); err != nil {
			return fmt.Errorf("write --ready-file %q: %w", w.flags.ReadyFile, wholefile.Cause(err))
		}
	}
	if s.tokenFile != "" {
		w.log.Info("requests must carry the token in this file", "file", s.tokenFile)
	}
	w.log.Info("serving", attributes...)
	return nil
}

// retract takes away what says that executions are taken.
func (w *daemon) retract() {
	if w.flags.ReadyFile == "" {
		return
	}
	if err := os.Remove(w.flags.ReadyFile); err != nil {
		w.log.Warn("the ready file could not be removed", "error", err)
	}
}

// drain lets what runs finish, until the drain timeout is over or another signal asks to end.
func (w *daemon) drain(ctx context.Context, s listeners) {
	limited, cancel := context.WithTimeout(ctx, w.flags.DrainTimeout)
	defer cancel()
	limited, ignore := signal.NotifyContext(limited, os.Interrupt, syscall.SIGTERM)
	defer ignore()
	w.log.Info("draining", "running", s.running(), "drain_timeout", w.flags.DrainTimeout.String())
	s.drain(limited)
	grace, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	for _, running := range s.servers() {
		if err := running.Shutdown(grace); err != nil {
			_ = running.Close() // a caller that still reads is cut off
		}
	}
}

// operators is the server that operators ask, bound; nil without one.
// accepting says why no new execution is taken.
func (w *daemon) operators(accepting func() error) (*server, error) {
	if w.flags.AdminListen == "" {
		return nil, nil
	}
	checks := w.checks()
	checks["redis"] = w.host.Ready
	checks["accepting"] = func(context.Context) error { return accepting() }
	guard := w.guard()
	return bind("--admin-listen", w.flags.AdminListen, 0, &http.Server{
		ConnContext: guard.ConnContext,
		Handler: guard.Require(w.hosts().Require(serve.AdminHandler(serve.AdminConfig{
			Ready: checks, Metrics: w.telemetry.Handler(), Details: func() any { return w.steps.Sandbox() },
		}))),
		ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
	})
}

// checks say whether this machine can run executions.
func (w *daemon) checks() map[string]serve.Check {
	checks := map[string]serve.Check{
		"sandbox": func(context.Context) error { return sandboxReady(w.steps, w.flags.Sandbox) },
	}
	if w.host.audit != nil {
		checks["audit"] = func(context.Context) error { return w.host.audit.Ready() }
	}
	if w.flags.Warm > 0 {
		checks["warm"] = func(context.Context) error { return w.warm.Check(runner.DefaultRuntime) }
	}
	return checks
}

// hosts are the names of --host-name, those in a certificate, and that of this machine.
func (w *daemon) hosts(certified ...string) hosts.Names {
	names := slices.Concat(w.flags.HostName, certified)
	if own, err := os.Hostname(); err == nil {
		names = append(names, own)
	}
	return hosts.New(names...)
}

// guard keeps the steps that this process runs out of its own servers.
func (w *daemon) guard() *peer.Guard {
	return &peer.Guard{Log: w.log, FromStep: func(o peer.Owner) bool { return w.steps.HoldsSocket(o.UserID, o.Inode) }}
}

// sandboxReady says which layers a sandbox lacks that must have them all.
func sandboxReady(steps *runner.Runner, mode string) error {
	if missing := steps.Sandbox().Missing(); len(missing) > 0 && mode == "required" {
		return fmt.Errorf("missing: %v", missing)
	}
	return nil
}

// loadSecrets reads the secrets of businesses, none without a file.
func loadSecrets(name string) (execution.SecretsByBusiness, error) {
	if name == "" {
		return nil, nil
	}
	data, err := readFile("secrets file", name)
	if err != nil {
		return nil, err
	}
	secrets, err := execution.ParseSecrets(data)
	if err != nil {
		return nil, usagef("secrets file %q %w", name, err)
	}
	return secrets, nil
}
