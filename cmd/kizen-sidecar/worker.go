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
	"github.com/kizen/kizen-sidecar/internal/wire"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// workerCommand is kizen-sidecar worker.
type workerCommand struct {
	workerFlags
	daemonFlags
}

// workerFlags configure a worker.
type workerFlags struct {
	Queue    string        `help:"Queue from which the worker takes executions." default:"kizen" placeholder:"NAME" group:"Worker"`
	Queues   int           `help:"Number of queues that the fleet shares its businesses among, in different slots of a Redis Cluster. All workers, orchestrators and queue commands need the same number." default:"1" least:"1" placeholder:"N" group:"Worker"`
	Lease    time.Duration `help:"Time without Redis after which a worker ends its steps; after twice this time another worker takes over its work." default:"10s" least:"100ms" placeholder:"DURATION" group:"Worker"`
	Attempts int64         `help:"Attempts to start an execution before it is kept as a dead letter." default:"5" least:"1" placeholder:"N" group:"Worker"`
	Keep     time.Duration `help:"How long results are kept in Redis. The id does not run again for at least 7 days." default:"24h" least:"1s" placeholder:"DURATION" group:"Worker"`

	KeepResults int64  `help:"Maximum number of results of a business in Redis; the oldest are deleted. 0 means no limit." default:"10000" least:"0" placeholder:"N" group:"Worker"`
	KeepBytes   string `help:"Maximum size of the results of a business in Redis, compressed; the oldest are deleted. 0 means no limit." default:"64MiB" placeholder:"SIZE" group:"Worker"`

	StartDurability string `help:"Durability required before a step's code starts: memory (Redis's reply), disk (Redis 7.2 or newer with appendonly) or replica (one replica)." enum:"memory,disk,replica" default:"memory" placeholder:"WHERE" group:"Worker"`
}

// queueName matches valid names of queues, which become part of Redis keys, in braces.
var queueName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// checkQueue checks the flags that name the queues of a fleet.
func checkQueue(name string, n int) error {
	if !queueName.MatchString(name) {
		return exit.Usagef("--queue %q is not a name; use letters, digits, '.', '_' and '-', 64 at most", name)
	}
	if n > wire.MaxQueues {
		return exit.Usagef("--queues %d is too large; use at most %d", n, wire.MaxQueues)
	}
	return nil
}

// retention returns the bounds on kept results.
func (f workerFlags) retention() (fleet.Retention, error) {
	size, err := humanize.ParseBytes(f.KeepBytes)
	if err != nil || size > math.MaxInt64 {
		return fleet.Retention{}, exit.Usagef("--keep-bytes %q is not a size; write it like 64MiB", f.KeepBytes)
	}
	return fleet.Retention{Age: f.Keep, Count: f.KeepResults, Bytes: int64(size)}, nil
}

// Help is the long text of kizen-sidecar worker --help.
func (workerCommand) Help() string {
	return `Takes executions from a queue in Redis (hibiken/asynq) that many machines share: tasks of type kizen:execution, with the body of POST /executions as payload. A step's code starts at most once, even if a worker or Redis dies; docs/fleet.md explains how.

Anyone who can write to the queue can run steps for every business: protect it with Redis's access control.

Examples:
  kizen-sidecar worker --redis-url redis://127.0.0.1:6379/0 --api-root http://127.0.0.1:8080/api
  kizen-sidecar worker --redis-url rediss://redis:6379/0 --webhook-secret-file webhook.secret --slots 16

SIGTERM drains: no new executions are taken, running steps finish within --drain-timeout, executions that have not started return to the queue, exit code 0.`
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

// workerService is the running worker.
type workerService struct {
	parts    *daemonParts
	worker   *fleet.Worker
	draining chan struct{}
	// unwatch stops reading the queue for the metrics, which needs Redis.
	unwatch func()
}

// prepare checks everything that the flags name.
func (c *workerCommand) prepare(ctx context.Context, app *app) (*workerService, error) {
	if err := checkQueue(c.Queue, c.Queues); err != nil {
		return nil, err
	}
	retention, err := c.retention()
	if err != nil {
		return nil, err
	}
	if c.RedisURL == "" {
		return nil, exit.Usagef("no redis given; name the Redis of the queue with --redis-url")
	}
	parts, err := c.open(ctx, app)
	if err != nil {
		return nil, err
	}
	s := &workerService{parts: parts, draining: make(chan struct{})}
	d := parts.daemon
	s.worker = fleet.NewWorker(fleet.Config{
		Redis: d.Host.Redis(), Queue: c.Queue, Queues: c.Queues, Slots: c.Slots, Lease: c.Lease, Attempts: c.Attempts, Retention: retention,
		Durability: fleet.Durability(c.StartDurability), Revoke: d.Host.Revoke, Ready: s.ready, Try: s.try,
		Prepare: execution.Queued(parts.checked.engine, parts.secrets, parts.limits), Run: d.Host.Executions.Run,
		Sender:  d.Callbacks.Sender(),
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

// state returns the load of this worker for the metrics.
func (s *workerService) state() telemetry.State {
	running, waiting := s.worker.Load()
	return telemetry.State{Queue: waiting, SlotsUsed: running, SlotsTotal: s.parts.daemon.Slots,
		Ready: s.parts.daemon.Warm.Ready()}
}

// serve works until ctx ends, then drains: it takes nothing new, and lets executions finish.
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
			close(s.draining) // after "not ready" is visible, the worker takes no more executions
			s.worker.Shutdown(limited)
		},
	})
}

// accepting returns why no executions are accepted.
func (s *workerService) accepting() error {
	select {
	case <-s.draining:
		return errors.New("the worker shuts down")
	default:
		return s.worker.Taking()
	}
}

// ready returns which of the worker's own readiness checks fails. It omits Redis, because the worker cannot take
// executions without it anyway, and accepting, which depends on this result.
func (s *workerService) ready(ctx context.Context) error {
	for name, check := range s.parts.daemon.Checks() {
		if err := check(ctx); err != nil {
			return fmt.Errorf("not ready: %s: %w", name, err)
		}
	}
	return nil
}

// try starts an interpreter as an execution does, and discards it.
func (s *workerService) try(ctx context.Context) error {
	prepared, err := s.parts.daemon.Warm.Prepare(ctx, runner.DefaultRuntime, s.parts.limits)
	if err != nil {
		return err
	}
	prepared.Discard()
	return nil
}
