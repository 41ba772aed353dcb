package minter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/kizen/kizen-sidecar/internal/backoff"
	"github.com/kizen/kizen-sidecar/internal/routine"
)

const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Lease is a signed key that is renewed before it expires, for as long as the lease is open. It is safe for concurrent
// use.
type Lease struct {
	mint   func(ctx context.Context, previous *Key) (Key, error)
	revoke func(context.Context, ...Key) error
	now    func() time.Time

	stop    context.CancelFunc
	stopped chan struct{} // closed when the renewing goroutine has returned
	hurry   chan struct{} // asks for a renewal now

	mu       sync.Mutex
	key      leased
	old      []leased      // replaced keys that have not expired: calls in flight may still use them
	err      error         // of the last renewal; nil if it succeeded
	renewing bool          // a renewal requested at asked has not ended
	asked    time.Time     // when Renew last requested a renewal because a key was refused
	renewed  chan struct{} // closed and replaced when a renewal ends, successfully or not
	closed   bool
}

// leased is a key with its time of minting by the monotonic clock.
type leased struct {
	Key
	mintedAt time.Time
}

// expired reports whether the key's lifetime has passed, by the monotonic clock. If the wall clock jumps, ExpiresAt and
// the expiry of the record in Redis no longer agree.
func (k leased) expired() bool { return time.Since(k.mintedAt) >= k.ExpiresAt.Sub(k.IssuedAt) }

// UnavailableError says that the lease has no valid key: it expired and could not be renewed, it is known to be
// revoked, or the lease is closed. A proxy answers 503 with Reason.
type UnavailableError struct {
	Reason string // for the caller that asked for a key
	Err    error  // why the last renewal failed
}

// Error implements error.
func (e *UnavailableError) Error() string { return e.Reason }

// Unwrap returns why the last renewal failed.
func (e *UnavailableError) Unwrap() error { return e.Err }

