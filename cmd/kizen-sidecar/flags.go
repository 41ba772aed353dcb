package main

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/audit"
	"github.com/kizen/kizen-sidecar/internal/buildinfo"
	"github.com/kizen/kizen-sidecar/internal/daemon"
	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/flagfile"
	"github.com/kizen/kizen-sidecar/internal/hosts"
	"github.com/kizen/kizen-sidecar/internal/ids"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/serve"
	"github.com/kizen/kizen-sidecar/internal/webhook"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/proxy"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/pool"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// flushLimit bounds how long the end of a command waits for a collector.
const flushLimit = 2 * time.Second

// observe starts traces and metrics according to the OTEL_* variables. The returned function sends the rest, and logs
// if the collector does not accept it.
func (a *app) observe(ctx context.Context, prometheus, oneShot bool) (*telemetry.Telemetry, func(), error) {
	started, err := telemetry.Start(ctx, telemetry.Config{
		Service: "kizen-sidecar", Version: buildinfo.Version(), Logger: a.log, Prometheus: prometheus, OneShot: oneShot,
	})
	if err != nil {
		return nil, nil, err
	}
	return started, func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
		defer cancel()
		if err := started.Shutdown(limited); err != nil {
			a.log.Debug("the remaining telemetry was not sent", "error", err)
		}
	}, nil
}

// Development ids that replace a real business and its Code Account on a first try.
const (
	developmentBusiness = "00000000-0000-4000-8000-00000000b001"
	developmentUser     = "00000000-0000-4000-8000-00000000c0de"
)

// targetFlags name the business and account of executions.
type targetFlags struct {
	BusinessID  string `help:"Business of the step. Default: a development id." placeholder:"ID" group:"Platform"`
	UserID      string `help:"Code Account of the business. Default: a development id." placeholder:"ID" group:"Platform"`
	AccountType string `help:"Type of the account." default:"service_automation" placeholder:"TYPE" group:"Platform"`
}

// executionFlags are the flags of a command that has one execution.
type executionFlags struct {
	targetFlags
	ExecutionID string `help:"Id of this execution. Default: a new UUID." placeholder:"ID" group:"Platform"`
}

// target is the checked value of these flags.
type target struct {
	businessID, userID, accountType, executionID string
}

// announce logs that development ids are used, if they are.
func (f targetFlags) announce(log *slog.Logger) {
	if f.BusinessID == "" || f.UserID == "" {
		log.Info("using development ids; set --business-id and --user-id for a real platform")
	}
}

// resolve checks the flags and sets the defaults of unset ones.
func (f targetFlags) resolve() (resolved target, err error) {
	resolved.accountType = f.AccountType
	if resolved.businessID, err = resolveID("--business-id", f.BusinessID, developmentBusiness); err == nil {
		resolved.userID, err = resolveID("--user-id", f.UserID, developmentUser)
	}
	return resolved, err
}

func (f executionFlags) resolve() (target, error) {
	resolved, err := f.targetFlags.resolve()
	if err == nil {
		resolved.executionID, err = resolveID("--execution-id", f.ExecutionID, uuid.NewString())
	}
	return resolved, err
}

// resolveID returns the id of a flag, or the default for an empty one.
func resolveID(flag, given, fallback string) (string, error) {
	id := strings.TrimSpace(given)
	if id == "" {
		return fallback, nil
	}
	if err := ids.Check(flag, id); err != nil {
		return "", exit.WrongUsage(err)
	}
	return id, nil
}

// identity returns the account that the execution's key acts for.
func (t target) identity() minter.Identity {
	return minter.Identity{
		AccountID:   t.userID,
		AccountType: t.accountType,
		BusinessID:  t.businessID,
		ExecutionID: t.executionID,
	}
}

// redisFlags name the store for the records of keys.
type redisFlags struct {
	RedisURL   string          `help:"Redis for the records of keys and the queue of a fleet: redis://, rediss://, redis+sentinel://, redis+cluster:// or unix://. Without it, run, serve and proxy use an embedded store, which only their own process can reach; worker, queue and keys revoke need it." env:"KIZEN_REDIS_URL,REDIS_URL" placeholder:"URL" group:"Redis"`
	Connection redisconn.Flags `embed:""`
}

// connect returns a client for the Redis that the flags name, or for an embedded one. It does not dial yet.
func (f redisFlags) connect(embedded *redisconn.Embedded) (redis.UniversalClient, error) {
	client, err := f.Connection.Open(f.RedisURL, embedded)
	if err != nil {
		return nil, exit.WrongUsage(err)
	}
	return client, nil
}

