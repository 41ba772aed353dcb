package main

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/alecthomas/kong"

	"github.com/kizen/kizen-sidecar/internal/daemon"
	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/exit"
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

// listenFlags configure where serve listens, and to whom.
type listenFlags struct {
	Listen  string `help:"Address of the API." default:"127.0.0.1:8378" placeholder:"HOST:PORT" group:"Serve"`
	UI      bool   `name:"ui" help:"Serve the page of executions, and a scratch pad, at /ui/ of the API, to authorised callers." group:"Serve"`
	Callers string `help:"YAML list of callers. Without it, serve listens only on loopback and accepts the token of --token-file." placeholder:"FILE" group:"Serve"`

	TokenFile      string `help:"File with the token that requests must carry if --callers is not given. If it does not exist, serve creates it. Default: kizen-sidecar/serve.token in $XDG_RUNTIME_DIR, or else in the user's cache directory." placeholder:"FILE" group:"Serve"`
	AllowAnonymous bool   `help:"Accept requests without a token if --callers is not given. Then every program on this machine may run steps for every business." group:"Serve"`

	TLSCert  string `help:"PEM file of the API server's certificate." placeholder:"FILE" group:"Serve"`
	TLSKey   string `help:"PEM file of the key of --tls-cert." placeholder:"FILE" group:"Serve"`
	ClientCA string `name:"client-ca" help:"PEM file of the certificate authority that verifies callers' certificates." placeholder:"FILE" group:"Serve"`
}

// queueFlags bound the queue for slots.
type queueFlags struct {
	QueueDepth   int           `help:"Maximum number of executions that wait for a slot. Default: sixteen for each slot." default:"-1" least:"0" placeholder:"N" group:"Serve"`
	QueueTimeout time.Duration `help:"Maximum time that an execution waits for a slot." default:"30s" least:"1ms" placeholder:"DURATION" group:"Serve"`
}

// fill sets the defaults of unset flags.
func (f *queueFlags) fill(slots int) {
	if f.QueueDepth == -1 {
		f.QueueDepth = 16 * slots
	}
}

// Help is the long text of kizen-sidecar serve --help.
func (serveCommand) Help() string {
	return `Runs steps for an orchestrator: POST /api/coderunner/run waits for the result, POST /executions answers at once; /openapi.json describes both. Every execution has its own key, proxy, sandbox and deadline.

Without --callers the API listens only on loopback, requires the token of --token-file, and reads business and user from the X-BUSINESS-ID and X-USER-ID headers.

Examples:
  kizen-sidecar serve --api-root http://127.0.0.1:8080/api --token-file serve.token
  curl -s http://127.0.0.1:8378/api/coderunner/run -H "Authorization: Bearer $(cat serve.token)" --json '{"runtime": "python-3-13", "user_script": "outputs.log(1)"}'
  kizen-sidecar serve --config serve.yaml --print-config
  kizen-sidecar serve --listen 0.0.0.0:8378 --callers callers.yaml --tls-cert tls.crt --tls-key tls.key

SIGTERM drains: nothing new is started, running steps finish within --drain-timeout, keys are revoked, exit code 0.`
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
	defer s.parts.close()
	return s.serve(ctx)
}

// fill sets the defaults of unset flags, and checks the others.
func (c *serveCommand) fill() error {
	if err := c.operationFlags.fill(); err != nil {
		return err
	}
	c.queueFlags.fill(c.Slots)
	return nil
}

// service is the running serve.
type service struct {
	parts      *daemonParts
	command    *serveCommand
	queue      *queue.Queue
	executions *serve.Registry
	api        *http.Server
	token      runner.Secret // of --token-file; empty if it is not used
}

// prepare checks everything that the flags name, and does not listen yet.
func (c *serveCommand) prepare(ctx context.Context, app *app) (*service, error) {
	callers, token, err := c.callers()
	if err != nil {
		return nil, err
	}
	encryption, err := serve.TLSFiles{Cert: c.TLSCert, Key: c.TLSKey, ClientCA: c.ClientCA}.Config()
	if err != nil {
		return nil, err
	}
	waiting, err := queue.New(c.Slots, c.QueueDepth)
	if err != nil {
		return nil, err
	}
	parts, err := c.open(ctx, app)
	if err != nil {
		return nil, err
	}
	c.announceCallers(app.log)
	s := &service{parts: parts, command: c, queue: waiting, token: token}
	d := parts.daemon
	d.Telemetry.Metrics().Watch(s.state)
	s.executions = serve.NewRegistry(serve.RegistryConfig{
		Queue: s.queue, Run: d.Host.Executions.Run, Abandoned: d.Host.Executions.Abandon, QueueTimeout: c.QueueTimeout,
		Finished: d.Callbacks.Finished, Log: app.log, KeepBytes: parts.memory.Kept, WaitingBytes: parts.memory.Waiting,
	})
	guard := d.Guard()
	s.api = &http.Server{
		Handler:     guard.Require(s.control(callers, d.Names(serve.CertifiedNames(encryption)...))),
		ConnContext: guard.ConnContext, TLSConfig: encryption,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		// Unread bodies would otherwise take a megabyte for each connection.
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerConnection: 64 << 10, MaxReceiveBufferPerStream: 64 << 10},
	}
	return s, nil
}