// Lease mints a key for id and renews it at about two thirds of its lifetime until the lease is closed. If a renewal
// fails, the valid key stays in use and the lease retries with backoff. Revoking the execution ends the lease for good;
// keys revoked with their account or business are replaced at the next renewal. Errors are those of [Minter.Mint].
func (m *Minter) Lease(ctx context.Context, id Identity, lifetime time.Duration) (*Lease, error) {
	l := &Lease{
		mint: func(ctx context.Context, previous *Key) (Key, error) {
			began := time.Now()
			key, err := m.mint(ctx, id, lifetime, previous)
			if previous != nil && m.config.Renewed != nil {
				m.config.Renewed(ctx, time.Since(began), err)
			}
			return key, err
		},
		revoke: m.revokeAll,
		now:    m.config.Now,
	}
	if err := l.start(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Lease) start(ctx context.Context) error {
	key, err := l.mint(ctx, nil)
	if err != nil {
		return err
	}
	l.key = leased{key, time.Now()}
	l.stopped, l.hurry, l.renewed = make(chan struct{}), make(chan struct{}, 1), make(chan struct{})
	// The lease outlives the context of the request that opened it, and ends with Close.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	routine.Go(func() { l.run(running) })
	return nil
}

// Key returns the key to use now. It waits only if the lease has no valid key and a renewal may still succeed; all
// waiting callers share that renewal. The error is a [*UnavailableError], or ctx's.
func (l *Lease) Key(ctx context.Context) (string, error) {
	for {
		l.mu.Lock()
		key, err, renewed, closed := l.key, l.err, l.renewed, l.closed
		l.mu.Unlock()
		switch {
		case closed:
			return "", &UnavailableError{Reason: "the signed key of this execution was revoked: it has ended"}
		case l.now().Before(key.ExpiresAt):
			return key.Token.Reveal(), nil
		case err != nil:
			return "", &UnavailableError{Reason: publicReason(err), Err: err}
		}
		// The clock jumped over the renewal, as after a suspend.
		select {
		case l.hurry <- struct{}{}:
		default:
		}
		select {
		case <-renewed:
		case <-ctx.Done():
			return "", fmt.Errorf("wait for a signed key: %w", ctx.Err())
		}
	}
}

// renewalPause is the minimal time between renewals for refused keys. Without it, every call would request another key
// from a platform that refuses them all.
const renewalPause = 5 * time.Second

// Renew replaces the key stale, which the API refused although it had not expired, for example because Redis lost its
// data. It waits for a renewal, which concurrent callers share. It fails at once if the last requested renewal was less
// than 5 seconds ago, or if the renewal fails.
func (l *Lease) Renew(ctx context.Context, stale string) (string, error) {
	l.mu.Lock()
	key, renewed, closed := l.key, l.renewed, l.closed
	fresh := key.Token.Reveal() != stale
	waiting := !l.asked.IsZero() && time.Since(l.asked) < renewalPause
	joined := waiting && l.renewing
	if !fresh && !closed && !waiting {
		l.asked, l.renewing = time.Now(), true
	}
	l.mu.Unlock()
	switch {
	case closed:
		return "", &UnavailableError{Reason: "the signed key of this execution was revoked: it has ended"}
	case fresh:
		return l.Key(ctx)
	case waiting && !joined:
		return "", &UnavailableError{Reason: "the signed key was renewed a moment ago and is refused again"}
	}
	select {
	case l.hurry <- struct{}{}:
	default: // a renewal is already requested
	}
	select {
	case <-renewed:
	case <-ctx.Done():
		return "", fmt.Errorf("wait for a signed key: %w", ctx.Err())
	}
	l.mu.Lock()
	err := l.err
	l.mu.Unlock()
	if err != nil {
		return "", &UnavailableError{Reason: publicReason(err), Err: err}
	}
	return l.Key(ctx)
}

// publicReason keeps internal addresses out of messages that a step may read.
func publicReason(err error) string {
	var refusal *DeniedError
	switch {
	case errors.As(err, &refusal):
		return "the signed key is no longer valid: " + refusal.Reason
	case errors.Is(err, ErrRevoked):
		return "the signed key is no longer valid: " + ErrRevoked.Error()
	}
	return "the signed key has expired and cannot be renewed: the key store does not answer"
}

// Close stops renewals and revokes every key of the lease that has not expired. After it, Key returns a
// [*UnavailableError]. Closing a lease twice is not an error.
func (l *Lease) Close(ctx context.Context) error {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return nil
	}
	l.stop()
	<-l.stopped
	var keys []Key
	for _, k := range append(l.old, l.key) {
		keys = append(keys, k.Key)
	}
	return l.revoke(ctx, keys...)
}

func (l *Lease) run(ctx context.Context) {
	defer close(l.stopped)
	defer func() { close(l.renewed) }()
	timer := time.NewTimer(l.untilRenewal())
	defer timer.Stop()
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-l.hurry:
		}
		key, err := l.mint(ctx, &l.key.Key)
		l.store(key, err)
		switch {
		case err == nil:
			timer.Reset(l.untilRenewal())
			failures = 0
		case errors.Is(err, ErrRevoked):
			return
		default:
			failures++
			timer.Reset(backoff.Delay(failures, firstRetry, lastRetry))
		}
	}
}

// store records the result of a renewal and wakes the callers that wait for it.
func (l *Lease) store(key Key, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewing = false
	var refusal *DeniedError
	switch l.err = err; {
	case errors.As(err, &refusal), errors.Is(err, ErrRevoked):
		l.key.ExpiresAt = l.now() // the key is already invalid, so Key must not return it
	case err == nil:
		l.old = slices.DeleteFunc(append(l.old, l.key), leased.expired)
		l.key = leased{key, time.Now()}
		select {
		case <-l.hurry: // this renewal fulfils the request
		default:
		}
	}
	close(l.renewed)
	l.renewed = make(chan struct{})
}

// untilRenewal returns the time until the next renewal: two thirds of the lifetime, plus or minus a tenth, so that
// sidecars that started together do not renew together.
func (l *Lease) untilRenewal() time.Duration {
	lifetime := l.key.ExpiresAt.Sub(l.key.IssuedAt)
	jitter := time.Duration((rand.Float64()*2 - 1) * float64(lifetime) / 10)
	return max(l.key.IssuedAt.Add(lifetime*2/3+jitter).Sub(l.now()), 0)
}