// require connects, for commands that cannot use an embedded store.
func (f redisFlags) require() (redis.UniversalClient, error) {
	if f.RedisURL == "" {
		return nil, exit.Usagef("no redis given; name the Redis of the keys with --redis-url")
	}
	return f.connect(nil)
}

// open returns a client for the Redis that the flags name. Without a URL it starts an embedded Redis, which it returns
// too.
func (f redisFlags) open(log *slog.Logger) (client redis.UniversalClient, embedded *redisconn.Embedded, err error) {
	if f.RedisURL == "" {
		if embedded, err = redisconn.StartEmbedded(); err != nil {
			return nil, nil, err
		}
		log.Info("using the embedded store, which no other platform can see; set --redis-url to share one")
	}
	if client, err = f.connect(embedded); err != nil && embedded != nil {
		embedded.Close()
	}
	return client, embedded, err
}

// authorityFlags configure the rules, keys and API of executions.
type authorityFlags struct {
	redisFlags
	keySetFlags
	policyFlags
	apiFlags
	DevelopmentKeys bool `help:"Sign with a key pair of this process although neither Redis nor the API is on this machine. Anyone who can write to that Redis can then mint keys." group:"Keys"`
}

// checkedFlags are authorityFlags without errors. Nothing is open yet.
type checkedFlags struct {
	flags   authorityFlags
	keys    *minter.KeySet
	ownKeys bool // no keys are configured, so this process uses its own
	engine  *policy.Engine
	proxy   proxy.Config
	log     *slog.Logger
	learn   bool // --policy-mode=learn
	// telemetry observes every execution. If nil, it is off.
	telemetry *telemetry.Telemetry
}

// check reads and checks everything that the flags name.
func (f authorityFlags) check(log *slog.Logger) (checkedFlags, error) {
	g := checkedFlags{flags: f, log: log}
	var err error
	if g.proxy, err = f.proxyConfig(log); err != nil {
		return g, err
	}
	if g.engine, err = f.engine(); err != nil {
		return g, err
	}
	if g.keys, g.ownKeys, err = f.keySetFlags.open(); err != nil {
		return g, err
	}
	if g.ownKeys && !f.DevelopmentKeys && !redisconn.OnThisMachine(f.RedisURL) &&
		!hosts.IsLoopback(net.JoinHostPort(g.proxy.APIRoot.Hostname(), "80")) {
		return g, exit.Usagef(
			"no signing keys are configured, and neither redis nor the API is on this machine; configure keys with --keys, or allow a key pair of this process with --development-keys",
		)
	}
	return g, nil
}

// open connects to Redis and opens the audit file.
func (g checkedFlags) open(interpreters execution.Interpreters) (*daemon.Host, error) {
	config := daemon.HostConfig{Execution: execution.Config{
		Keys: g.keys, Engine: g.engine, Proxy: g.proxy, Interpreters: interpreters, Telemetry: g.telemetry, Log: g.log,
		Learn: g.learn,
	}}
	if g.learn {
		g.log.Warn("connections that no rule permits are permitted and recorded; write rules for them with policy suggest, and leave --policy-mode=learn out")
	}
	var err error
	if name := g.flags.AuditFile; name != "" {
		if config.Audit, err = audit.Open(name); err != nil {
			return nil, exit.Usagef("cannot write --audit-file %q: %w", name, err)
		}
	}
	if config.Execution.Redis, config.Embedded, err = g.flags.redisFlags.open(g.log); err != nil {
		if config.Audit != nil {
			config.Audit.Close(g.log)
		}
		return nil, err
	}
	if g.ownKeys {
		g.log.Info("no signing keys are configured: using a key pair of this process, whose public key is published in redis; set --keys for a real platform")
	}
	return daemon.Open(config)
}

// apiFlags configure the proxy's calls to the API, and how many resources a step may use for them.
type apiFlags struct {
	APIRoot     string        `help:"API root that relative paths are appended to." default:"https://app.go.kizen.com/api" placeholder:"URL" group:"Platform"`
	APICA       string        `name:"api-ca" help:"PEM file of the certificate authority that verifies the API's certificate. Default: the system's authorities." placeholder:"FILE" group:"API"`
	InsecureAPI bool          `name:"insecure-api" help:"Allow plain HTTP to an API that is not on loopback." group:"API"`
	APITimeout  time.Duration `name:"api-timeout" help:"Time within which the API must begin its response; after that the step gets a 504." default:"60s" least:"1ms" placeholder:"DURATION" group:"API"`
	MaxBody     string        `help:"Maximum size of a request body; 0 means no limit. Bodies are streamed." default:"0" placeholder:"SIZE" group:"API"`
	MaxInFlight int           `help:"Maximum number of concurrent requests." default:"128" least:"1" placeholder:"N" group:"API"`
	Prewarm     int           `help:"Number of connections to the API opened while Python starts." default:"1" least:"0" placeholder:"N" group:"API"`
	AuditFile   string        `help:"File to which one JSON line is appended for every call." placeholder:"FILE" group:"API"`
}

