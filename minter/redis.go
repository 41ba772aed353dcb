package minter

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// DefaultRedisTimeout bounds a dial and every command, its retries included.
const DefaultRedisTimeout = 2 * time.Second

// RedisConfig says where Redis is. URL is required.
type RedisConfig struct {
	// URL is one of
	//
	//	redis://[USER:PASSWORD@]HOST[:6379][/DB]                             one server
	//	redis+sentinel://[USER:PASSWORD@]HOST[:26379][,HOST...]/MASTER[/DB]  the master that these Sentinels name
	//	redis+cluster://[USER:PASSWORD@]HOST[:6379][,HOST...]                a cluster with these seeds
	//	unix://[USER:PASSWORD@]/PATH[?db=DB]                                 a socket
	//
	// With rediss in place of redis, over TLS. Sentinels that want a password take it as ?sentinel_user= and
	// ?sentinel_password=.
	URL      string
	Timeout  time.Duration // of a dial and of a command; default [DefaultRedisTimeout]
	CAFile   string        // PEM; the system's roots when empty
	CertFile string        // PEM; a client certificate, with KeyFile
	KeyFile  string        // PEM
}

// OpenRedis returns a client for config. It checks config and dials nothing: the first command does. Every error of the
// client but redis.Nil is a [*RedisError]. The caller closes the client.
func OpenRedis(config RedisConfig) (redis.UniversalClient, error) {
	if config.Timeout == 0 {
		config.Timeout = DefaultRedisTimeout
	}
	target, err := parseRedisURL(config.URL)
	if err != nil {
		return nil, err
	}
	options := target.options
	if target.tls {
		if options.TLSConfig, err = config.tls(); err != nil {
			return nil, err
		}
	} else if config.CAFile != "" || config.CertFile != "" {
		return nil, errors.New("redis certificates are given but the redis url says no TLS; write rediss:// for redis://")
	}
	options.DialTimeout, options.ReadTimeout, options.WriteTimeout = config.Timeout, config.Timeout, config.Timeout
	options.ContextTimeoutEnabled = true
	options.DialerRetries = 1 // the retries of commands dial again
	options.MaxRetries = 2
	// A new connection costs HELLO and no other round trip, buffers fit our commands, and pipelines share the connections.
	options.DisableIdentity = true
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	options.ReadBufferSize, options.WriteBufferSize = 4096, 4096
	options.PipelinePoolSize = -1

	logging.Disable() // go-redis would write to standard error what it returns as an error anyway
	client, bound := target.open(options), boundary{server: target.name, timeout: config.Timeout, tls: target.tls}
	client.AddHook(bound)
	if nodes, ok := client.(*redis.ClusterClient); ok {
		return cluster{nodes, bound}, nil
	}
	return client, nil
}

// cluster is a ClusterClient whose transactions have a boundary too: they run on the client of a node, which has no hooks.
type cluster struct {
	*redis.ClusterClient
	boundary
}

// Watch overrides that of the ClusterClient. The errors of fn come back as they are.
func (c cluster) Watch(ctx context.Context, fn func(*redis.Tx) error, keys ...string) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var failed error
	err := c.ClusterClient.Watch(ctx, func(tx *redis.Tx) error {
		tx.AddHook(c.boundary)
		failed = fn(tx)
		return failed
	}, keys...)
	if failed != nil {
		return failed
	}
	return c.explain(err)
}

func (c RedisConfig) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the redis CA: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("redis CA %q holds no PEM certificate", c.CAFile)
		}
	}
	if c.CertFile != "" || c.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read the redis client certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// target is a parsed URL.
type target struct {
	name    string // for messages: no password
	tls     bool
	options *redis.UniversalOptions
	open    func(*redis.UniversalOptions) redis.UniversalClient
}

func openSingle(o *redis.UniversalOptions) redis.UniversalClient { return redis.NewClient(o.Simple()) }

