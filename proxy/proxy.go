package proxy

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kizen/kizen-sidecar/internal/keyscan"
	"github.com/kizen/kizen-sidecar/internal/routine"
)

// Proxy serves one execution. Create one with [New].
type Proxy struct {
	cfg        Config
	capability string // first path segment; empty if Config.Open
	base       string // "/" and the capability, or empty
	prefix     string // path of the API root, without trailing slash
	origin     string // scheme and host of the API root
	addr       string // host:port of the listener
	hosts      []string

	pool     *pool
	listener net.Listener
	ctx      context.Context // ends with the deadline, or when Shutdown cuts
	cut      context.CancelCauseFunc
	stop     context.CancelFunc

	warm context.CancelFunc // ends prewarming

	draining atomic.Bool
	inFlight atomic.Int64
	wait     routine.Group // all goroutines of the proxy

	mu    sync.Mutex
	conns map[*conn]struct{}

	scanner atomic.Pointer[keyScanner] // of the key used last

	statsMu sync.Mutex
	stats   map[Outcome]uint64

	journal *journal // used if Config.Audit is not nil
}

var (
	errShutdown = errors.New("the proxy is shutting down")
	errDeadline = errors.New("the execution's deadline has passed")
)

// New validates the configuration and generates the capability; it opens nothing. The error lists all problems.
func New(cfg Config) (*Proxy, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	cfg.setDefaults()
	p := &Proxy{
		cfg:    cfg,
		prefix: strings.TrimRight(cfg.APIRoot.EscapedPath(), "/"),
		origin: cfg.APIRoot.Scheme + "://" + cfg.APIRoot.Host,
		conns:  make(map[*conn]struct{}),
		stats:  make(map[Outcome]uint64),
	}
	if !cfg.Open {
		secret := make([]byte, 32)
		rand.Read(secret) // never fails, see its documentation
		p.capability = base64.RawURLEncoding.EncodeToString(secret)
		p.base = "/" + p.capability
	}
	p.pool = newPool(&p.cfg)
	p.journal = newJournal(&p.cfg)
	return p, nil
}

// Start binds the listener and serves until [Proxy.Shutdown]. Connections can be made when it returns.
func (p *Proxy) Start() error {
	p.listener = p.cfg.Listener
	if p.listener == nil {
		listener, err := listenLoopback(p.cfg.Listen)
		if err != nil {
			return fmt.Errorf("proxy: %w", err)
		}
		p.listener = listener
	}
	p.addr = p.listener.Addr().String()
	p.hosts = acceptedHosts(p.addr)

	parent, stop := context.Background(), context.CancelFunc(func() {})
	if !p.cfg.Deadline.IsZero() {
		parent, stop = context.WithDeadlineCause(parent, p.cfg.Deadline, errDeadline)
	}
	p.stop = stop
	p.ctx, p.cut = context.WithCancelCause(parent)

	warming, warm := context.WithCancel(p.ctx)
	p.warm = warm
	p.wait.Go(p.accept)
	for range p.cfg.Prewarm {
		p.wait.Go(func() { p.prewarm(warming) })
	}
	return nil
}

// URL returns the base of every request, without a trailing slash; the step gets it as KIZEN_API_URL. It is a secret of
// the execution. Valid after Start.
func (p *Proxy) URL() string { return "http://" + p.addr + p.base }

// Addr returns the listener's address. Valid after Start.
func (p *Proxy) Addr() string { return p.addr }

// Shutdown stops accepting connections and lets calls in progress finish until ctx ends. Then it answers the rest with
// 503, or cuts them if their response has begun, and returns when all goroutines have ended. If ctx has already ended,
// it cuts all calls at once, because their callers are gone. If calls had to be ended, it returns ctx's error.
func (p *Proxy) Shutdown(ctx context.Context) error {
	if p.listener == nil {
		return nil
	}
	callersGone := ctx.Err() != nil
	p.draining.Store(true)
	p.warm()
	p.listener.Close()
	p.eachConn((*conn).endIfIdle)

	finished := make(chan struct{})
	routine.Go(func() {
		p.wait.Wait()
		close(finished)
	})
	var err error
	select {
	case <-finished:
	case <-ctx.Done():
		err = ctx.Err()
		p.cut(errShutdown)
		if !callersGone {
			p.eachConn((*conn).cutAPI)
			select {
			case <-finished:
			case <-time.After(responseGrace):
			}
		}
		p.eachConn((*conn).cut)
		<-finished
	}
	p.cut(errShutdown)
	p.stop()
	p.pool.close()
	if p.cfg.Audit != nil {
		if err := p.journal.end(); err != nil {
			p.cfg.Logger.Error("could not write the audit", "error", err)
		}
	}
	return err
}

// Stats counts calls by their outcome since Start.
func (p *Proxy) Stats() map[Outcome]uint64 {
	p.statsMu.Lock()
	defer p.statsMu.Unlock()
	return maps.Clone(p.stats)
}

// keyScanner is a scanner with its key.
type keyScanner struct {
	key string
	*keyscan.Scanner
}

// scannerOf returns the scanner for key. The key changes only with a renewal.
func (p *Proxy) scannerOf(key string) *keyscan.Scanner {
	last := p.scanner.Load()
	if last == nil || last.key != key {
		last = &keyScanner{key, keyscan.New(key)}
		p.scanner.Store(last)
	}
	return last.Scanner
}

// Probe sends a request without a capability to the listener, as a health check. It shows that the proxy accepts and
// serves connections, and does not reach the API.
func (p *Proxy) Probe(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", p.addr)
	if err != nil {
		return fmt.Errorf("probe the proxy: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, routine.Safe(func() { conn.SetDeadline(time.Unix(1, 0)) }))
	defer stop()
	if _, err := conn.Write([]byte("GET // HTTP/1.1\r\nHost: " + p.addr + "\r\nConnection: close\r\n\r\n")); err != nil {
		return fmt.Errorf("probe the proxy: %w", err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("probe the proxy: %w", err)
	}
	return nil
}

func (p *Proxy) prewarm(ctx context.Context) {
	a, err := p.pool.get(ctx, true)
	if ctx.Err() != nil && err != nil {
		return
	}
	if err != nil {
		p.cfg.Logger.Debug("could not open a connection to the api ahead of time", "error", err)
		return
	}
	p.pool.put(a)
}

// record passes a finished call to Stats, the audit file and OnCall.
func (p *Proxy) record(call Call) {
	p.statsMu.Lock()
	p.stats[call.Outcome]++
	p.statsMu.Unlock()
	if p.cfg.Audit == nil && p.cfg.OnCall == nil {
		return
	}
	if p.cfg.Mask != nil {
		call = p.cfg.Mask(call)
	}
	call.Query = redactQuery(call.Query)
	call.Method, call.Detail = cutLong(call.Method, 64), cutLong(call.Detail, maxRecorded)
	call.Path, call.Query = cutLong(call.Path, maxRecorded), cutLong(call.Query, maxRecorded)
	if p.cfg.Audit != nil {
		// A call that was refused because of the audit file needs no second error.
		if err := p.journal.write(call); err != nil && call.Outcome != NoAudit {
			p.cfg.Logger.Error("could not write the audit", "error", err)
		}
	}
	if p.cfg.OnCall != nil {
		p.cfg.OnCall(call)
	}
}