// proxyConfig checks the flags and returns the configuration of a proxy.
func (f apiFlags) proxyConfig(log *slog.Logger) (proxy.Config, error) {
	maxBody, err := humanize.ParseBytes(f.MaxBody)
	if err != nil || maxBody > 1<<62 {
		return proxy.Config{}, exit.Usagef("--max-body %q is not a size; write it like 10MB, or 0 for no limit", f.MaxBody)
	}
	root, err := parseAPIRoot(f.APIRoot)
	if err != nil {
		return proxy.Config{}, err
	}
	if root.Scheme == "http" && !f.InsecureAPI && !hosts.IsLoopback(root.Host) {
		return proxy.Config{}, exit.Usagef(
			"--api-root %s is plain http to another machine; use https, or allow it with --insecure-api", root,
		)
	}
	certificates, err := f.certificates()
	return proxy.Config{
		APIRoot: root, APICA: certificates, InsecureAPI: f.InsecureAPI, ResponseTimeout: f.APITimeout,
		MaxBody: int64(maxBody), MaxInFlight: f.MaxInFlight, Prewarm: f.Prewarm,
		Logger: log,
	}, err
}

func (f apiFlags) certificates() (*x509.CertPool, error) {
	if f.APICA == "" {
		return nil, nil
	}
	pem, err := readFile("CA file", f.APICA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, exit.Usagef("CA file %q contains no PEM certificate", f.APICA)
	}
	return pool, nil
}

func parseAPIRoot(text string) (*url.URL, error) {
	root, err := url.Parse(text)
	if err != nil || root.Host == "" || (root.Scheme != "http" && root.Scheme != "https") {
		return nil, exit.Usagef("--api-root %q is not an http or https URL; write it like https://app.go.kizen.com/api", text)
	}
	if root.User != nil || root.RawQuery != "" || root.Fragment != "" {
		return nil, exit.Usagef("--api-root must not carry a user, a query or a fragment; leave only scheme, host and path")
	}
	return root, nil
}

// sandboxFlags choose the Python that runs steps, and its isolation.
type sandboxFlags struct {
	Python        string `help:"Python interpreter to use instead of the runtime's." placeholder:"FILE" group:"Sandbox"`
	StrictRuntime bool   `help:"Refuse to fall back to another Python when the runtime is not installed." group:"Sandbox"`
	Sandbox       string `help:"auto: use every layer that this machine supports. required: refuse to run if one is missing. off: no isolation, only limits." enum:"auto,required,off" default:"auto" placeholder:"MODE" group:"Sandbox"`
	Network       string `help:"Destinations that a step can reach. host: all that this machine can reach. policy: those that the rules for connections permit. kizen-only: only the proxy." enum:"policy,host,kizen-only" default:"host" placeholder:"NETWORK" group:"Sandbox"`

	PolicyMode string `help:"With --network=policy: enforce refuses the connections that no rule permits; learn permits and records them for policy suggest. Guardrails and your forbid rules apply in both." enum:"enforce,learn" default:"enforce" placeholder:"MODE" group:"Sandbox"`

	MaxConnections int `help:"Maximum number of connections of an execution with --network=policy; others are refused. 0 means no limit." default:"10000" least:"0" placeholder:"N" group:"Limits"`
	MaxDNSRate     int `name:"max-dns-rate" help:"Maximum number of DNS queries of an execution in a second with --network=policy; others are refused. 0 means no limit." default:"100" least:"0" placeholder:"N" group:"Limits"`
}

// runnerConfig checks the flags and returns the configuration of a runner.
func (f sandboxFlags) runnerConfig(log *slog.Logger) runner.Config {
	return runner.Config{
		Python: f.Python, StrictRuntime: f.StrictRuntime, Logger: log,
		Sandbox: sandbox.Mode(f.Sandbox), Network: sandbox.Network(f.Network), MaxConnections: f.MaxConnections,
		MaxQuestions: f.MaxDNSRate,
	}
}

