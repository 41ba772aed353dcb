package minter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
)

// fakeMint replaces a Minter, so that a lease can be observed on the fake clock of synctest.
type fakeMint struct {
	mu      sync.Mutex
	lease   *Lease
	minted  []time.Time // when a mint succeeded
	tried   []time.Time // when one was tried
	revoked []string
	err     error         // what mints return
	slow    time.Duration // how long they take
	jumped  time.Duration // by how much the wall clock differs from the timers
}

func (f *fakeMint) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeMint) fail(err error) { f.set(func() { f.err = err }) }

func (f *fakeMint) tries() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.tried)
}

func (f *fakeMint) now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Add(f.jumped)
}

func (f *fakeMint) mint(lifetime time.Duration) func(context.Context, *Key) (Key, error) {
	return func(ctx context.Context, _ *Key) (Key, error) {
		f.mu.Lock()
		f.tried = append(f.tried, time.Now())
		slow := f.slow
		f.mu.Unlock()
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return Key{}, ctx.Err()
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.err != nil {
			return Key{}, f.err
		}
		f.minted = append(f.minted, time.Now())
		id := fmt.Sprint("key-", len(f.minted))
		return Key{ID: id, Token: NewToken(id), IssuedAt: time.Now().Add(f.jumped),
			ExpiresAt: time.Now().Add(f.jumped + lifetime)}, nil
	}
}

func (f *fakeMint) revoke(_ context.Context, keys ...Key) error {
	for _, key := range keys {
		f.revoked = append(f.revoked, key.ID)
	}
	return nil
}

func openFakeLease(t *testing.T, lifetime time.Duration) *fakeMint {
	t.Helper()
	f := &fakeMint{}
	f.lease = &Lease{mint: f.mint(lifetime), revoke: f.revoke, now: f.now}
	if err := f.lease.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.lease.Close(context.Background()) })
	return f
}

func (f *fakeMint) want(t *testing.T, key string) {
	t.Helper()
	if got, err := f.lease.Key(t.Context()); err != nil || got != key {
		t.Errorf("after %d mints: Key = %q, %v; want %q", len(f.minted), got, err, key)
	}
}

func TestLeaseRenewsAtTwoThirdsWithJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFakeLease(t, 60*time.Second)
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		var gaps []time.Duration
		for i, at := range f.minted[1:] {
			gap := at.Sub(f.minted[i])
			if gap < 34*time.Second || gap > 46*time.Second {
				t.Errorf("renewal %d came %s after the one before, want two thirds of a minute give or take a tenth of it", i+1,
					gap)
			}
			gaps = append(gaps, gap)
		}
		if slices.Max(gaps)-slices.Min(gaps) < time.Second {
			t.Error("renewals come at equal intervals, without jitter")
		}
		f.want(t, fmt.Sprint("key-", len(f.minted)))
	})
}

func TestLeaseKeyDoesNotWaitForARunningRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFakeLease(t, 60*time.Second)
		f.set(func() { f.slow = 5 * time.Second })
		for f.tries() < 2 {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		before := time.Now()
		f.want(t, "key-1")
		if waited := time.Since(before); waited != 0 {
			t.Errorf("a call waited %s for a renewal although its key is valid", waited)
		}
	})
}

func TestLeaseUsesTheValidKeyWhileRedisIsDownThenSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFakeLease(t, 60*time.Second)
		down := &redisconn.Error{Server: "redis at 10.0.0.1:6379", Reason: "refused the connection"}
		f.fail(down)
		time.Sleep(59 * time.Second)
		synctest.Wait()
		f.want(t, "key-1")

		time.Sleep(time.Second)
		_, err := f.lease.Key(t.Context())
		var unavailable *UnavailableError
		if !errors.As(err, &unavailable) || !errors.Is(err, down) {
			t.Fatalf("Key of an expired lease = %v, want an UnavailableError that wraps the cause", err)
		}
		if want := "the signed key has expired and cannot be renewed: the key store does not answer"; unavailable.Reason != want {
			t.Errorf("reason = %q, want %q", unavailable.Reason, want)
		}
		if retries := len(f.tried) - 1; retries < 5 || retries > 30 {
			t.Errorf("%d retries in 20 seconds: backoff is missing or too long", retries)
		}

		f.fail(nil)
		time.Sleep(lastRetry)
		synctest.Wait()
		f.want(t, "key-2")
	})
}

func TestLeaseRenewsOnceForAllWaitingCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFakeLease(t, 60*time.Second)
		// As after a suspend of the machine: the wall clock passed the expiry, but the timer did not fire.
		f.set(func() { f.jumped, f.slow = time.Hour, time.Second })
		var waiting sync.WaitGroup
		for range 50 {
			waiting.Go(func() { f.want(t, "key-2") })
		}
		waiting.Wait()
		synctest.Wait()
		if len(f.tried) != 2 {
			t.Errorf("50 waiting calls made %d renewals, want one", len(f.tried)-1)
		}
	})
}

func TestLeaseWaitEndsWithTheCallersContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFakeLease(t, 60*time.Second)
		f.set(func() { f.jumped, f.slow = time.Hour, time.Hour })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.lease.Key(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Key = %v, want the context's error", err)
		}
	})
}

func TestLeaseCloseRevokesEveryKeyThatIsStillValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFakeLease(t, 60*time.Second)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		n := len(f.minted)
		expired := f.minted[:n-1]
		if err := f.lease.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := f.lease.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		var want []string
		for i, at := range append(expired, f.minted[n-1]) {
			// Close revokes only the keys that had not expired at the last renewal.
			if at.Add(time.Minute).After(f.minted[n-1]) {
				want = append(want, fmt.Sprint("key-", i+1))
			}
		}
		if !slices.Equal(f.revoked, want) {
			t.Errorf("revoked %v, want %v", f.revoked, want)
		}
		var unavailable *UnavailableError
		if _, err := f.lease.Key(t.Context()); !errors.As(err, &unavailable) {
			t.Errorf("Key of a closed lease = %v, want an UnavailableError", err)
		}
	})
}

func TestLeaseCloseInterruptsARenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFakeLease(t, 60*time.Second)
		f.set(func() { f.slow = time.Hour })
		time.Sleep(50 * time.Second)
		synctest.Wait()
		before := time.Now()
		if err := f.lease.Close(t.Context()); err != nil || time.Since(before) != 0 {
			t.Errorf("Close = %v after %s, want it at once", err, time.Since(before))
		}
	})
}

func TestLeaseReportsASuspendedAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFakeLease(t, 60*time.Second)
		f.fail(fmt.Errorf("mint key: %w", denied(CodeSuspended, ErrSuspended.Error(), ErrSuspended)))
		time.Sleep(50 * time.Second) // its lifetime is not over, but it is known to be invalid
		_, err := f.lease.Key(t.Context())
		if !errors.Is(err, ErrSuspended) || err.Error() != "the signed key is no longer valid: the account is suspended" {
			t.Errorf("Key = %v", err)
		}
		f.fail(nil)
		time.Sleep(lastRetry)
		synctest.Wait()
		f.want(t, "key-2")
	})
}

func TestLeaseFailsIfMintingFails(t *testing.T) {
	f := &fakeMint{err: errors.New("no redis")}
	l := &Lease{mint: f.mint(time.Minute), revoke: f.revoke, now: time.Now}
	if err := l.start(t.Context()); err == nil {
		t.Fatal("a lease opened although nothing was minted")
	}
}

func TestLeaseRevokesAKeyThatHasExpiredOnlyByTheWallClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFakeLease(t, 60*time.Second)
		f.set(func() { f.jumped = time.Hour })
		f.want(t, "key-2") // by the wall clock, the first has expired
		if err := f.lease.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(f.revoked, []string{"key-1", "key-2"}) {
			t.Errorf("revoked %v", f.revoked)
		}
	})
}

func TestARefusedKeyIsRenewedOnceForAllCallersAndNotAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFakeLease(t, time.Hour)
		f.set(func() { f.slow = time.Second })
		var asking sync.WaitGroup
		for range 50 {
			asking.Go(func() {
				if key, err := f.lease.Renew(t.Context(), "key-1"); key != "key-2" || err != nil {
					t.Errorf("Renew = %q, %v; want key-2", key, err)
				}
			})
		}
		asking.Wait()
		synctest.Wait()
		if len(f.tried) != 2 {
			t.Errorf("50 refused calls made %d renewals, want one", len(f.tried)-1)
		}
		for range 50 { // the new one is refused too
			var unavailable *UnavailableError
			if _, err := f.lease.Renew(t.Context(), "key-2"); !errors.As(err, &unavailable) {
				t.Errorf("Renew = %v, want an UnavailableError at once", err)
			}
		}
		if len(f.tried) != 2 {
			t.Errorf("%d renewals, want no other within %s", len(f.tried)-1, renewalPause)
		}
		time.Sleep(renewalPause)
		if key, err := f.lease.Renew(t.Context(), "key-2"); key != "key-3" || err != nil {
			t.Errorf("later: Renew = %q, %v; want key-3", key, err)
		}
		if key, err := f.lease.Renew(t.Context(), "key-1"); key != "key-3" || err != nil {
			t.Errorf("for a key that was replaced: Renew = %q, %v; want key-3", key, err)
		}
		f.fail(errors.New("redis is down"))
		time.Sleep(renewalPause)
		if _, err := f.lease.Renew(t.Context(), "key-3"); err == nil {
			t.Error("Renew hides that the renewal failed")
		}
	})
}
