package execution

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/phases"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/proxy"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// revokeLimit limits the revocation of a key. A key that could not be revoked expires by itself, so waiting longer is
// useless.
const revokeLimit = 5 * time.Second

// Serving says where the proxy of an [Authority] listens, and how long its key and its calls may last.
type Serving struct {
	// Address is bound if Listener is nil; if empty, the proxy chooses a free loopback port. Only the step may be
	// able to reach a Listener.
	Address  string
	Listener net.Listener
	// KeyLifetime is the lifetime of one key; it is renewed before it expires.
	KeyLifetime time.Duration
	// Deadline ends all calls; zero means none.
	Deadline time.Time
	// fence, if not nil, returns why the key must no longer be used.
	fence func() error
	// Name is the step's human-readable name. Traceparent and Tracestate are the W3C trace context of its calls.
	Name, Traceparent, Tracestate string
}

// Authority allows an execution to call the API: it has a leased key, and the proxy that adds it to requests.
type Authority struct {
	lease lease
	keys  lateKeys
	proxy *proxy.Proxy
	watch *watch
	owned bool // set for a standalone proxy, whose end is logged here
	// minting is the duration of the mint, which began at mintBegan.
	minting   time.Duration
	mintBegan time.Time
	id        minter.Identity
	name      string

	revoking      sync.Once
	revokingSince time.Time
	revokingErr   error
}

// Open binds the listener, then mints the key, so that no key exists for an execution that cannot use it.
func (h *Host) Open(ctx context.Context, id minter.Identity, s Serving) (*Authority, error) {
	w := h.watch(ctx, Request{Identity: id, Name: s.Name, Job: runner.Execution{Traceparent: s.Traceparent},
		Tracestate: s.Tracestate})
	a, err := h.open(w.ctx, id, s, w)
	if err != nil {
		w.end(Request{Identity: id, Name: s.Name}, Ended{}, 0, err)
		return nil, err
	}
	a.owned = true
	return a, nil
}

func (h *Host) open(ctx context.Context, id minter.Identity, s Serving, w *watch) (*Authority, error) {
	a := &Authority{watch: w, id: id, name: s.Name}
	a.keys.fence = s.fence
	opened := false
	defer func() {
		if !opened {
			a.Close(ctx, 0)
		}
	}()
	if err := a.serve(h, id, s); err != nil {
		return nil, err
	}
	a.mintBegan = time.Now()
	leased, took, err := w.mint(ctx, h, id, s.KeyLifetime)
	if err != nil {
		return nil, err
	}
	a.lease, a.minting = leased, took
	a.keys.lease.Store(&leased)
	opened = true
	return a, nil
}

// serve starts the proxy, which has no key yet.
func (a *Authority) serve(h *Host, id minter.Identity, s Serving) error {
	principal, err := h.principal(id)
	if err != nil {
		return err
	}
	config := h.config.Proxy
	config.ExecutionID, config.BusinessID, config.UserID = id.ExecutionID, id.BusinessID, id.AccountID
	config.Keys, config.Authorizer, config.Audit = &a.keys, authorizer{principal}, h.config.Audit
	config.Listen, config.Listener, config.Open = s.Address, s.Listener, s.Listener != nil
	config.Deadline = s.Deadline
	a.watch.hook(&config)
	made, err := proxy.New(config)
	if err != nil {
		return err
	}
	if err := made.Start(); err != nil {
		return err
	}
	a.proxy = made
	return nil
}

// Keys returns the keys that calls have used so far, the newest last.
func (a *Authority) Keys() []string { return a.keys.used() }

// URL returns the base of every request of the step. It is a secret of the execution.
func (a *Authority) URL() string { return a.proxy.URL() }

// StepContext returns the trace context of the step's calls; it may be empty.
func (a *Authority) StepContext() (traceparent, tracestate string) { return a.watch.StepContext() }

// Log returns a logger that names the execution and its trace.
func (a *Authority) Log() *slog.Logger { return a.watch.log }

// Probe sends a health check to the proxy's listener.
func (a *Authority) Probe(ctx context.Context) error { return a.proxy.Probe(ctx) }