// limitFlags bound one execution.
type limitFlags struct {
	Timeout      time.Duration `help:"Time limit of a step, at most ${max_timeout}." default:"30s" least:"1ms" placeholder:"DURATION" group:"Limits"`
	CPUTimeout   time.Duration `name:"cpu-timeout" help:"Processor time of a step and all its processes. Default: twice --timeout." least:"0s" placeholder:"DURATION" group:"Limits"`
	Memory       string        `help:"Resident memory of a step and all its processes." default:"1GiB" placeholder:"SIZE" group:"Limits"`
	MaxProcesses int64         `help:"Number of processes and threads at a time." default:"64" least:"2" placeholder:"N" group:"Limits"`
	MaxOpenFiles int64         `help:"Number of open files of a process." default:"1024" least:"16" placeholder:"N" group:"Limits"`
	MaxFileSize  string        `help:"Maximum size of a written file." default:"512MiB" placeholder:"SIZE" group:"Limits"`
	TmpSize      string        `help:"Size of /tmp." default:"512MiB" placeholder:"SIZE" group:"Limits"`
	MaxResult    string        `help:"Maximum size of a step's outputs." default:"6MiB" placeholder:"SIZE" group:"Limits"`
}

// limits checks the flags and returns the limits.
func (f limitFlags) limits() (runner.Limits, error) {
	limits := runner.Limits{Wall: f.Timeout, CPU: f.CPUTimeout, Processes: f.MaxProcesses, OpenFiles: f.MaxOpenFiles}
	if f.Timeout <= 0 || f.Timeout > runner.MaxWall {
		return limits, exit.Usagef("--timeout %s is out of range; use more than 0 and at most %s", f.Timeout, runner.MaxWall)
	}
	for _, count := range []struct {
		flag  string
		value int64
		least int64
	}{{"--max-processes", f.MaxProcesses, 2}, {"--max-open-files", f.MaxOpenFiles, 16}} {
		if count.value < count.least || count.value > 1<<20 {
			return limits, exit.Usagef("%s %d is out of range; use %d to %d", count.flag, count.value, count.least, 1<<20)
		}
	}
	for _, size := range []struct {
		flag, text, least string
		into              *int64
	}{
		{"--memory", f.Memory, "32MiB", &limits.Memory},
		{"--max-file-size", f.MaxFileSize, "4KiB", &limits.FileSize},
		{"--tmp-size", f.TmpSize, "4KiB", &limits.TmpSize},
		{"--max-result", f.MaxResult, "1KiB", &limits.Result},
	} {
		bytes, err := humanize.ParseBytes(size.text)
		if least, _ := humanize.ParseBytes(size.least); err != nil || bytes < least || bytes > 1<<40 {
			return limits, exit.Usagef("%s %q is not a size from %s to 1TiB; write it like 512MiB", size.flag, size.text,
				size.least)
		}
		*size.into = int64(bytes)
	}
	return limits.WithDefaults(), nil
}

// webhookFlags configure the sending of callbacks.
type webhookFlags struct {
	WebhookSecretFile string   `help:"File with the secrets that sign callbacks, one on each line (Standard Webhooks: whsec_...). Without it, executions with a callback_url are refused." placeholder:"FILE" group:"Callbacks"`
	WebhookAllow      []string `help:"Network whose hosts may receive callbacks although they are not public, also over plain HTTP. Repeatable." placeholder:"CIDR" group:"Callbacks"`
}

// callbacks checks the flags and returns the callbacks; nil without a secret. memory bounds the total size of waiting
// callbacks, in bytes.
func (f webhookFlags) callbacks(memory int64, log *slog.Logger) (*serve.Callbacks, error) {
	if f.WebhookSecretFile == "" {
		return nil, nil
	}
	data, err := readFile("webhook secret file", f.WebhookSecretFile)
	if err != nil {
		return nil, err
	}
	var config webhook.Config
	if config.Secrets, err = webhook.ParseSecrets(data); err != nil {
		return nil, exit.Usagef("webhook secret file %q: %w", f.WebhookSecretFile, err)
	}
	for _, text := range f.WebhookAllow {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, exit.Usagef("--webhook-allow %q is not a network; write it like 10.0.0.0/8", text)
		}
		config.Allowed = append(config.Allowed, network)
	}
	c, err := serve.NewCallbacks(config, memory, log)
	if err != nil {
		return nil, exit.WrongUsage(err)
	}
	return c, nil
}

// configFlags let a file set the flags of a command.
type configFlags struct {
	Config      flagfile.Path `help:"YAML file with flags: names without leading dashes, and values. The command line overrides the environment, which overrides the file." placeholder:"FILE" group:"Configuration"`
	PrintConfig bool          `help:"Print the effective configuration, secrets masked, and exit." group:"Configuration" env:"-"`
}

