package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"time"

	"github.com/alecthomas/kong"

	"github.com/kizen/kizen-sidecar/internal/flagfile"
	"github.com/kizen/kizen-sidecar/internal/hosts"
	"github.com/kizen/kizen-sidecar/internal/queue"
	"github.com/kizen/kizen-sidecar/internal/serve"
	"github.com/kizen/kizen-sidecar/internal/tombstone"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// serveCommand is kizen-sidecar serve.
type serveCommand struct {
	listenFlags
	queueFlags
	daemonFlags
	targetFlags
}

// listenFlags say where serve listens, and to whom.
type listenFlags struct {
	Listen  string `help:"Address of the API." default:"127.0.0.1:8378" placeholder:"HOST:PORT" group:"Serve"`
	UI      bool   `name:"ui" help:"Serve the page of executions, and a scratch pad, at /ui/ of the API, for those who may call." group:"Serve"`
	Callers string `help:"YAML list of the callers. Without it serve can only listen on a loopback address, and accepts the token of --token-file." placeholder:"FILE" group:"Serve"`

	TokenFile      string `help:"File of the token that requests must carry where --callers is not given. If it does not exist, serve creates it. Default: kizen-sidecar/serve.token in $XDG_RUNTIME_DIR, or else in the user's cache directory." placeholder:"FILE" group:"Serve"`
	AllowAnonymous bool   `help:"Accept requests without a token where --callers is not given: every program of this machine may then run steps for every business." group:"Serve"`

	TLSCert  string `help:"PEM file of the certificate that the API is served with." placeholder:"FILE" group:"Serve"`
	TLSKey   string `help:"PEM file of that certificate's key." placeholder:"FILE" group:"Serve"`
	ClientCA string `name:"client-ca" help:"PEM file of the certificate authority that callers' certificates are verified with." placeholder:"FILE" group:"Serve"`
}

// queueFlags bound what waits for a slot.
type queueFlags struct {
	QueueDepth   int           `help:"Executions that may wait for a slot. Default: sixteen for each slot." default:"-1" placeholder:"N" group:"Serve"`
	QueueTimeout time.Duration `help:"Time that an execution may wait for a slot." default:"30s" placeholder:"DURATION" group:"Serve"`
}

// fill puts in what was left out, and checks the rest.
func (f *queueFlags) fill(slots int) error {
	if f.QueueDepth == -1 {
		f.QueueDepth = 16 * slots
	}
	switch {
	case f.QueueDepth < 0:
		return usagef("--queue-depth must not be negative")
	case f.QueueTimeout <= 0:
		return usagef("--queue-timeout must be positive")
	}
	return nil
}

// Help is the long text of kizen-sidecar serve --help.
func (serveCommand) Help() string {
	return `Runs steps for an orchestrator: POST /api/coderunner/run waits for the result, POST /executions answers at once; /openapi.json describes both. Every execution has a key, a proxy, a sandbox and a deadline of its own.

Without --callers the API can only listen on loopback, wants the token of --token-file, and takes business and user from the X-BUSINESS-ID and X-USER-ID headers.

Examples:
  kizen-sidecar serve --api-root http://127.0.0.1:8080/api --token-file serve.token
  curl -s http://127.0.0.1:8378/api/coderunner/run -H "Authorization: Bearer $(cat serve.token)" --json '{"runtime": "python-3-13", "user_script": "outputs.log(1)"}'
  kizen-sidecar serve --config serve.yaml --print-config
  kizen-sidecar serve --listen 0.0.0.0:8378 --callers callers.yaml --tls-cert tls.crt --tls-key tls.key

SIGTERM drains: nothing new is started, running steps finish within --drain-timeout, keys are taken back, exit code 0.`
}

// Run is called by kong.
func (c *serveCommand) Run(ctx context.Context, app *app, command *kong.Context) error {
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
	defer s.daemon.close()
	return s.serve(ctx)
}

// fill puts in what was left out of the load, and checks the rest.
func (c *serveCommand) fill() error {
	if err := c.operationFlags.fill(); err != nil {
		return err
	}
	return c.queueFlags.fill(c.Slots)
}

// service is what serve runs.
type service struct {
	daemon     *daemon
	command    *serveCommand
	queue      *queue.Queue
	executions *serve.Registry
	api        *http.Server
	token      runner.Secret // of --token-file; empty where it is not used
}

// prepare checks everything that the flags name, and listens nowhere yet.
func (c *serveCommand) prepare(ctx context.Context, app *app) (*service, error) {
	callers, token, err := c.callers()
	if err != nil {
		return nil, err
	}
	encryption, err := c.tls()
	if err != nil {
		return nil, err
	}
	waiting, err := queue.New(c.Slots, c.QueueDepth)
	if err != nil {
		return nil, err
	}
	shared, err := c.open(ctx, app)
	if err != nil {
		return nil, err
	}
	c.announceCallers(app.log)
	s := &service{daemon: shared, command: c, queue: waiting, token: token}
	s.daemon.telemetry.Metrics().Watch(s.state)
	s.executions = serve.NewRegistry(serve.RegistryConfig{
		Queue: s.queue, Run: s.daemon.host.Run, Abandoned: s.daemon.host.Abandon, QueueTimeout: c.QueueTimeout,
		Finished: s.daemon.callback.Finished, Log: app.log,
		KeepBytes: s.daemon.memory.kept, WaitingBytes: s.daemon.memory.waiting,
	})
	guard := s.daemon.guard()
	s.api = &http.Server{
		Handler: guard.Require(s.control(callers, certifiedNames(encryption))), ConnContext: guard.ConnContext, TLSConfig: encryption,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
	}
	return s, nil
}