func openSentinel(o *redis.UniversalOptions) redis.UniversalClient {
	return redis.NewFailoverClient(o.Failover())
}

func openCluster(o *redis.UniversalOptions) redis.UniversalClient {
	return redis.NewClusterClient(o.Cluster())
}

// parseRedisURL never quotes from what follows the scheme in an error: a password with a bare / or ? in it may be anywhere.
func parseRedisURL(text string) (target, error) {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		return target{}, errors.New("the redis url has no scheme; write redis://HOST:6379")
	}
	base, mode, _ := strings.Cut(scheme, "+")
	t := target{tls: base == "rediss", options: &redis.UniversalOptions{Protocol: 3}}
	port := "6379"
	switch {
	case base != "redis" && base != "rediss" && scheme != "unix":
		return target{}, fmt.Errorf("redis url scheme %q is not known; use redis, rediss, redis+sentinel, redis+cluster or unix", scheme)
	case mode == "":
		t.open = openSingle
	case mode == "sentinel":
		t.open, port = openSentinel, "26379"
	case mode == "cluster":
		t.open = openCluster
	default:
		return target{}, fmt.Errorf("redis url scheme %q is not known; use redis, rediss, redis+sentinel, redis+cluster or unix", scheme)
	}
	// net/url refuses a list of hosts, which is therefore taken out first.
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	hosts := authority[strings.LastIndexByte(authority, '@')+1:]
	u, err := url.Parse("redis://" + strings.TrimSuffix(authority, hosts) + "host" + tail)
	if err != nil {
		return target{}, errors.New("the redis url cannot be parsed; percent-encode what is special in the password")
	}
	query := u.Query()
	t.options.Username = u.User.Username()
	t.options.Password, _ = u.User.Password()
	t.options.SentinelUsername, t.options.SentinelPassword = query.Get("sentinel_user"), query.Get("sentinel_password")
	path := strings.FieldsFunc(u.Path, func(r rune) bool { return r == '/' })
	if scheme == "unix" {
		t.options.Addrs, path = []string{u.Path}, nil
		t.name = "redis at " + u.Path
	} else {
		for host := range strings.SplitSeq(hosts, ",") {
			address, err := hostPort(host, port)
			if err != nil {
				return target{}, err
			}
			t.options.Addrs = append(t.options.Addrs, address)
		}
		t.name = "redis at " + strings.Join(t.options.Addrs, ", ")
	}
	if mode == "sentinel" {
		if len(path) == 0 {
			return target{}, errors.New("the redis url names no master; write redis+sentinel://HOST:26379/MASTER")
		}
		t.options.MasterName, path = path[0], path[1:]
		t.name = fmt.Sprintf("redis master %q of the sentinels at %s", t.options.MasterName, strings.Join(t.options.Addrs, ", "))
	}
	database := query.Get("db")
	if len(path) > 0 {
		database, path = path[0], path[1:]
	}
	if database != "" {
		if t.options.DB, err = strconv.Atoi(database); err != nil || t.options.DB < 0 {
			return target{}, errors.New("the redis url's database is not a number; percent-encode what is special in the password")
		}
	}
	if len(path) > 0 || mode == "cluster" && t.options.DB != 0 {
		return target{}, errors.New("the redis url's path holds more than it may; see docs/redis.md")
	}
	for name := range query {
		if !slices.Contains([]string{"db", "sentinel_user", "sentinel_password"}, name) {
			return target{}, errors.New("the redis url has an option that is none of db, sentinel_user and sentinel_password; see docs/redis.md")
		}
	}
	return t, nil
}

func hostPort(host, port string) (string, error) {
	name := host
	if h, p, err := net.SplitHostPort(host); err == nil {
		name, port = h, p
	}
	name = strings.Trim(name, "[]")
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 || name == "" || strings.ContainsAny(name, " @") {
		return "", errors.New("the redis url names no valid host and port; write redis://HOST:6379")
	}
	return net.JoinHostPort(name, port), nil
}

