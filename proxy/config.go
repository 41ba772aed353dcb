package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// KeySource gives the key that authenticates the next request. It is asked once for each request, so it should
// answer from memory. An error, or an answer later than [Config.KeyTimeout], is a 503 for the caller.
type KeySource interface {
	Key(ctx context.Context) (string, error)
}

// Authorizer decides whether a call may leave this machine. The path is canonical: relative to the API root,
// percent-decoded but for encoded slashes, without empty or dot segments, without path parameters.
type Authorizer interface {
	Authorize(ctx context.Context, method, path string) Decision
}

// Audit keeps a record of calls. It is used by several goroutines at once.
type Audit interface {
	// Ready says why no call can be recorded now. It is asked before each call, which does not go to the API then.
	Ready() error
	// Write takes one line, what a [Call] tells and whose call it was, as JSON.
	Write(line []byte) (int, error)
}

// Decision is what an [Authorizer] says about one call.
type Decision struct {
	Allowed bool
	Policy  string // the policy that decided, for the audit and for a denied caller
	Reason  string // why, for people; becomes "detail" of a 403
	Code    string // "code" of a 403; empty means "guardrail"
}

// Config describes a [Proxy]. Only APIRoot, BusinessID, UserID and Keys have no default. Durations and sizes that
// are zero take their default; a negative one is refused by [New].
type Config struct {
	APIRoot    *url.URL  // scheme, host and path prefix of every request, such as https://app.go.kizen.com/api
	BusinessID string    // X-BUSINESS-ID
	UserID     string    // X-USER-ID
	Keys       KeySource // X-API-KEY
	// ExecutionID names the execution in Audit. It is not sent.
	ExecutionID string

	Authorizer Authorizer // nil: every call is allowed

	Listen   string       // loopback address to bind; default "127.0.0.1:0"
	Listener net.Listener // used in place of Listen when not nil, such as one opened in the step's network namespace
	// Open leaves the capability segment out of the URL. Only for a listener that nothing but the step can reach.
	Open bool
	// Hosts are names accepted in the Host header beside the listener's own address and localhost, without port.
	Hosts []string

	// APICA verifies the certificates of the API and of an https proxy on the way to it; nil is the system's pool.
	APICA *x509.CertPool
	// InsecureAPI allows plain HTTP to an API that is not on loopback. Certificates are verified even so.
	InsecureAPI bool
	// APINetworks limits the addresses, after DNS, that the API may have. Empty: any unicast address; a name (as
	// opposed to a literal address or localhost) that resolves to a loopback or link-local one is refused.
	APINetworks []netip.Prefix
	// Via chooses the HTTP proxy on the way to the API, from HTTP_PROXY, HTTPS_PROXY and NO_PROXY when nil.
	Via func(*http.Request) (*url.URL, error)
	// Prewarm is how many connections to the API, TLS included, are opened by Start in the background. Default 0.
	Prewarm int
	// MaxIdleConns is how many idle connections to the API are kept. Default 64.
	MaxIdleConns int

	MaxBody        int64 // bytes of one request's body, 413 beyond; 0 is no limit, bodies are never held in memory
	MaxInFlight    int   // requests under way at once, 429 beyond; default 128
	MaxConns       int   // connections from the step at once; default 512
	MaxHeaderBytes int   // request line and headers, 431 beyond; default 64 KiB
	MaxHeaders     int   // header fields of one request, 431 beyond; default 128

	// Deadline ends the execution: calls under way are answered 504 or cut, new ones refused. Zero: none.
	Deadline time.Time

	KeyTimeout      time.Duration // for the key source; default 5s
	DialTimeout     time.Duration // DNS, TCP and TLS to the API together; default 10s
	ResponseTimeout time.Duration // from the request being sent to the first byte of the answer, 504 beyond; default 60s
	HeaderTimeout   time.Duration // from a request's first byte to the end of its headers; default 10s
	IdleTimeout     time.Duration // between two requests of one connection; default 90s
	APIIdleTimeout  time.Duration // after which an unused connection to the API is closed; default 55s
	// StallTimeout bounds a body that makes no progress: a caller that neither sends nor reads, an API that does not
	// read. The API may be silent within an answer (server-sent events) until Deadline. Default 60s.
	StallTimeout time.Duration

	// Audit keeps one JSON line of each call; nil: none is kept.
	Audit Audit
	// Mask gives a call back without what must not be recorded, before Audit and OnCall are told of it; nil: only the
	// values of parameters that are named like secrets are left out.
	Mask func(Call) Call
	// OnCall is told of each call after its answer and its line in Audit, on the goroutine that served it: by several
	// at once, and it must not block.
	OnCall func(Call)
	// Trace is told of each call of this execution before it is decided upon. It returns the W3C trace context to send
	// in place of what the step sent, and may begin a span that OnCall ends by [Call.Span]. It must not block.
	Trace func(method, path, traceparent, tracestate string) Span
	// Logger is told what an operator must act on. Default: discarded.
	Logger *slog.Logger
}