func (s *service) control(callers *serve.Callers, certified []string) http.Handler {
	var once serve.Once
	if s.daemon.host.store.embedded == nil {
		once = tombstone.Store{Redis: s.daemon.host.store}
	}
	return serve.NewServer(serve.Config{
		Hosts: s.daemon.hosts(certified...), Once: once, ArrivingBytes: s.daemon.memory.arriving,
		Executions: s.executions, Queue: s.queue, Callers: callers, Limits: s.daemon.limits, Secrets: s.daemon.secrets, Log: s.daemon.log,
		Callbacks: s.daemon.callback != nil,
		UI:        s.command.UI, APIRoot: s.daemon.checked.proxy.APIRoot.String(),
		CheckIdentity: func(id minter.Identity) error { return checkType(s.daemon.checked.engine, id) },
	}).Handler()
}

// certifiedNames are the DNS names in the certificate of a TLS configuration.
func certifiedNames(config *tls.Config) []string {
	if config == nil {
		return nil
	}
	return config.Certificates[0].Leaf.DNSNames // LoadX509KeyPair fills Leaf in
}

// state is what the metrics say of the load.
func (s *service) state() telemetry.State {
	load := s.queue.Stats()
	return telemetry.State{Queue: load.Waiting, SlotsUsed: load.Used, SlotsTotal: load.Slots, Ready: s.daemon.warm.Ready()}
}

// serve answers until ctx ends, then drains: what is new is refused, and what
// runs finishes.
func (s *service) serve(ctx context.Context) error {
	api, err := bind("--listen", s.command.Listen, s.command.Slots+s.command.QueueDepth, s.api)
	if err != nil {
		return err
	}
	operators, err := s.daemon.operators(func() error {
		if s.queue.Stats().Draining {
			return queue.ErrDraining
		}
		return nil
	})
	if err != nil {
		_ = api.listener.Close()
		return err
	}
	return s.daemon.work(ctx, listeners{
		api: api, operators: operators, token: s.token, tokenFile: s.command.TokenFile,
		running: func() int { return s.queue.Stats().Used },
		drain: func(limited context.Context) {
			if err := s.executions.Shutdown(limited); err != nil {
				s.daemon.log.Warn("the drain timeout is over", "error", err)
			}
		},
	})
}

// callers decides who may call. The token is empty unless it is the one of --token-file.
func (c *serveCommand) callers() (callers *serve.Callers, token runner.Secret, err error) {
	if c.Callers == "" {
		return c.localCallers()
	}
	if c.TokenFile != "" || c.AllowAnonymous {
		return nil, token, usagef("--token-file and --allow-anonymous are for serve without --callers; leave them out")
	}
	data, err := readFile("callers file", c.Callers)
	if err != nil {
		return nil, token, err
	}
	if callers, err = serve.LoadCallers(data); err != nil {
		return nil, token, usagef("callers file %q: %w", c.Callers, err)
	}
	return callers, token, nil
}

// localCallers are those of this machine.
func (c *serveCommand) localCallers() (callers *serve.Callers, token runner.Secret, err error) {
	if err := checkAddress("--listen", c.Listen); err != nil {
		return nil, token, err
	}
	if !hosts.IsLoopback(c.Listen) {
		return nil, token, usagef("--listen %s can be reached from other machines; say who may call with --callers, or listen on 127.0.0.1", c.Listen)
	}
	defaults, err := c.resolve()
	if err != nil {
		return nil, token, err
	}
	if c.AllowAnonymous {
		if c.TokenFile != "" {
			return nil, token, usagef("--allow-anonymous accepts requests without a token; leave it or --token-file out")
		}
		return serve.AnonymousCallers(defaults.identity()), token, nil
	}
	if c.TokenFile == "" {
		if c.TokenFile, err = defaultTokenFile(); err != nil {
			return nil, token, err
		}
	}
	if token, err = loadOrCreateToken(c.TokenFile); err != nil {
		return nil, token, err
	}
	return serve.LocalCallers(token, defaults.identity()), token, nil
}

// announceCallers says in the log what is open about who may call.
func (c *serveCommand) announceCallers(log *slog.Logger) {
	switch {
	case c.AllowAnonymous:
		log.Warn("every program of this machine may run steps for every business; leave --allow-anonymous out to want a token")
		c.announce(log)
	case c.Callers == "":
		c.announce(log)
	case c.TLSCert == "" && !hosts.IsLoopback(c.Listen):
		log.Warn("tokens of callers travel without TLS; set --tls-cert, or end TLS in front of this")
	}
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
		return nil, usagef("client CA %q contains no PEM certificate", f.ClientCA)
	}
	// A caller may show a token instead: who shows neither is refused by name.
	config.ClientAuth = tls.VerifyClientCertIfGiven
	return config, nil
}
