// Package daemon contains what the long-running commands share: it listens, answers operators, announces readiness,
// and drains when it is told to stop.
package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/kizen/kizen-sidecar/internal/hosts"
	"github.com/kizen/kizen-sidecar/internal/peer"
	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/internal/serve"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/pool"
	"github.com/kizen/kizen-sidecar/telemetry"
)

const (
	// callbackGrace limits the delivery of the last callbacks.
	callbackGrace = 5 * time.Second
	// responseGrace limits the last responses after a drain.
	responseGrace = 5 * time.Second
)

// Daemon runs executions until it is told to stop. Fields without a comment are required.
type Daemon struct {
	Host   *Host
	Runner *runner.Runner
	Warm   *pool.Pool
	// WarmSize is the number of warm interpreters of each runtime; with 0, readiness does not depend on them.
	WarmSize int
	// Callbacks delivers the results of serve. If nil, callbacks are disabled.
	Callbacks *serve.Callbacks
	Telemetry *telemetry.Telemetry
	// Slots is the number of concurrent executions; for the log.
	Slots int
	// RequireSandbox makes the daemon unready if a layer of the sandbox is missing.
	RequireSandbox bool
	// DrainTimeout is how long running steps may take after the daemon was told to stop.
	DrainTimeout time.Duration
	// AdminListen is the address for operators. If empty, the admin listener is disabled.
	AdminListen string
	// HostNames are names of this machine, in addition to its own.
	HostNames []string
	// ReadyFile receives the addresses while executions are taken. If empty, no file is written.
	ReadyFile string
	Log       *slog.Logger
}

// Close closes everything that the daemon uses, except its telemetry. Call it after [Daemon.Serve].
func (d *Daemon) Close() {
	d.Warm.Close()
	d.Callbacks.Close(callbackGrace)
	d.Host.Close()
}

// Service is the part of a daemon that differs between the commands. API and Admin are nil if they are not configured.
type Service struct {
	API, Admin *Server
	// Token is the token that requests to API must carry, and TokenFile the file that contains it. Both are empty if
	// callers have their own tokens.
	Token     runner.Secret
	TokenFile string
	// Begin starts taking executions. It may be nil if listening is enough.
	Begin func() error
	// Drain stops taking executions, and lets running ones finish until ctx ends.
	Drain func(ctx context.Context)
	// Running returns the number of running executions.
	Running func() int
}

// servers returns the servers. The one for operators comes last, so that they can watch the drain to its end.
func (s Service) servers() (all []*Server) {
	for _, server := range []*Server{s.API, s.Admin} {
		if server != nil {
			all = append(all, server)
		}
	}
	return all
}

// Serve serves until ctx ends or a server fails, then drains.
func (d *Daemon) Serve(ctx context.Context, s Service) error {
	defer d.Host.Follow(ctx)()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	routine.Go(func() { returnMemory(watching) })
	d.Warm.Keep(runner.DefaultRuntime)
	servers := s.servers()
	failed := make(chan error, len(servers))
	for _, server := range servers {
		routine.Go(func() { failed <- server.serve() })
	}
	err := d.begin(s)
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-failed:
			failed <- nil
		}
		d.retract()
	}
	d.drain(context.WithoutCancel(ctx), s)
	for range servers {
		err = errors.Join(err, <-failed)
	}
	return err
}

// begin starts taking executions, and writes the addresses to the log and to the ready file.
func (d *Daemon) begin(s Service) error {
	if s.Begin != nil {
		if err := s.Begin(); err != nil {
			return err
		}
	}
	addresses := map[string]string{}
	if s.API != nil {
		addresses["url"] = s.API.URL
	}
	if s.Admin != nil {
		addresses["admin_url"] = s.Admin.URL
	}
	attributes := []any{"slots", d.Slots}
	for _, name := range slices.Sorted(maps.Keys(addresses)) {
		attributes = append(attributes, name, addresses[name])
	}
	if d.ReadyFile != "" {
		if token := s.Token.Reveal(); token != "" {
			addresses["token"] = token
		}
		if err := writeJSON(d.ReadyFile, addresses); err != nil {
			return fmt.Errorf("write --ready-file %q: %w", d.ReadyFile, wholefile.Cause(err))
		}
	}
	if s.TokenFile != "" {
		d.Log.Info("requests must carry the token in this file", "file", s.TokenFile)
	}
	d.Log.Info("serving", attributes...)
	return nil
}

// writeJSON writes a document at once, because scripts wait for the file.
func writeJSON(path string, document any) error {
	data, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		return err
	}
	return wholefile.Write(path, append(data, '\n'), 0o600)
}

// retract removes the ready file.
func (d *Daemon) retract() {
	if d.ReadyFile == "" {
		return
	}
	if err := os.Remove(d.ReadyFile); err != nil {
		d.Log.Warn("the ready file could not be removed", "error", err)
	}
}

// drain lets running executions finish until the drain timeout ends or a second signal arrives, then stops the
// servers.
func (d *Daemon) drain(ctx context.Context, s Service) {
	limited, cancel := context.WithTimeout(ctx, d.DrainTimeout)
	defer cancel()
	limited, ignore := signal.NotifyContext(limited, os.Interrupt, syscall.SIGTERM)
	defer ignore()
	d.Log.Info("draining", "running", s.Running(), "drain_timeout", d.DrainTimeout.String())
	s.Drain(limited)
	grace, stop := context.WithTimeout(ctx, responseGrace)
	defer stop()
	for _, server := range s.servers() {
		server.shutdown(grace)
	}
}

// Admin returns the server for operators, already listening, or nil if none is configured. accepting returns why no
// new executions are accepted.
func (d *Daemon) Admin(accepting func() error) (*Server, error) {
	if d.AdminListen == "" {
		return nil, nil
	}
	checks := d.Checks()
	checks["redis"] = d.Host.Executions.Ready
	checks["accepting"] = func(context.Context) error { return accepting() }
	return BindAdmin(d.AdminListen, d.Names(), d.Guard(), serve.AdminConfig{
		Ready: checks, Metrics: d.Telemetry.Handler(), Details: func() any { return d.Runner.Sandbox() },
	})
}

// Checks returns all readiness checks except those of Redis.
func (d *Daemon) Checks() map[string]serve.Check {
	checks := d.Host.Checks()
	checks["sandbox"] = func(context.Context) error { return d.sandboxReady() }
	if d.WarmSize > 0 {
		checks["warm"] = func(context.Context) error { return d.Warm.Check(runner.DefaultRuntime) }
	}
	return checks
}

// sandboxReady returns an error that names the missing layers, if the daemon requires all of them.
func (d *Daemon) sandboxReady() error {
	if missing := d.Runner.Sandbox().Missing(); len(missing) > 0 && d.RequireSandbox {
		return fmt.Errorf("missing: %v", missing)
	}
	return nil
}

// Names returns the host names of this machine: the configured ones, those of a certificate, and its own.
func (d *Daemon) Names(certified ...string) hosts.Names {
	names := slices.Concat(d.HostNames, certified)
	if own, err := os.Hostname(); err == nil {
		names = append(names, own)
	}
	return hosts.New(names...)
}

// Guard returns a guard that refuses connections of this process's own steps.
func (d *Daemon) Guard() *peer.Guard {
	return &peer.Guard{Log: d.Log, FromStep: func(o peer.Owner) bool { return d.Runner.HoldsSocket(o.UserID, o.Inode) }}
}
