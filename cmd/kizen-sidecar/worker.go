package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"runtime"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/admin"
	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/fleet"
	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/request"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/runner"
)

// workerCommand is kizen-sidecar worker.
type workerCommand struct {
	configFlags
	workerFlags
	webhookFlags
	sandboxFlags
	limitFlags
	authorityFlags
}

// workerFlags say what a worker takes, and how much.
type workerFlags struct {
	Queue        string        `help:"Queue that executions are taken from." default:"kizen" placeholder:"NAME" group:"Worker"`
	Slots        int           `help:"Executions at once. Default: four for each core." placeholder:"N" group:"Worker"`
	Lease        time.Duration `help:"Time without a word after which a worker may be dead; after twice that its work is taken over." default:"10s" placeholder:"DURATION" group:"Worker"`
	Attempts     int64         `help:"How often an execution is prepared whose code does not come to start, before it is kept as a dead letter." default:"5" placeholder:"N" group:"Worker"`
	Keep         time.Duration `help:"How long results are kept in Redis." default:"24h" placeholder:"DURATION" group:"Worker"`
	DrainTimeout time.Duration `help:"Time that running steps get to finish after SIGTERM." default:"60s" placeholder:"DURATION" group:"Worker"`
	AdminListen  string        `help:"Address of /healthz, /readyz and /metrics; empty: none." default:"127.0.0.1:9091" placeholder:"HOST:PORT" group:"Worker"`
	ReadyFile    string        `help:"Write a JSON object with admin_url here once work is taken." placeholder:"FILE" group:"Worker"`
	SecretsFile  string        `help:"JSON object of the secrets that steps may be granted: {\"BUSINESS\": {\"NAME\": \"value\"}}." placeholder:"FILE" group:"Worker"`
}

// queueName is what a queue may be called: it is part of the names of Redis
// keys, in braces.
var queueName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (f *workerFlags) fill() error {
	if f.Slots == 0 {
		f.Slots = 4 * runtime.NumCPU()
	}
	switch {
	case !queueName.MatchString(f.Queue):
		return usagef("--queue %q is not a name; use letters, digits, '.', '_' and '-', 64 at most", f.Queue)
	case f.Slots < 1 || f.Attempts < 1:
		return usagef("--slots and --attempts must be positive")
	case f.Lease < 100*time.Millisecond || f.Keep < time.Second || f.DrainTimeout < 0:
		return usagef("--lease must be at least 100ms, --keep at least 1s, and --drain-timeout not negative")
	}
	return nil
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
	if c.PrintConfig {
		return printConfig(app.stdout, command)
	}
	s, err := c.prepare(ctx, app)
	if err != nil {
		return err
	}
	defer s.close()
	return s.serve(ctx, app)
}

// workerService is what worker runs.
type workerService struct {
	command  *workerCommand
	station  *station
	steps    *runner.Runner
	worker   *fleet.Worker
	callback *callbacks
	keys     *minter.KeySet
	draining chan struct{}
	flush    func()
}

// prepare checks everything that the flags name.
func (c *workerCommand) prepare(ctx context.Context, app *app) (*workerService, error) {
	s := &workerService{command: c, draining: make(chan struct{})}
	if err := c.fill(); err != nil {
		return nil, err
	}
	if c.RedisURL == "" {
		return nil, usagef("no redis given; name the one that holds the queue with --redis-url")
	}
	secrets, err := loadSecrets(c.SecretsFile)
	if err != nil {
		return nil, err
	}
	limits, err := c.limits()
	if err != nil {
		return nil, err
	}
	if s.callback, err = c.callbacks(app.log); err != nil {
		return nil, err
	}
	granted, err := c.check(app.log)
	if err != nil {
		return nil, err
	}
	s.keys = granted.keys
	if s.steps, err = runner.New(c.runnerConfig(app.log)); err != nil {
		return nil, err
	}
	if granted.telemetry, s.flush, err = app.observe(ctx, false, false); err != nil {
		return nil, err
	}
	if s.station, err = granted.open(s.steps); err != nil {
		s.flush()
		return nil, err
	}
	s.worker = fleet.NewWorker(fleet.Config{
		Redis: s.station.store, Queue: c.Queue, Slots: c.Slots, Lease: c.Lease, Attempts: c.Attempts, Keep: c.Keep,
		Prepare: preparing(secrets, limits, granted.engine), Run: s.station.Run, Sender: s.callback.sending(), Log: app.log,
	})
	return s, nil
}