// Span is one call in a trace, as [Config.Trace] began it.
type Span struct {
	Traceparent string // header to send to the API; empty leaves the step's own
	Tracestate  string
	Data        any // handed back in Call.Span
}

func (c *Config) setDefaults() {
	setDefault(&c.Listen, "127.0.0.1:0")
	setDefault(&c.MaxIdleConns, 64)
	setDefault(&c.MaxInFlight, 128)
	setDefault(&c.MaxConns, 512)
	setDefault(&c.MaxHeaderBytes, 64<<10)
	setDefault(&c.MaxHeaders, 128)
	setDefault(&c.KeyTimeout, 5*time.Second)
	setDefault(&c.DialTimeout, 10*time.Second)
	setDefault(&c.ResponseTimeout, time.Minute)
	setDefault(&c.HeaderTimeout, 10*time.Second)
	setDefault(&c.IdleTimeout, 90*time.Second)
	setDefault(&c.APIIdleTimeout, 55*time.Second)
	setDefault(&c.StallTimeout, time.Minute)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// validate reports everything that is wrong at once.
func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if err := validRoot(c.APIRoot, c.InsecureAPI); err != nil {
		errs = append(errs, err)
	}
	for name, value := range map[string]string{"business id": c.BusinessID, "user id": c.UserID} {
		if value == "" {
			bad("%s is missing", name)
		} else if !h1.ValidValue([]byte(value)) {
			bad("%s cannot be sent as a header; use printable characters only", name)
		}
	}
	if c.Keys == nil {
		bad("key source is missing")
	}
	if c.APIRoot != nil && c.APIRoot.Host != "" {
		if _, err := c.via(); err != nil {
			errs = append(errs, err)
		}
	}
	if c.Open && c.Listener == nil {
		bad("a listener without capability must be handed in; leave Open out, or set Listener")
	}
	for name, value := range map[string]int64{
		"prewarm": int64(c.Prewarm), "max idle connections": int64(c.MaxIdleConns), "max body": c.MaxBody,
		"max in flight": int64(c.MaxInFlight), "max connections": int64(c.MaxConns),
		"max header bytes": int64(c.MaxHeaderBytes), "max headers": int64(c.MaxHeaders),
		"key timeout": int64(c.KeyTimeout), "dial timeout": int64(c.DialTimeout),
		"response timeout": int64(c.ResponseTimeout), "header timeout": int64(c.HeaderTimeout),
		"idle timeout": int64(c.IdleTimeout), "api idle timeout": int64(c.APIIdleTimeout),
		"stall timeout": int64(c.StallTimeout),
	} {
		if value < 0 {
			bad("%s is negative; leave it out for the default", name)
		}
	}
	return errors.Join(errs...)
}

func validRoot(root *url.URL, insecure bool) error {
	switch {
	case root == nil || root.Host == "":
		return errors.New("api root is missing; give scheme, host and path, such as https://app.go.kizen.com/api")
	case root.Scheme != "https" && root.Scheme != "http":
		return fmt.Errorf("api root %q is neither http nor https", root.Redacted())
	case root.User != nil || root.RawQuery != "" || root.Fragment != "":
		return fmt.Errorf("api root %q has more than scheme, host and path", root.Redacted())
	case root.Scheme == "http" && !insecure && !loopbackName(root.Hostname()):
		return fmt.Errorf("api root %q is plain http to another machine; use https, or allow an insecure api", root.Redacted())
	}
	if _, err := canonicalPath([]byte("/" + strings.Trim(root.EscapedPath(), "/"))); err != nil {
		return fmt.Errorf("api root %q: %w", root.Redacted(), err)
	}
	return nil
}

// via is the operator's HTTP proxy on the way to the API, nil if there is none. Its errors do not quote the
// configuration, in which there may be a password.
func (c *Config) via() (*url.URL, error) {
	choose := c.Via
	if choose == nil {
		choose = http.ProxyFromEnvironment
	}
	via, err := choose(&http.Request{URL: c.APIRoot})
	switch {
	case err != nil:
		return nil, errors.New("proxy on the way to the api is no url; look at HTTP_PROXY and HTTPS_PROXY")
	case via == nil:
		return nil, nil
	case via.Scheme != "http" && via.Scheme != "https":
		return nil, fmt.Errorf("proxy on the way to the api is %q; only http and https are supported", via.Scheme)
	}
	return via, nil
}

func loopbackName(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
