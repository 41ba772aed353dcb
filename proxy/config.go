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

// KeySource returns the key that authenticates the next request. It is called once for each request, so it should
// answer from memory. If it fails, or takes longer than Config.keyTimeout, the caller gets 503.
type KeySource interface {
	Key(ctx context.Context) (string, error)
}

// Authorizer decides whether a call may leave this machine. The path is canonical: relative to the API root,
// percent-decoded except for encoded slashes, without empty or dot segments, without path parameters.
type Authorizer interface {
	Authorize(ctx context.Context, method, path string) Decision
}

// Audit keeps a record of calls. It must be safe for concurrent use.
type Audit interface {
	// Ready returns why calls cannot be recorded now. It is called before each call; if it returns an error, the
	// call does not go to the API.
	Ready() error
	// Write writes one JSON line with the fields of a [Call] and its execution, business and user.
	Write(line []byte) (int, error)
}

// Decision is the decision of an [Authorizer] about one call.
type Decision struct {
	Allowed bool
	Policy  string // the deciding policy, for the audit file and for a denied caller
	Reason  string // human-readable; the "detail" of a 403
	Code    string // "code" of a 403; empty means "guardrail"
}

// Config describes a [Proxy]. Only APIRoot, BusinessID, UserID and Keys have no default. Durations and sizes that are
// zero take their default; [New] rejects negative ones.
type Config struct {
	APIRoot    *url.URL  // scheme, host and path prefix of every request, such as https://app.go.kizen.com/api
	BusinessID string    // X-BUSINESS-ID
	UserID     string    // X-USER-ID
	Keys       KeySource // X-API-KEY
	// ExecutionID is the execution's ID in Audit. It is not sent.
	ExecutionID string

	Authorizer Authorizer // if nil, every call is allowed

	Listen   string       // loopback address to bind; default "127.0.0.1:0"
	Listener net.Listener // if not nil, replaces Listen, such as a listener in the step's network namespace
	// Open omits the capability segment from the URL. Use it only for a listener that only the step can reach.
	Open bool

	// APICA holds the authorities that may sign the certificates of the API and of an https proxy on the way to it. If
	// nil, those of the system may.
	APICA *x509.CertPool
	// InsecureAPI allows plain HTTP to an API that is not on loopback. It does not disable the verification of
	// certificates.
	InsecureAPI bool
	// Prewarm is how many connections to the API Start opens in the background, including TLS. Default 0.
	Prewarm int

	MaxBody     int64 // bytes of one request's body, 413 beyond; 0 means no limit, because bodies are never buffered
	MaxInFlight int   // concurrent requests, 429 beyond; default 128

	// Deadline ends the execution: calls in progress get 504 or are cut, new ones are refused. Zero means none.
	Deadline time.Time

	// ResponseTimeout limits the time from the sent request to the first byte of the response, 504 beyond; default 60s.
	ResponseTimeout time.Duration

	// Audit keeps one JSON line for each call. If nil, no record is kept.
	Audit Audit
	// Mask returns a call without its secrets, before Audit and OnCall get it. If nil, only the values of
	// parameters with secret names are removed.
	Mask func(Call) Call
	// OnCall is called after each call's response and its line in Audit, on the goroutine that served it. It must
	// be safe for concurrent use and must not block.
	OnCall func(Call)
	// Trace is called for each call of this execution before the policy decides on it. It returns the W3C trace
	// context to send instead of the step's, and may begin a span, which OnCall ends by [Call.Span]. It must not
	// block.
	Trace func(method, path, traceparent, tracestate string) Span
	// Logger logs problems that need an operator. If nil, logging is disabled.
	Logger *slog.Logger

	// The remaining fields differ from their defaults only in tests.

	// proxyFor chooses the HTTP proxy on the way to the API. By default, HTTP_PROXY, HTTPS_PROXY and NO_PROXY decide.
	proxyFor       func(*http.Request) (*url.URL, error)
	maxIdleConns   int           // idle connections to the API that are kept
	maxConns       int           // concurrent connections from the step
	maxHeaderBytes int           // request line and headers, 431 beyond
	maxHeaders     int           // header fields of one request, 431 beyond
	keyTimeout     time.Duration // for the key source
	dialTimeout    time.Duration // DNS, TCP and TLS to the API together
	headerTimeout  time.Duration // from a request's first byte to the end of its headers
	idleTimeout    time.Duration // between two requests of one connection
	apiIdleTimeout time.Duration // after which an unused connection to the API is closed
	// stallTimeout limits how long a body may make no progress: because the caller neither sends nor reads, or the
	// API does not read. The API may be silent within a response (server-sent events) until Deadline.
	stallTimeout time.Duration
}

// Span is one call in a trace, as [Config.Trace] began it.
type Span struct {
	Traceparent string // header to send to the API; empty leaves the step's own
	Tracestate  string
	Data        any // returned in Call.Span
}

func (c *Config) setDefaults() {
	setDefault(&c.Listen, "127.0.0.1:0")
	setDefault(&c.maxIdleConns, 64)
	setDefault(&c.MaxInFlight, 128)
	setDefault(&c.maxConns, 512)
	setDefault(&c.maxHeaderBytes, 64<<10)
	setDefault(&c.maxHeaders, 128)
	setDefault(&c.keyTimeout, 5*time.Second)
	setDefault(&c.dialTimeout, 10*time.Second)
	setDefault(&c.ResponseTimeout, time.Minute)
	setDefault(&c.headerTimeout, 10*time.Second)
	setDefault(&c.idleTimeout, 90*time.Second)
	setDefault(&c.apiIdleTimeout, 55*time.Second)
	setDefault(&c.stallTimeout, time.Minute)
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

// validate reports all errors together.
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
		bad("a proxy without capability needs a listener; unset Open, or set Listener")
	}
	for name, value := range map[string]int64{
		"prewarm": int64(c.Prewarm), "max body": c.MaxBody, "max in flight": int64(c.MaxInFlight),
		"response timeout": int64(c.ResponseTimeout),
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
		return fmt.Errorf("api root %q is plain http to another machine; use https, or allow an insecure api",
			root.Redacted())
	}
	if _, err := canonicalPath([]byte("/" + strings.Trim(root.EscapedPath(), "/"))); err != nil {
		return fmt.Errorf("api root %q: %w", root.Redacted(), err)
	}
	return nil
}

// via returns the operator's HTTP proxy on the way to the API, or nil. Its errors do not quote the configuration, which
// may contain a password.
func (c *Config) via() (*url.URL, error) {
	choose := c.proxyFor
	if choose == nil {
		choose = http.ProxyFromEnvironment
	}
	via, err := choose(&http.Request{URL: c.APIRoot})
	switch {
	case err != nil:
		return nil, errors.New("proxy on the way to the api is not a url; check HTTP_PROXY and HTTPS_PROXY")
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