// preparing turns what is delivered into what is run. Whoever may write to the
// queue is trusted to name business and user.
func preparing(secrets request.SecretsByBusiness, limits runner.Limits, engine *policy.Engine) func(request.Body) (execution.Request, error) {
	return func(body request.Body) (execution.Request, error) {
		if body.AccountType == "" {
			body.AccountType = "service_automation"
		}
		id := minter.Identity{BusinessID: body.BusinessID, AccountID: body.UserID, AccountType: body.AccountType, ExecutionID: body.ExecutionID}
		var refused runner.FieldErrors
		if !request.ValidID(body.UserID) {
			refused.Add("must be an id: letters, digits, '.', '_', ':' and '-', 128 at most", "user_id")
		}
		refused.Merge(checkType(engine, id), "account_type")
		job, limits, err := body.Job(body.BusinessID, secrets, limits)
		refused.Merge(err)
		return execution.Request{Identity: id, Name: body.Name, Job: job, Limits: limits}, refused.Err()
	}
}

func (s *workerService) close() {
	s.station.close()
	s.flush()
}

// serve works until ctx ends, then drains.
func (s *workerService) serve(ctx context.Context, app *app) error {
	defer reloadKeys(ctx, s.keys, app.log)()
	servers, err := s.listen()
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	for _, running := range servers {
		go func() { failed <- running.serve() }()
	}
	if err = s.worker.Start(ctx); err == nil {
		err = s.announce(app, servers)
	}
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-failed:
			failed <- nil
		}
	}
	s.drain(ctx, app)
	for _, running := range servers {
		_ = running.Close() // operators have seen the end
		err = errors.Join(err, <-failed)
	}
	return err
}

func (s *workerService) drain(ctx context.Context, app *app) {
	app.log.Info("draining", "running", s.worker.Running(), "drain_timeout", s.command.DrainTimeout)
	s.worker.Stop()
	close(s.draining) // whoever reads that this one is not ready may rely on it taking nothing more
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.command.DrainTimeout)
	defer cancel()
	s.worker.Shutdown(limited)
}

// listen binds the operators' address, if there is one.
func (s *workerService) listen() ([]*server, error) {
	if s.command.AdminListen == "" {
		return nil, nil
	}
	handler := &http.Server{
		Handler:           admin.Handler(admin.Config{Ready: s.checks(), Metrics: s.metrics(), Details: func() any { return s.steps.Sandbox() }}),
		ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
	}
	operators, err := bind("--admin-listen", s.command.AdminListen, handler)
	if err != nil {
		return nil, err
	}
	return []*server{operators}, nil
}

// metrics are what fleets are scaled by.
func (s *workerService) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	labels := prometheus.Labels{"queue": s.command.Queue}
	for _, gauge := range []struct {
		name, help string
		value      func() float64
	}{
		{"kizen_fleet_queue_depth", "Executions that wait in the queue, for whichever worker.", s.depth},
		{"kizen_worker_running", "Executions under way in this worker.", func() float64 { return float64(s.worker.Running()) }},
		{"kizen_worker_slots", "Executions that this worker runs at once.", func() float64 { return float64(s.command.Slots) }},
	} {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: gauge.name, Help: gauge.help, ConstLabels: labels}, gauge.value))
	}
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

// depth is NaN while Redis does not say it: no fleet must shrink for that.
func (s *workerService) depth() float64 {
	depth, err := s.worker.Depth()
	if err != nil {
		return math.NaN()
	}
	return float64(depth)
}

func (s *workerService) checks() map[string]admin.Check {
	return map[string]admin.Check{
		"redis":   func(ctx context.Context) error { return s.station.store.Ping(ctx).Err() },
		"sandbox": func(context.Context) error { return sandboxReady(s.steps, s.command.Sandbox) },
		"accepting": func(context.Context) error {
			select {
			case <-s.draining:
				return errors.New("the worker shuts down")
			default:
				return nil
			}
		},
	}
}

// announce tells the log, and whoever waits for the file, that work is taken.
func (s *workerService) announce(app *app, servers []*server) error {
	ready := map[string]string{"queue": s.command.Queue}
	if len(servers) > 0 {
		ready["admin_url"] = servers[0].url
	}
	if s.command.ReadyFile != "" {
		if err := writeJSONFile(s.command.ReadyFile, ready); err != nil {
			return fmt.Errorf("write --ready-file %q: %w", s.command.ReadyFile, unwrapPath(err))
		}
	}
	app.log.Info("taking work", "queue", s.command.Queue, "slots", s.command.Slots, "admin_url", ready["admin_url"])
	return nil
}
