package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"time"

	"github.com/alecthomas/kong"

	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/admin"
	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/control"
	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/executions"
	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/queue"
	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/request"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/pool"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// serveCommand is kizen-sidecar serve.
type serveCommand struct {
	configFlags
	listenFlags
	slotFlags
	webhookFlags
	sandboxFlags
	limitFlags
	targetFlags
	authorityFlags
}

// listenFlags say where serve listens, and to whom.
type listenFlags struct {
	Listen      string `help:"Address of the API." default:"127.0.0.1:8378" placeholder:"HOST:PORT" group:"Serve"`
	AdminListen string `help:"Address of /healthz, /readyz and /metrics; empty: none." default:"127.0.0.1:9091" placeholder:"HOST:PORT" group:"Serve"`
	UI          bool   `name:"ui" help:"Serve the page of executions, and a scratch pad, at /ui/ of the API, for those who may call." group:"Serve"`
	ReadyFile   string `help:"Write a JSON object with url and admin_url here once requests are answered." placeholder:"FILE" group:"Serve"`
	Callers     string `help:"YAML list of those who may call. Without it only a loopback address can be listened on, and every program of this machine may call." placeholder:"FILE" group:"Serve"`
	TLSCert     string `help:"PEM file of the certificate that the API is served with." placeholder:"FILE" group:"Serve"`
	TLSKey      string `help:"PEM file of that certificate's key." placeholder:"FILE" group:"Serve"`
	ClientCA    string `name:"client-ca" help:"PEM file of the certificate authority that callers' certificates are verified with." placeholder:"FILE" group:"Serve"`
	SecretsFile string `help:"JSON object of the secrets that steps may be granted: {\"BUSINESS\": {\"NAME\": \"value\"}}." placeholder:"FILE" group:"Serve"`
}

// slotFlags bound how much runs, and waits, at once.
type slotFlags struct {
	Slots        int           `help:"Executions at once. Default: four for each core." placeholder:"N" group:"Load"`
	QueueDepth   int           `help:"Executions that may wait for a slot. Default: sixteen for each slot." default:"-1" placeholder:"N" group:"Load"`
	QueueTimeout time.Duration `help:"Time that an execution may wait for a slot." default:"30s" placeholder:"DURATION" group:"Load"`
	Warm         int           `help:"Interpreters that wait for an execution, loaded, for each runtime that was asked for; each is used once. 0: none." default:"2" placeholder:"N" group:"Load"`
	DrainTimeout time.Duration `help:"Time that running steps get to finish after SIGTERM." default:"60s" placeholder:"DURATION" group:"Load"`
}

// slots are the flags, checked and filled in.
func (f slotFlags) slots() (*queue.Queue, error) {
	if f.Slots == 0 {
		f.Slots = 4 * runtime.NumCPU()
	}
	if f.QueueDepth == -1 {
		f.QueueDepth = 16 * f.Slots
	}
	if f.Warm < 0 {
		return nil, usagef("--warm must not be negative")
	}
	if f.QueueTimeout <= 0 || f.DrainTimeout < 0 {
		return nil, usagef("--queue-timeout must be positive, and --drain-timeout not negative")
	}
	q, err := queue.New(f.Slots, f.QueueDepth)
	if err != nil {
		return nil, usagef("--slots and --queue-depth: %w", err)
	}
	return q, nil
}

// Help is the long text of kizen-sidecar serve --help.
func (serveCommand) Help() string {
	return `Runs steps for an orchestrator: POST /api/coderunner/run waits for the result, POST /executions answers at once; /openapi.json describes both. Every execution has a key, a proxy, a sandbox and a deadline of its own.

Without --callers the API can only listen on loopback, and takes business and user from the X-BUSINESS-ID and X-USER-ID headers.

Examples:
  kizen-sidecar serve --api-root http://127.0.0.1:8080/api
  curl -s http://127.0.0.1:8378/api/coderunner/run --json '{"runtime": "python-3-13", "user_script": "outputs.log(1)"}'
  kizen-sidecar serve --config serve.yaml --print-config
  kizen-sidecar serve --listen 0.0.0.0:8378 --callers callers.yaml --tls-cert tls.crt --tls-key tls.key

SIGTERM drains: nothing new is started, running steps finish within --drain-timeout, keys are taken back, exit code 0.`
}

