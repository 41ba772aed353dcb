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

// Proxy serves one execution. Make one with [New].
type Proxy struct {
	cfg        Config
	capability string // first path segment; empty when Config.Open
	base       string // "/" and the capability, or empty
	prefix     string // path of the API root, without slash at its end
	origin     string // scheme and host of the API root
	addr       string // host:port that we listen on
	hosts      []string

	pool     *pool
	listener net.Listener
	ctx      context.Context // ends with the deadline, or when Shutdown cuts
	cut      context.CancelCauseFunc
	stop     context.CancelFunc

	warm context.CancelFunc // ends prewarming

	draining atomic.Bool
	inFlight atomic.Int64
	wait     routine.Group // every goroutine of ours

	mu    sync.Mutex
	conns map[*conn]struct{}

	scanner atomic.Pointer[keyScanner] // of the key used last

	statsMu sync.Mutex
	stats   map[Outcome]uint64

	journal *journal // used when Config.Audit is not nil
}

var (
	errShutdown = errors.New("the proxy is shutting down")
	errDeadline = errors.New("the execution's deadline has passed")
)

// New checks the configuration and draws the capability; it opens nothing. The error names everything that is wrong.
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
	p.hosts = acceptedHosts(p.addr, p.cfg.Hosts)

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

// URL is the base of every request, without a slash at its end: what the step gets as KIZEN_API_URL. It is a
// secret of the execution. Valid after Start.
func (p *Proxy) URL() string { return "http://" + p.addr + p.base }

// Addr is the address listened on. Valid after Start.
func (p *Proxy) Addr() string { return p.addr }

// Shutdown accepts nothing more, lets calls under way finish until ctx ends, then answers them 503 or, where an answer has
// begun, cuts them, and returns when every goroutine is gone. With a ctx that has ended already it cuts them all at once:
// their callers are gone. The error is ctx's when calls had to end.
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
			case <-time.After(lastWord):
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

// keyScanner finds a key.
type keyScanner struct {
	key string
	*keyscan.Scanner
}

// scannerOf finds key in answers. A proxy has one key, and another after each renewal.
func (p *Proxy) scannerOf(key string) *keyscan.Scanner {
	last := p.scanner.Load()
	if last == nil || last.key != key {
		last = &keyScanner{key, keyscan.New(key)}
		p.scanner.Store(last)
	}
	return last.Scanner
}

// InFlight is the number of calls under way.
func (p *Proxy) InFlight() int { return int(p.inFlight.Load()) }

// Probe asks the listener for an answer, as a health check on a listener of its own does. It is a stranger's
// request: it shows that connections are accepted and served, and reaches nothing.
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

// record tells everyone who asked what became of a call.
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
		// What is refused because the audit cannot be written need not say so once more.
		if err := p.journal.write(call); err != nil && call.Outcome != NoAudit {
			p.cfg.Logger.Error("could not write the audit", "error", err)
		}
	}
	if p.cfg.OnCall != nil {
		p.cfg.OnCall(call)
	}
}
