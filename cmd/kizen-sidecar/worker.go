package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"time"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"

	"github.com/kizen/kizen-sidecar/internal/daemon"
	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/flagfile"
	"github.com/kizen/kizen-sidecar/internal/fleet"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// workerCommand is kizen-sidecar worker.
type workerCommand struct {
	workerFlags
	daemonFlags
}

// workerFlags say what a worker takes.
type workerFlags struct {
	Queue    string        `help:"Queue that executions are taken from." default:"kizen" placeholder:"NAME" group:"Worker"`
	Lease    time.Duration `help:"Time without Redis after which a worker ends its steps itself; after twice that its work is taken over." default:"10s" placeholder:"DURATION" group:"Worker"`
	Attempts int64         `help:"How often an execution is prepared whose code does not come to start, before it is kept as a dead letter." default:"5" placeholder:"N" group:"Worker"`
	Keep     time.Duration `help:"How long results are kept in Redis. The id is not run again for 7 days at least." default:"24h" placeholder:"DURATION" group:"Worker"`

	KeepResults int64  `help:"Most results that a business has in Redis; the oldest are deleted. 0 is no limit." default:"10000" placeholder:"N" group:"Worker"`
	KeepBytes   string `help:"Most bytes that the results of a business take in Redis, compressed; the oldest are deleted. 0 is no limit." default:"64MiB" placeholder:"SIZE" group:"Worker"`

	StartDurability string `help:"What the start of a step's code waits for: Redis's answer (memory), its disk (disk, Redis 7.2 or newer with appendonly) or one replica (replica)." enum:"memory,disk,replica" default:"memory" placeholder:"WHERE" group:"Worker"`
}

// queueName is what a queue may be called: it is part of the names of Redis
// keys, in braces.
var queueName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (f workerFlags) validate() error {
	switch {
	case !queueName.MatchString(f.Queue):
		return exit.Usagef("--queue %q is not a name; use letters, digits, '.', '_' and '-', 64 at most", f.Queue)
	case f.Attempts < 1:
		return exit.Usagef("--attempts must be positive")
	case f.Lease < 100*time.Millisecond || f.Keep < time.Second:
		return exit.Usagef("--lease must be at least 100ms, and --keep at least 1s")
	case f.KeepResults < 0:
		return exit.Usagef("--keep-results must not be negative; 0 is no limit")
	}
	return nil
}

// retention bounds the results that are kept.
func (f workerFlags) retention() (fleet.Retention, error) {
	size, err := humanize.ParseBytes(f.KeepBytes)
	if err != nil || size > math.MaxInt64 {
		return fleet.Retention{}, exit.Usagef("--keep-bytes %q is not a size; write it like 64MiB", f.KeepBytes)
	}
	return fleet.Retention{Age: f.Keep, Count: f.KeepResults, Bytes: int64(size)}, nil
}

// Help is the long text of kizen-sidecar worker --help.
func (workerCommand) Help() string {
	return `Takes executions from a queue in Redis (hibiken/asynq) that many machines share: tasks of type kizen:execution, with the body of POST /executions as payload. A step's code is started at most once, whatever dies; docs/fleet.md says how.

Who can write to the queue can have steps run for every business: protect it with Redis's access control.

Examples:
  kizen-sidecar worker --redis-url redis://127.0.0.1:6379/0 --api-root http://127.0.0.1:8080/api
  kizen-sidecar worker --redis-url rediss://redis:6379/0 --webhook-secret-file webhook.secret --slots 16

SIGTERM drains: nothing new is taken, running steps finish within --drain-timeout, what had not started goes back, exit code 0.`
}

// Run is called by kong.
func (c *workerCommand) Run(ctx context.Context, app *app, command *kong.Context) error {
	if err := c.fill(); err != nil {
		return err
	}
	if c.PrintConfig {
		return flagfile.Print(app.stdout, command)
	}
	s, err := c.prepare(ctx, app)
	if err != nil {
		return err
	}
	defer s.close()
	return s.serve(ctx)
}

// workerService is what worker runs.
type workerService struct {
	parts    *daemonParts
	worker   *fleet.Worker
	draining chan struct{}
	// unwatch ends the questions about the queue, which need Redis.
	unwatch func()
}

// prepare checks everything that the flags name.
func (c *workerCommand) prepare(ctx context.Context, app *app) (*workerService, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	retention, err := c.retention()
	if err != nil {
		return nil, err
	}
	if c.RedisURL == "" {
		return nil, exit.Usagef("no redis given; name the one that holds the queue with --redis-url")
	}
	parts, err := c.open(ctx, app)
	if err != nil {
		return nil, err
	}
	s := &workerService{parts: parts, draining: make(chan struct{})}
	d := parts.daemon
	s.worker = fleet.NewWorker(fleet.Config{
		Redis: d.Host.Redis(), Queue: c.Queue, Slots: c.Slots, Lease: c.Lease, Attempts: c.Attempts, Retention: retention,
		Durability: fleet.Durability(c.StartDurability), Revoke: d.Host.Revoke, Ready: s.ready, Try: s.try,
		Prepare: execution.Queued(parts.checked.engine, parts.secrets, parts.limits), Run: d.Host.Executions.Run, Sender: d.Callbacks.Sender(),
		Metrics: d.Telemetry.Metrics(), Log: app.log,
	})
	d.Telemetry.Metrics().Watch(s.state)
	s.unwatch = d.Telemetry.Metrics().WatchFleet(c.Queue, s.worker.Backlogs)
	return s, nil
}

func (s *workerService) close() {
	s.unwatch()
	s.parts.close()
}

// state is what the metrics say of the load of this worker.
func (s *workerService) state() telemetry.State {
	running, waiting := s.worker.Load()
	return telemetry.State{Queue: waiting, SlotsUsed: running, SlotsTotal: s.parts.daemon.Slots, Ready: s.parts.daemon.Warm.Ready()}
}

// serve works until ctx ends, then drains: nothing new is taken, and what runs
// finishes.
func (s *workerService) serve(ctx context.Context) error {
	admin, err := s.parts.daemon.Admin(s.accepting)
	if err != nil {
		return err
	}
	return s.parts.daemon.Serve(ctx, daemon.Service{
		Admin:   admin,
		Begin:   func() error { return s.worker.Start(ctx) },
		Running: func() int { running, _ := s.worker.Load(); return running },
		Drain: func(limited context.Context) {
			s.worker.Stop()
			close(s.draining) // a reader that sees "not ready" may rely on it taking nothing more
			s.worker.Shutdown(limited)
		},
	})
}

// accepting says why nothing is taken.
func (s *workerService) accepting() error {
	select {
	case <-s.draining:
		return errors.New("the worker shuts down")
	default:
		return s.worker.Taking()
	}
}

// ready says which of the worker's own readiness checks fails, but for those of Redis, without which nothing can be taken, and for
// accepting, which is what the answer decides.
func (s *workerService) ready(ctx context.Context) error {
	for name, check := range s.parts.daemon.Checks() {
		if err := check(ctx); err != nil {
			return fmt.Errorf("not ready: %s: %w", name, err)
		}
	}
	return nil
}

// try starts an interpreter as an execution would, and ends it.
func (s *workerService) try(ctx context.Context) error {
	prepared, err := s.parts.daemon.Warm.Prepare(ctx, runner.DefaultRuntime, s.parts.limits)
	if err != nil {
		return err
	}
	prepared.Discard()
	return nil
}