func (s *service) control(callers *serve.Callers, names hosts.Names) http.Handler {
	d := s.parts.daemon
	var once serve.Once
	if !d.Host.Embedded() {
		once = tombstone.Store{Redis: d.Host.Redis()}
	}
	return serve.NewServer(serve.Config{
		Hosts: names, Once: once, ArrivingBytes: s.parts.memory.Arriving,
		Executions: s.executions, Queue: s.queue, Callers: callers, Limits: s.parts.limits, Secrets: s.parts.secrets,
		Log:       d.Log,
		Callbacks: d.Callbacks != nil,
		UI:        s.command.UI, APIRoot: s.parts.checked.proxy.APIRoot.String(),
		CheckIdentity: func(id minter.Identity) error { return execution.CheckType(s.parts.checked.engine, id) },
	}).Handler()
}

// state returns the load for the metrics.
func (s *service) state() telemetry.State {
	load := s.queue.Stats()
	return telemetry.State{Queue: load.Waiting, SlotsUsed: load.Used, SlotsTotal: load.Slots,
		Ready: s.parts.daemon.Warm.Ready()}
}

// serve serves until ctx ends, then drains: it refuses new executions and lets the running ones finish.
func (s *service) serve(ctx context.Context) error {
	api, err := daemon.Bind("--listen", s.command.Listen, s.command.Slots+s.command.QueueDepth, s.api)
	if err != nil {
		return err
	}
	admin, err := s.parts.daemon.Admin(s.queue.Accepting)
	if err != nil {
		api.Close()
		return err
	}
	return s.parts.daemon.Serve(ctx, daemon.Service{
		API: api, Admin: admin, Token: s.token, TokenFile: s.command.TokenFile,
		Running: func() int { return s.queue.Stats().Used },
		Drain: func(limited context.Context) {
			if err := s.executions.Shutdown(limited); err != nil {
				s.parts.daemon.Log.Warn("the drain timeout is over", "error", err)
			}
		},
	})
}

// callers returns who may call. token is empty unless --token-file is used.
func (c *serveCommand) callers() (callers *serve.Callers, token runner.Secret, err error) {
	if c.Callers == "" {
		return c.localCallers()
	}
	if c.TokenFile != "" || c.AllowAnonymous {
		return nil, token, exit.Usagef("--token-file and --allow-anonymous are for serve without --callers; omit them")
	}
	data, err := readFile("callers file", c.Callers)
	if err != nil {
		return nil, token, err
	}
	if callers, err = serve.LoadCallers(data); err != nil {
		return nil, token, exit.Usagef("callers file %q: %w", c.Callers, err)
	}
	return callers, token, nil
}

// localCallers returns the callers of this machine.
func (c *serveCommand) localCallers() (callers *serve.Callers, token runner.Secret, err error) {
	if err := daemon.CheckAddress("--listen", c.Listen); err != nil {
		return nil, token, err
	}
	if !hosts.IsLoopback(c.Listen) {
		return nil, token, exit.Usagef(
			"--listen %s can be reached from other machines; list the callers with --callers, or listen on 127.0.0.1", c.Listen,
		)
	}
	defaults, err := c.resolve()
	if err != nil {
		return nil, token, err
	}
	if c.AllowAnonymous {
		if c.TokenFile != "" {
			return nil, token, exit.Usagef("--allow-anonymous accepts requests without a token; omit it or --token-file")
		}
		return serve.AnonymousCallers(defaults.identity()), token, nil
	}
	if c.TokenFile == "" {
		if c.TokenFile, err = serve.LocalTokenFile(); err != nil {
			return nil, token, err
		}
	}
	if token, err = serve.LocalToken(c.TokenFile); err != nil {
		return nil, token, err
	}
	return serve.LocalCallers(token, defaults.identity()), token, nil
}

// announceCallers logs security-relevant settings of the callers.
func (c *serveCommand) announceCallers(log *slog.Logger) {
	switch {
	case c.AllowAnonymous:
		log.Warn("every program on this machine may run steps for every business; omit --allow-anonymous to require a token")
		c.announce(log)
	case c.Callers == "":
		c.announce(log)
	case c.TLSCert == "" && !hosts.IsLoopback(c.Listen):
		log.Warn("callers' tokens are sent without TLS; set --tls-cert, or terminate TLS in front of serve")
	}
}