// Calls counts the calls so far by their outcome.
func (a *Authority) Calls() map[proxy.Outcome]uint64 { return a.proxy.Stats() }

// Revoke revokes the key, even if ctx has ended: an interrupt must leave no valid key. It logs errors instead of
// returning them, because the step's outcome stays valid, and a retry would run the step twice.
func (a *Authority) Revoke(ctx context.Context) { a.revoking.Do(func() { a.revoke(ctx) }) }

func (a *Authority) revoke(ctx context.Context) {
	a.revokingSince = time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeLimit)
	defer cancel()
	err := a.lease.Close(ctx)
	a.revokingErr = err
	a.watch.metrics.Key(a.watch.ctx, telemetry.KeyRevoke, time.Since(a.revokingSince), err)
	if err != nil {
		a.watch.log.Error("the key could not be revoked; it expires by itself", "error", err)
	}
}

// Close lets requests in flight finish within grace, cuts the rest, and revokes the key. Call it once.
func (a *Authority) Close(ctx context.Context, grace time.Duration) {
	began := time.Now()
	if a.proxy != nil {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		if err := a.proxy.Shutdown(limited); err != nil && grace > 0 {
			a.watch.log.Warn("calls in flight were cut off", "grace", grace, "error", err)
		}
		cancel()
	}
	if a.lease != nil {
		a.Revoke(ctx)
		if a.revokingSince.Before(began) { // an interrupt has already revoked it
			began = a.revokingSince
		}
		a.watch.Phase(phases.Revoke, began, time.Now(), a.revokingErr)
	}
	if a.owned {
		a.watch.End(telemetry.Ending{Outcome: outcomes.OK, ExitCode: -1})
		a.watch.log.Info("execution ended", "outcome", outcomes.OK, "account_type", a.id.AccountType, "user_id",
			a.id.AccountID, "step", a.name)
	}
}

// errNoKeyYet is the error of a call before the key is minted, when the step does not know the address yet.
var errNoKeyYet = errors.New("the execution has not begun")

// keptKeys is how many of the used keys are remembered. A proxy that runs for days has used more, but the older ones
// have expired.
const keptKeys = 4

// lateKeys is the key source of a proxy that listens before the key is minted. It remembers the keys that it returned.
type lateKeys struct {
	lease    atomic.Pointer[lease]
	returned atomic.Pointer[[]string]
	fence    func() error // if not nil, returns why the key must no longer be used
}

// Key implements proxy.KeySource.
func (k *lateKeys) Key(ctx context.Context) (string, error) {
	leased := k.lease.Load()
	if leased == nil {
		return "", errNoKeyYet
	}
	if err := k.fenced(); err != nil {
		return "", err
	}
	key, err := (*leased).Key(ctx)
	for returned := k.returned.Load(); err == nil; returned = k.returned.Load() {
		if returned != nil && slices.Contains(*returned, key) {
			break
		}
		var more []string
		if returned != nil {
			more = slices.Clone((*returned)[max(0, len(*returned)-keptKeys+1):])
		}
		more = append(more, key)
		if k.returned.CompareAndSwap(returned, &more) {
			break
		}
	}
	return key, err
}

func (k *lateKeys) used() []string {
	if returned := k.returned.Load(); returned != nil {
		return *returned
	}
	return nil
}

// fenced returns why the key must no longer be used.
func (k *lateKeys) fenced() error {
	if k.fence == nil {
		return nil
	}
	if err := k.fence(); err != nil {
		return &minter.UnavailableError{Reason: err.Error(), Err: err}
	}
	return nil
}

// Renew implements proxy.Renewer.
func (k *lateKeys) Renew(ctx context.Context, stale string) (string, error) {
	leased := k.lease.Load()
	if leased == nil {
		return "", errNoKeyYet
	}
	if err := k.fenced(); err != nil {
		return "", err
	}
	return (*leased).Renew(ctx, stale)
}

// authorizer adapts a policy principal to the proxy.
type authorizer struct{ principal *policy.Principal }

// Authorize implements proxy.Authorizer.
func (a authorizer) Authorize(ctx context.Context, method, path string) proxy.Decision {
	return proxy.Decision(a.principal.Authorize(ctx, method, path))
}
