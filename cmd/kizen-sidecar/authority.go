package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/proxy"
)

// revokeLimit bounds taking the key back. A key that could not be taken back
// dies by itself, so nobody waits longer for it.
const revokeLimit = 5 * time.Second

// authorityFlags say whom an execution acts as, by which rules, and with what
// keys.
type authorityFlags struct {
	targetFlags
	redisFlags
	keySetFlags
	policyFlags
	apiFlags
}

// grant is what authorityFlags mean: all that the caller can get wrong has
// been checked, and nothing is open.
type grant struct {
	flags  authorityFlags
	target target
	keys   *minter.KeySet
	proxy  proxy.Config
	log    *slog.Logger
}

// check reads and checks everything that the flags name.
func (f authorityFlags) check(log *slog.Logger) (grant, error) {
	g := grant{flags: f, log: log}
	var err error
	if g.target, err = f.resolve(log); err != nil {
		return g, err
	}
	if g.proxy, err = f.proxyConfig(log); err != nil {
		return g, err
	}
	engine, err := f.engine()
	if err != nil {
		return g, err
	}
	principal, err := engine.For(g.target.account())
	if err != nil {
		return g, usagef("--account-type: %w", err)
	}
	g.proxy.Authorizer = authorizer{principal}
	g.proxy.APIRoot, g.proxy.BusinessID, g.proxy.UserID = g.target.apiRoot, g.target.businessID, g.target.userID
	g.keys, err = f.keySetFlags.open(log)
	return g, err
}

// authority is what lets an execution call the API: a leased key, and the
// proxy that puts it into requests.
type authority struct {
	store *store
	lease *minter.Lease
	proxy *proxy.Proxy
	audit *os.File
	log   *slog.Logger
	// minting is how long the key took.
	minting time.Duration
}

// serving says where the proxy of an authority listens, and for how long its
// key and its calls may last.
type serving struct {
	// address is bound where listener is nil. A listener that is given is one
	// that nothing but the step can reach.
	address     string
	listener    net.Listener
	keyLifetime time.Duration
	// deadline ends calls; zero: none.
	deadline time.Time
}

// open binds the listener, then mints the key: no key ever exists for an
// execution that could not use it.
func (g grant) open(ctx context.Context, s serving) (*authority, error) {
	a := &authority{log: g.log}
	var keys lateKeys
	err := a.serve(g, s, &keys)
	if err == nil {
		err = a.mint(ctx, g, s.keyLifetime)
	}
	if err != nil {
		a.close(ctx, 0)
		return nil, err
	}
	keys.lease.Store(a.lease)
	return a, nil
}

// serve starts the proxy, which has no key to give yet.
func (a *authority) serve(g grant, s serving, keys *lateKeys) (err error) {
	config := g.proxy
	if a.audit, err = g.flags.openAudit(); err != nil {
		return err
	}
	if a.audit != nil {
		config.Audit = a.audit
	}
	config.Keys, config.Deadline = keys, s.deadline
	config.Listen, config.Listener, config.Open = s.address, s.listener, s.listener != nil
	made, err := proxy.New(config)
	if err != nil {
		return usageError{err}
	}
	if err := made.Start(); err != nil {
		return err
	}
	a.proxy = made
	return nil
}

func (a *authority) mint(ctx context.Context, g grant, lifetime time.Duration) (err error) {
	began := time.Now()
	if a.store, err = g.flags.redisFlags.open(g.log); err != nil {
		return err
	}
	m, err := minter.New(minter.Config{Redis: a.store, Keys: g.keys})
	if err != nil {
		return err
	}
	a.lease, err = m.Lease(ctx, g.target.identity(), lifetime)
	a.minting = time.Since(began)
	return err
}

// close lets requests in flight finish within grace, cuts them, and takes the
// key back, even when ctx has ended: an interrupt must leave no valid key
// behind. What goes wrong is logged and not returned, because the step's own
// outcome stands, and running it again for this would act twice.
func (a *authority) close(ctx context.Context, grace time.Duration) {
	ctx = context.WithoutCancel(ctx)
	if a.proxy != nil {
		if err := shutdown(ctx, a.proxy, grace); err != nil && grace > 0 {
			a.log.Warn("calls in flight were cut off", "grace", grace, "error", err)
		}
	}
	if a.lease != nil {
		limited, cancel := context.WithTimeout(ctx, revokeLimit)
		defer cancel()
		if err := a.lease.Close(limited); err != nil {
			a.log.Error("the key could not be taken back; it expires by itself", "error", err)
		}
	}
	if a.store != nil {
		a.store.close()
	}
	if err := closeAudit(a.audit); err != nil {
		a.log.Error("the audit may be incomplete", "error", err)
	}
}

func shutdown(ctx context.Context, p *proxy.Proxy, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	return p.Shutdown(ctx)
}

// errNoKeyYet is what a caller is told that found the listener before anybody
// was told of it.
var errNoKeyYet = errors.New("the execution has not begun")

// lateKeys is the key source of a proxy that listens before there is a key.
type lateKeys struct{ lease atomic.Pointer[minter.Lease] }

// Key implements proxy.KeySource.
func (k *lateKeys) Key(ctx context.Context) (string, error) {
	lease := k.lease.Load()
	if lease == nil {
		return "", errNoKeyYet
	}
	return lease.Key(ctx)
}