// RedisError is a failure of Redis: which server, what happened, what to do about it. Nothing was decided: a mint failed, a
// verification must be taken as a refusal.
type RedisError struct {
	Server string // "redis at 127.0.0.1:6379"; never with a password
	Reason string // what happened and what to do
	Err    error
}

// Error implements error.
func (e *RedisError) Error() string { return e.Server + " " + e.Reason }

// Unwrap returns go-redis's own error.
func (e *RedisError) Unwrap() error { return e.Err }

// boundary is a go-redis hook that bounds every command and words its failure.
type boundary struct {
	server  string
	timeout time.Duration
	tls     bool
}

// DialHook implements redis.Hook.
func (b boundary) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (b boundary) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		ctx, cancel := context.WithTimeout(ctx, b.timeout)
		defer cancel()
		err := b.explain(next(ctx, cmd))
		cmd.SetErr(err)
		return err
	}
}

// ProcessPipelineHook implements redis.Hook.
func (b boundary) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		ctx, cancel := context.WithTimeout(ctx, b.timeout)
		defer cancel()
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			cmd.SetErr(b.explain(cmd.Err()))
		}
		return b.explain(err)
	}
}

func (b boundary) explain(err error) error {
	if err == nil || errors.Is(err, redis.Nil) {
		return err
	}
	var known *RedisError
	if errors.As(err, &known) {
		return err
	}
	return &RedisError{Server: b.server, Reason: b.reason(err), Err: err}
}

// replies maps the first word of what Redis answers to what to do about it.
var replies = []struct{ prefix, reason string }{
	{"NOAUTH", "wants a password; put user and password into the redis url"},
	{"WRONGPASS", "refused the user or the password; check those in the redis url"},
	{"NOPERM", "does not let this user do it; docs/redis.md names the ACL that is needed"},
	{"READONLY", "is a replica and cannot be written; point the redis url at the master, or use redis+sentinel://"},
	{"LOADING", "is still loading its data; try again"},
	{"MASTERDOWN", "is a replica that has lost its master; check the replication"},
	{"CLUSTERDOWN", "is a cluster that is down; check its nodes with redis-cli --cluster check"},
	{"MOVED", "is part of a cluster; use redis+cluster://"},
	{"OOM", "is out of memory; raise its maxmemory"},
	{"MISCONF", "cannot write to its disk; check its log"},
}

func (b boundary) reason(err error) string {
	var answer redis.Error
	var certificate *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	var dns *net.DNSError
	var remote *net.OpError
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return "was not waited for: cancelled"
	case strings.Contains(err.Error(), "all sentinels specified in configuration are unreachable"):
		return "cannot be found: no sentinel answers for it; check the redis url and the sentinels"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused the connection; start one, or leave --redis-url out to use the embedded store"
	case errors.As(err, &dns):
		return fmt.Sprintf("cannot be found: no address for %q; check the redis url", dns.Name)
	case errors.As(err, &certificate):
		return "showed a certificate that is not trusted; check the CA file and the host name: " + certificate.Err.Error()
	case errors.As(err, &remote) && remote.Op == "remote error":
		return "refused our client certificate; check the certificate and key files: " + remote.Err.Error()
	case errors.As(err, &header):
		return "does not speak TLS; write redis:// for rediss://, or enable TLS there"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		if b.tls { // a Redis without TLS waits for the rest of what it takes for a command
			return fmt.Sprintf("did not answer within %s; check that it is up, reachable and speaks TLS, or raise --redis-timeout", b.timeout)
		}
		return fmt.Sprintf("did not answer within %s; check that it is up and reachable, or raise --redis-timeout", b.timeout)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return "closed the connection; check whether it wants TLS (rediss://) and its log"
	case errors.As(err, &answer):
		for _, row := range replies {
			if strings.HasPrefix(answer.Error(), row.prefix) {
				return row.reason
			}
		}
	}
	return "failed: " + err.Error()
}