// Run is called by kong.
func (c *serveCommand) Run(ctx context.Context, app *app, command *kong.Context) error {
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

// service is what serve runs.
type service struct {
	command    *serveCommand
	station    *station
	steps      *runner.Runner
	warm       *pool.Pool
	queue      *queue.Queue
	executions *executions.Service
	callback   *callbacks
	api        *http.Server
	admin      *http.Server
	keys       *minter.KeySet
	telemetry  *telemetry.Telemetry
	unwatch    func()
	flush      func()
}

// prepare checks everything that the flags name, and opens nothing but Redis
// and the audit.
func (c *serveCommand) prepare(ctx context.Context, app *app) (*service, error) {
	s := &service{command: c}
	callers, err := c.callers(app)
	if err != nil {
		return nil, err
	}
	secrets, err := loadSecrets(c.SecretsFile)
	if err != nil {
		return nil, err
	}
	limits, err := c.limits()
	if err != nil {
		return nil, err
	}
	if s.queue, err = c.slots(); err != nil {
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
	if s.telemetry, s.flush, err = app.observe(ctx, c.AdminListen != "", false); err != nil {
		return nil, err
	}
	granted.telemetry = s.telemetry
	s.warm = pool.New(pool.Config{Source: s.steps, Size: c.Warm, Limits: limits, Log: app.log})
	if s.station, err = granted.open(s.warm); err != nil {
		s.flush()
		return nil, err
	}
	s.unwatch = s.telemetry.Metrics().Watch(s.state)
	s.executions = executions.NewService(executions.Config{
		Queue: s.queue, Run: s.run, Abandoned: s.station.Abandon, QueueTimeout: c.QueueTimeout,
		Finished: s.callback.finished, Log: app.log,
	})
	api := control.NewServer(control.Config{
		Executions: s.executions, Queue: s.queue, Callers: callers, Limits: limits, Secrets: secrets, Log: app.log,
		Callbacks: s.callback != nil,
		UI:        c.UI, APIRoot: granted.proxy.APIRoot.String(),
		CheckIdentity: func(id minter.Identity) error { return checkType(granted.engine, id) },
	})
	s.api = &http.Server{Handler: api.Handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
	if s.api.TLSConfig, err = c.tls(); err != nil {
		s.close()
		return nil, err
	}
	s.admin = &http.Server{
		Handler:           admin.Handler(admin.Config{Ready: s.checks(), Metrics: s.telemetry.Handler(), Details: func() any { return s.steps.Sandbox() }}),
		ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
	}
	return s, nil
}

// run carries one execution, and tells watch what its step does.
func (s *service) run(ctx context.Context, r execution.Request, watch executions.Watcher) (execution.Outcome, error) {
	r.Job.Observer = watch
	return s.station.Run(ctx, r)
}

func (s *service) close() {
	s.warm.Close()
	s.callback.close(callbackGrace)
	s.station.close()
	s.flush() // with a last look at the load
	s.unwatch()
}

// callbackGrace is how long the last callbacks may take.
const callbackGrace = 5 * time.Second

// sandboxReady says which layers a sandbox lacks that must have them all.
func sandboxReady(steps *runner.Runner, mode string) error {
	if missing := steps.Sandbox().Missing(); len(missing) > 0 && mode == "required" {
		return fmt.Errorf("missing: %v", missing)
	}
	return nil
}

// state is what the metrics say of the load.
func (s *service) state() telemetry.State {
	load := s.queue.Stats()
	return telemetry.State{Queue: load.Waiting, SlotsUsed: load.Used, SlotsTotal: load.Slots, Ready: s.warm.Ready()}
}

// checks are what /readyz asks.
func (s *service) checks() map[string]admin.Check {
	return map[string]admin.Check{
		"redis":   func(ctx context.Context) error { return s.station.store.Ping(ctx).Err() },
		"sandbox": func(context.Context) error { return sandboxReady(s.steps, s.command.Sandbox) },
		"accepting": func(context.Context) error {
			if s.queue.Stats().Draining {
				return queue.ErrDraining
			}
			return nil
		},
	}
}

// serve answers until ctx ends, then drains.
func (s *service) serve(ctx context.Context, app *app) error {
	defer reloadKeys(ctx, s.keys, app.log)()
	servers, err := s.listen()
	if err != nil {
		return err
	}
	failed := make(chan error, len(servers))
	for _, running := range servers {
		go func() { failed <- running.serve() }()
	}
	err = s.announce(app, servers)
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-failed:
			failed <- nil
		}
	}
	return errors.Join(err, s.drain(ctx, app, servers, failed))
}

// drain refuses what is new, lets what runs finish, and ends the listeners:
// that of the operators last, who watch it.
func (s *service) drain(ctx context.Context, app *app, servers []*server, failed <-chan error) error {
	app.log.Info("draining", "running", s.queue.Stats().Used, "waiting", s.queue.Stats().Waiting, "drain_timeout", s.command.DrainTimeout)
	ctx = context.WithoutCancel(ctx)
	limited, cancel := context.WithTimeout(ctx, s.command.DrainTimeout)
	defer cancel()
	if err := s.executions.Shutdown(limited); err != nil {
		app.log.Warn("the drain timeout is over", "error", err)
	}
	grace, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	for _, running := range servers {
		if err := running.Shutdown(grace); err != nil {
			_ = running.Close() // whoever still reads is cut off
		}
	}
	var errs []error
	for range servers {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

// server is an HTTP server and where it listens.
type server struct {
	*http.Server
	listener net.Listener
	url      string
}

func (s *server) serve() error {
	err := s.Serve(s.listener)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve on %s: %w", s.listener.Addr(), err)
}

// listen binds the API's address, and the operators'.
func (s *service) listen() ([]*server, error) {
	api, err := bind("--listen", s.command.Listen, s.api)
	if err != nil {
		return nil, err
	}
	if s.command.AdminListen == "" {
		return []*server{api}, nil
	}
	operators, err := bind("--admin-listen", s.command.AdminListen, s.admin)
	if err != nil {
		_ = api.listener.Close()
		return nil, err
	}
	return []*server{api, operators}, nil
}

func bind(flag, address string, with *http.Server) (*server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w; free it, or choose another", flag, address, unwrapListen(err))
	}
	scheme := "http"
	if with.TLSConfig != nil {
		listener, scheme = tls.NewListener(listener, with.TLSConfig), "https"
	}
	return &server{with, listener, scheme + "://" + listener.Addr().String()}, nil
}

// unwrapListen takes away the address that a message of ours says itself.
func unwrapListen(err error) error {
	var cause *net.OpError
	if errors.As(err, &cause) && cause.Err != nil {
		return cause.Err
	}
	return err
}

// announce tells the log, and whoever waits for the file, where the API is.
func (s *service) announce(app *app, servers []*server) error {
	ready := map[string]string{"url": servers[0].url}
	attributes := []any{"url", servers[0].url, "slots", s.queue.Stats().Slots}
	if len(servers) > 1 {
		ready["admin_url"] = servers[1].url
		attributes = append(attributes, "admin_url", servers[1].url)
	}
	if s.command.ReadyFile != "" {
		if err := writeJSONFile(s.command.ReadyFile, ready); err != nil {
			return fmt.Errorf("write --ready-file %q: %w", s.command.ReadyFile, unwrapPath(err))
		}
	}
	app.log.Info("serving", attributes...)
	return nil
}

// callers are those who may call. Everybody may, where nobody else can.
func (c *serveCommand) callers(app *app) (*control.Callers, error) {
	if c.Callers == "" {
		if !control.OnLoopback(c.Listen) {
			return nil, usagef("--listen %s can be reached from other machines; say who may call with --callers, or listen on 127.0.0.1", c.Listen)
		}
		defaults, err := c.resolve(app.log)
		return control.OpenCallers(defaults.identity()), err
	}
	data, err := readFile("callers file", c.Callers)
	if err != nil {
		return nil, err
	}
	callers, err := control.LoadCallers(data)
	if err != nil {
		return nil, usagef("callers file %q: %w", c.Callers, err)
	}
	if c.TLSCert == "" && !control.OnLoopback(c.Listen) {
		app.log.Warn("tokens of callers travel without TLS; set --tls-cert, or end TLS in front of this")
	}
	return callers, nil
}

// loadSecrets reads the secrets of businesses, none without a file.
func loadSecrets(name string) (request.SecretsByBusiness, error) {
	if name == "" {
		return nil, nil
	}
	data, err := readFile("secrets file", name)
	if err != nil {
		return nil, err
	}
	secrets, err := request.ParseSecrets(data)
	if err != nil {
		return nil, usagef("secrets file %q %w", name, err)
	}
	return secrets, nil
}

// tls is nil where the API is served in plain.
func (f listenFlags) tls() (*tls.Config, error) {
	if f.TLSCert == "" && f.TLSKey == "" {
		if f.ClientCA != "" {
			return nil, usagef("--client-ca needs --tls-cert and --tls-key")
		}
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(f.TLSCert, f.TLSKey)
	if err != nil {
		return nil, usagef("cannot use --tls-cert and --tls-key: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}}
	if f.ClientCA == "" {
		return config, nil
	}
	pem, err := readFile("client CA", f.ClientCA)
	if err != nil {
		return nil, err
	}
	config.ClientCAs = x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, usagef("client CA %q holds no PEM certificate", f.ClientCA)
	}
	// A caller may show a token instead: who shows neither is refused by name.
	config.ClientAuth = tls.VerifyClientCertIfGiven
	return config, nil
}