// daemonFlags are common to the commands that run executions until they are stopped.
type daemonFlags struct {
	configFlags
	operationFlags
	webhookFlags
	sandboxFlags
	limitFlags
	authorityFlags
}

// operationFlags configure the load, and how operators observe and stop it.
type operationFlags struct {
	Slots         int           `help:"Number of concurrent executions. Default: four for each core." least:"0" placeholder:"N" group:"Operation"`
	Warm          int           `help:"Number of loaded interpreters that wait for an execution, for each runtime that has been requested; each is used once. 0 disables them." default:"2" least:"0" placeholder:"N" group:"Operation"`
	WarmIsolation string        `help:"How warm interpreters start. fork: from one Python that has loaded everything. exec: each separately; this takes as long as a cold start, but they share neither the seed of hash() nor the memory layout." enum:"fork,exec" default:"fork" placeholder:"MODE" group:"Operation"`
	DrainTimeout  time.Duration `help:"Time for running steps to finish after SIGTERM." default:"60s" least:"0s" placeholder:"DURATION" group:"Operation"`
	AdminListen   string        `help:"Address of /healthz, /readyz and /metrics; empty disables them." default:"127.0.0.1:9091" placeholder:"HOST:PORT" group:"Operation"`
	HostName      []string      `help:"Additional host name of the API and the admin address. Their addresses, localhost, this machine's name and the names in --tls-cert are always accepted. A leading \"*.\" stands for one label. Repeatable." placeholder:"NAME" group:"Operation"`
	ReadyFile     string        `help:"File for a JSON object with url, admin_url and, with --token-file, token. It exists, with mode 0600, while executions are accepted." placeholder:"FILE" group:"Operation"`
	SecretsFile   string        `help:"JSON object of the secrets that steps may be granted: {\"BUSINESS\": {\"NAME\": \"value\"}}." placeholder:"FILE" group:"Operation"`
}

// fill sets the defaults of unset flags, and checks the others.
func (f *operationFlags) fill() error {
	if f.Slots == 0 {
		f.Slots = 4 * runtime.NumCPU()
	}
	if f.AdminListen != "" {
		return daemon.CheckAddress("--admin-listen", f.AdminListen)
	}
	return nil
}

// daemonParts are the parts of a daemon that the flags of serve and worker configure.
type daemonParts struct {
	daemon  *daemon.Daemon
	checked checkedFlags
	limits  runner.Limits
	secrets execution.SecretsByBusiness
	memory  daemon.MemoryShares
	flush   func() // sends the last telemetry
}

// open checks everything that the flags name. It opens only Redis and the audit file.
func (f *daemonFlags) open(ctx context.Context, app *app) (*daemonParts, error) {
	p := &daemonParts{memory: daemon.LimitMemory(), daemon: &daemon.Daemon{
		Slots: f.Slots, WarmSize: f.Warm, RequireSandbox: f.Sandbox == string(sandbox.ModeRequired),
		DrainTimeout: f.DrainTimeout,
		AdminListen:  f.AdminListen, HostNames: f.HostName, ReadyFile: f.ReadyFile, Log: app.log,
	}}
	d := p.daemon
	var err error
	if p.secrets, err = loadSecrets(f.SecretsFile); err != nil {
		return nil, err
	}
	if p.limits, err = f.limits(); err != nil {
		return nil, err
	}
	if d.Callbacks, err = f.callbacks(p.memory.Callbacks, app.log); err != nil {
		return nil, err
	}
	if p.checked, err = f.check(app.log); err != nil {
		return nil, err
	}
	if d.Runner, err = runner.New(f.runnerConfig(app.log)); err != nil {
		return nil, err
	}
	if d.Telemetry, p.flush, err = app.observe(ctx, f.AdminListen != "", false); err != nil {
		return nil, err
	}
	d.Warm = pool.New(pool.Config{Source: d.Runner, Size: f.Warm, Exec: f.WarmIsolation == "exec", Limits: p.limits,
		Log: app.log})
	p.checked.telemetry, p.checked.learn = d.Telemetry, f.PolicyMode == "learn"
	if d.Host, err = p.checked.open(d.Warm); err != nil {
		p.flush()
		return nil, err
	}
	return p, nil
}

func (p *daemonParts) close() {
	p.daemon.Close()
	p.flush()
}

// loadSecrets reads the secrets of businesses. If name is empty, it returns none.
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
		return nil, exit.Usagef("secrets file %q %w", name, err)
	}
	return secrets, nil
}
