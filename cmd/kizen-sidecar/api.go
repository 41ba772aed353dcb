package main

import (
	"crypto/x509"
	"log/slog"
	"net/url"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/kizen/kizen-sidecar/internal/hosts"
	"github.com/kizen/kizen-sidecar/proxy"
)

// apiFlags say how the proxy talks to the API, and how much of it a step may
// use.
type apiFlags struct {
	APIRoot     string        `help:"API root that relative paths are put behind." default:"https://app.go.kizen.com/api" placeholder:"URL" group:"Platform"`
	APICA       string        `name:"api-ca" help:"PEM file of the certificate authority that the API's certificate is verified with. Default: the system's." placeholder:"FILE" group:"API"`
	InsecureAPI bool          `name:"insecure-api" help:"Allow plain HTTP to an API that is not on loopback." group:"API"`
	APITimeout  time.Duration `name:"api-timeout" help:"Time that the API may take to begin its answer; the step gets a 504 after it." default:"60s" placeholder:"DURATION" group:"API"`
	MaxBody     string        `help:"Largest body of one request; 0 is no limit, bodies are streamed." default:"0" placeholder:"SIZE" group:"API"`
	MaxInFlight int           `help:"Requests that may be under way at once." default:"128" placeholder:"N" group:"API"`
	Prewarm     int           `help:"Connections to the API that are opened while Python starts." default:"1" placeholder:"N" group:"API"`
	AuditFile   string        `help:"File to append one JSON line to for every call." placeholder:"FILE" group:"API"`
}

// proxyConfig is what the flags mean for a proxy, checked.
func (f apiFlags) proxyConfig(log *slog.Logger) (proxy.Config, error) {
	maxBody, err := humanize.ParseBytes(f.MaxBody)
	if err != nil || maxBody > 1<<62 {
		return proxy.Config{}, usagef("--max-body %q is not a size; write it like 10MB, or 0 for no limit", f.MaxBody)
	}
	if f.APITimeout <= 0 || f.MaxInFlight <= 0 || f.Prewarm < 0 {
		return proxy.Config{}, usagef("--api-timeout and --max-in-flight must be positive, and --prewarm not negative")
	}
	root, err := parseAPIRoot(f.APIRoot)
	if err != nil {
		return proxy.Config{}, err
	}
	if root.Scheme == "http" && !f.InsecureAPI && !hosts.IsLoopback(root.Host) {
		return proxy.Config{}, usagef("--api-root %s is plain http to another machine; use https, or allow it with --insecure-api", root)
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
		return nil, usagef("CA file %q contains no PEM certificate", f.APICA)
	}
	return pool, nil
}

func parseAPIRoot(text string) (*url.URL, error) {
	root, err := url.Parse(text)
	if err != nil || root.Host == "" || (root.Scheme != "http" && root.Scheme != "https") {
		return nil, usagef("--api-root %q is not an http or https URL; write it like https://app.go.kizen.com/api", text)
	}
	if root.User != nil || root.RawQuery != "" || root.Fragment != "" {
		return nil, usagef("--api-root must not carry a user, a query or a fragment; leave only scheme, host and path")
	}
	return root, nil
}
