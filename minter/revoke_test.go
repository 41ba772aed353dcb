package minter_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/minter"
)

func errorOf(_ minter.Revocation, err error) error { return err }

// family mints one key for each way in which an identity can differ from someone's.
func family(t *testing.T, f fixture) map[string]minter.Key {
	t.Helper()
	return map[string]minter.Key{
		"the key":     f.mint(t, someone),
		"its sibling": f.mint(t, someone),
		"another execution": f.mint(t, minter.Identity{AccountID: "account-1", AccountType: "service_automation",
			BusinessID: "business-1", ExecutionID: "execution-2"}),
		"another account": f.mint(t, minter.Identity{AccountID: "account-2", AccountType: "service_integration",
			BusinessID: "business-1", ExecutionID: "execution-3"}),
		"another business": f.mint(t, minter.Identity{AccountID: "account-1", AccountType: "service_automation",
			BusinessID: "business-2", ExecutionID: "execution-1"}),
	}
}

func TestRevocationAffectsOnlyItsScopeAtOnce(t *testing.T) {
	for name, row := range map[string]struct {
		revoke func(context.Context, *minter.Revoker, minter.Key) error
		dead   []string
	}{
		"key": {
			func(ctx context.Context, r *minter.Revoker, k minter.Key) error {
				return errorOf(r.Key(ctx, "business-1", k.ID))
			},
			[]string{"the key"},
		},
		"execution": {
			func(ctx context.Context, r *minter.Revoker, _ minter.Key) error {
				return errorOf(r.Execution(ctx, "business-1", "execution-1"))
			},
			[]string{"the key", "its sibling"},
		},
		"account": {
			func(ctx context.Context, r *minter.Revoker, _ minter.Key) error {
				return errorOf(r.Account(ctx, "business-1", "account-1"))
			},
			[]string{"the key", "its sibling", "another execution"},
		},
		"business": {
			func(ctx context.Context, r *minter.Revoker, _ minter.Key) error {
				return errorOf(r.Business(ctx, "business-1"))
			},
			[]string{"the key", "its sibling", "another execution", "another account"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			everyStore(t, func(t *testing.T, f fixture) {
				keys := family(t, f)
				want := map[string]string{}
				for _, dead := range row.dead {
					want[dead] = minter.CodeRevoked
				}
				revoker := minter.NewRevoker(f.redis)
				for range 2 { // a repeated revocation does not affect the others
					if err := row.revoke(t.Context(), revoker, keys["the key"]); err != nil {
						t.Fatal(err)
					}
					for name, key := range keys {
						if code := f.verify(t, key); code != want[name] {
							t.Errorf("%s: %q, want %q", name, code, want[name])
						}
					}
				}
				if code := f.verify(t, f.mint(t, someone)); code != "" {
					t.Errorf("a key minted after the revocation is refused: %s", code)
				}
				if code := f.verify(t, keys["the key"]); code != minter.CodeRevoked {
					t.Errorf("the mint after the revocation revived a key that was revoked: %q", code)
				}
			})
		})
	}
}

// nextKey waits until a lease returns a key other than before, or an error, and fails the test if a key that it returns
// meanwhile is accepted.
func nextKey(t *testing.T, f fixture, lease *minter.Lease, before string) (string, error) {
	t.Helper()
	for {
		key, err := lease.Key(t.Context())
		if err != nil || key != before {
			return key, err
		}
		if code := f.verify(t, minter.Key{Token: minter.NewToken(key), Identity: someone}); code == "" {
			t.Fatal("the key is good although it was revoked")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestLeaseDoesNotOutliveTheRevocationOfItsExecution(t *testing.T) {
	everyStore(t, func(t *testing.T, f fixture) {
		revoker := minter.NewRevoker(f.redis)
		open := func() (*minter.Lease, string) {
			lease, err := f.minter.Lease(t.Context(), someone, 300*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = lease.Close(context.Background()) })
			key, err := lease.Key(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return lease, key
		}
		for range 2 { // the second lease opens while the revocation of the first is remembered
			lease, key := open()
			if _, err := revoker.Execution(t.Context(), "business-1", "execution-1"); err != nil {
				t.Fatal(err)
			}
			var unavailable *minter.UnavailableError
			_, err := nextKey(t, f, lease, key)
			if !errors.As(err, &unavailable) || !errors.Is(err, minter.ErrRevoked) ||
				unavailable.Reason != "the signed key is no longer valid: the execution was revoked" {
				t.Errorf("Key after the revocation = %v", err)
			}
			if err := lease.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		for name, revoke := range map[string]func() error{
			"account":  func() error { return errorOf(revoker.Account(t.Context(), "business-1", "account-1")) },
			"business": func() error { return errorOf(revoker.Business(t.Context(), "business-1")) },
		} {
			lease, key := open()
			if err := revoke(); err != nil {
				t.Fatal(err)
			}
			if next, err := nextKey(t, f, lease, key); err != nil ||
				f.verify(t, minter.Key{Token: minter.NewToken(next), Identity: someone}) != "" {
				t.Errorf("%s: the renewed key is refused, %v", name, err)
			}
		}
	})
}

func TestKeyOfALeaseReturnsAtOnceAfterARevocation(t *testing.T) {
	f := onRedis(t, embedded(t).URL())
	lease, err := f.minter.Lease(t.Context(), someone, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lease.Close(context.Background()) }()
	if _, err := minter.NewRevoker(f.redis).Execution(t.Context(), "business-1", "execution-1"); err != nil {
		t.Fatal(err)
	}
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if key, err := lease.Key(impatient); err != nil ||
		f.verify(t, minter.Key{Token: minter.NewToken(key), Identity: someone}) != minter.CodeRevoked {
		t.Errorf("Key = %v, want the key at once, which the API then refuses", err)
	}
}

func TestSuspendedAccountHasNoKeysAndGetsNone(t *testing.T) {
	everyStore(t, func(t *testing.T, f fixture) {
		keys := family(t, f)
		revoker := minter.NewRevoker(f.redis)
		if _, err := revoker.Suspend(t.Context(), "business-1", "account-1"); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{
			"the key": minter.CodeSuspended, "another execution": minter.CodeSuspended, "another account": "",
			"another business": "",
		} {
			if code := f.verify(t, keys[name]); code != want {
				t.Errorf("%s: %q, want %q", name, code, want)
			}
		}
		if key, err := f.minter.Mint(t.Context(), someone, time.Minute); !errors.Is(err, minter.ErrSuspended) ||
			key.Token.Reveal() != "" {
			t.Errorf("Mint = %v, %v; want ErrSuspended", key, err)
		}
		// Revoking the keys of a suspended account must not lift the suspension.
		if _, err := revoker.Account(t.Context(), "business-1", "account-1"); err != nil {
			t.Fatal(err)
		}
		if _, err := f.minter.Mint(t.Context(), someone, time.Minute); !errors.Is(err, minter.ErrSuspended) {
			t.Errorf("Mint = %v, want ErrSuspended", err)
		}
		if _, _, err := revoker.Resume(t.Context(), "business-1", "account-1"); err != nil {
			t.Fatal(err)
		}
		if code := f.verify(t, keys["the key"]); code != minter.CodeRevoked {
			t.Errorf("resuming the account revived its old key: %q", code)
		}
		if code := f.verify(t, f.mint(t, someone)); code != "" {
			t.Errorf("a key of the resumed account is refused: %s", code)
		}
	})
}

// TestARevocationCountsTheKeysThatItEnded covers every scope, and checks that keys which were already invalid do not
// count.
func TestARevocationCountsTheKeysThatItEnded(t *testing.T) {
	everyStore(t, func(t *testing.T, f fixture) {
		r := minter.NewRevoker(f.redis)
		keys := family(t, f)
		for range 1200 { // more than one SCAN examines
			f.mint(t, minter.Identity{AccountID: "account-9", AccountType: "service_automation", BusinessID: "business-1",
				ExecutionID: "execution-9"})
		}
		for _, step := range []struct {
			name   string
			revoke func() (minter.Revocation, error)
			want   int
		}{
			{"one key", func() (minter.Revocation, error) { return r.Key(t.Context(), "business-1", keys["its sibling"].ID) },
				1},
			{"the same key", func() (minter.Revocation,
				error) {
				return r.Key(t.Context(), "business-1", keys["its sibling"].ID)
			}, 0},
			{"an unknown execution", func() (minter.Revocation,
				error) {
				return r.Execution(t.Context(), "business-1", "execution-7")
			}, 0},
			{"an execution of another business", func() (minter.Revocation,
				error) {
				return r.Execution(t.Context(), "business-2", "execution-2")
			}, 0},
			{"an execution", func() (minter.Revocation, error) { return r.Execution(t.Context(), "business-1", "execution-1") },
				1},
			{"the same execution", func() (minter.Revocation,
				error) {
				return r.Execution(t.Context(), "business-1", "execution-1")
			}, 0},
			{"a key that was dead", func() (minter.Revocation,
				error) {
				return r.Key(t.Context(), "business-1", keys["the key"].ID)
			}, 0},
			{"an account", func() (minter.Revocation, error) { return r.Account(t.Context(), "business-1", "account-1") }, 1},
			{"a suspension", func() (minter.Revocation, error) { return r.Suspend(t.Context(), "business-1", "account-2") }, 1},
			{"a business", func() (minter.Revocation, error) { return r.Business(t.Context(), "business-1") }, 1200},
			{"another business", func() (minter.Revocation, error) { return r.Business(t.Context(), "business-2") }, 1},
		} {
			revoked, err := step.revoke()
			if err != nil {
				t.Fatal(err)
			}
			if ended, err := revoked.Ended(t.Context()); len(ended) != step.want || err != nil {
				t.Errorf("%s: %d keys, %v; want %d", step.name, len(ended), err, step.want)
			}
		}
	})
}

// TestReasonsOfASuspensionAreLiftedOneByOne walks through every pair of reasons.
func TestReasonsOfASuspensionAreLiftedOneByOne(t *testing.T) {
	f := onRedis(t, embedded(t).URL())
	all := []minter.Reason{minter.ReasonOperator, minter.ReasonDisabled, minter.ReasonArchived}
	in := func(do func(context.Context, redis.Pipeliner, string, string, minter.Reason), reason minter.Reason) {
		t.Helper()
		if _, err := f.redis.TxPipelined(t.Context(), func(pipe redis.Pipeliner) error {
			do(t.Context(), pipe, "business-1", "account-1", reason)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, first := range all {
		for _, second := range all {
			in(minter.SuspendIn, first)
			in(minter.SuspendIn, second)
			in(minter.LiftIn, first)
			_, err := f.minter.Mint(t.Context(), someone, time.Minute)
			if suspended := errors.Is(err, minter.ErrSuspended); suspended != (first != second) {
				t.Errorf("%s lifted, %s not: %v", first, second, err)
			}
			if first != second && !strings.Contains(err.Error(), string(second)) {
				t.Errorf("%v does not name %s", err, second)
			}
			in(minter.LiftIn, second)
			f.mint(t, someone)
		}
	}
}

func TestRevokerRefusesInvalidIDs(t *testing.T) {
	f := onRedis(t, embedded(t).URL())
	r := minter.NewRevoker(f.redis)
	for name, err := range map[string]error{
		"empty":     errorOf(r.Execution(t.Context(), "business-1", "")),
		"pattern":   errorOf(r.Execution(t.Context(), "business-1", "*")),
		"other key": errorOf(r.Key(t.Context(), "business-1}:account:{x", "a")),
		"business":  errorOf(r.Business(t.Context(), "")),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestNothingIsLeftAfterAThousandExecutions(t *testing.T) {
	t.Parallel()
	everyStore(t, func(t *testing.T, f fixture) {
		const lifetime = time.Second
		revoker := minter.NewRevoker(f.redis)
		for i := range 1000 {
			id := someone
			id.BusinessID, id.ExecutionID = fmt.Sprint("business-", i%7), fmt.Sprint("execution-", i)
			key, err := f.minter.Mint(t.Context(), id, lifetime)
			if err != nil {
				t.Fatal(err)
			}
			switch i % 4 {
			case 0, 1: // a clean end
				err = f.minter.Revoke(t.Context(), key)
			case 2:
				_, err = revoker.Key(t.Context(), id.BusinessID, key.ID)
			} // the last quarter crashed first
			if err != nil {
				t.Fatal(err)
			}
		}
		if n := f.redis.DBSize(t.Context()).Val(); n > 500+7 {
			t.Errorf("redis holds %d keys, want at most those of crashed executions, of keys revoked by their id, and the public key of 7 businesses", n)
		}
		for names := f.redis.Keys(t.Context(), "*").Val(); len(names) > 0; names = f.redis.Keys(t.Context(), "*").Val() {
			for _, name := range names {
				if left := f.redis.PTTL(t.Context(), name).Val(); left == -1 || left > lifetime+time.Second {
					t.Fatalf("%s lives for %s", name, left)
				}
			}
			time.Sleep(50 * time.Millisecond) // ends only because everything expires
		}
	})
}

// TestALostRecordDiffersFromARevokedOne: a sidecar mints a new key only for a lost record.
func TestALostRecordDiffersFromARevokedOne(t *testing.T) {
	everyStore(t, func(t *testing.T, f fixture) {
		r := minter.NewRevoker(f.redis)
		forget := func(key minter.Key) error {
			return f.redis.Del(t.Context(), "kizen:{business-1}:key:"+key.ID).Err()
		}
		for _, row := range []struct {
			name string
			end  func(key minter.Key) error
			lost bool
		}{
			{"lost", forget, true},
			{"the key", func(key minter.Key) error { return errorOf(r.Key(t.Context(), "business-1", key.ID)) }, false},
			{"the key, twice", func(key minter.Key) error {
				return errors.Join(errorOf(r.Key(t.Context(), "business-1", key.ID)),
					errorOf(r.Key(t.Context(), "business-1", key.ID)))
			}, false},
			{"the execution", func(minter.Key) error { return errorOf(r.Execution(t.Context(), "business-1", "execution-1")) },
				false},
			{"the execution, and lost", func(key minter.Key) error {
				return errors.Join(errorOf(r.Execution(t.Context(), "business-1", "execution-1")), forget(key))
			}, false},
			{"the account", func(minter.Key) error { return errorOf(r.Account(t.Context(), "business-1", "account-1")) }, false},
			{"the business", func(minter.Key) error { return errorOf(r.Business(t.Context(), "business-1")) }, false},
			{"suspended, and lost", func(key minter.Key) error {
				return errors.Join(errorOf(r.Suspend(t.Context(), "business-1", "account-1")), forget(key))
			}, false},
		} {
			key := f.mint(t, someone)
			if err := row.end(key); err != nil {
				t.Fatal(err)
			}
			_, err := f.verifier.Verify(t.Context(), key.Token.Reveal(), "business-1", "account-1")
			denied, ok := errors.AsType[*minter.DeniedError](err)
			if !ok || denied.Lost != row.lost || strings.Contains(minter.Challenge(denied), `record="lost"`) != row.lost {
				t.Errorf("%s: %+v", row.name, err)
			}
			left, err := f.redis.TTL(t.Context(), "kizen:{business-1}:key:"+key.ID).Result()
			if err != nil || left == -1 || left > time.Hour {
				t.Errorf("%s: what is left of the record expires in %s, %v", row.name, left, err)
			}
		}
	})
}

func TestSuspensionTakesEffectIfTheTimelineFails(t *testing.T) {
	f := onRedis(t, embedded(t).URL())
	if err := f.redis.Set(t.Context(), minter.TimelineKey("business-1", "account-1"), "no stream", 0).Err(); err != nil {
		t.Fatal(err)
	}
	var missing []error
	r := minter.NewRevoker(f.redis).As("me", func(err error) { missing = append(missing, err) })
	if _, err := r.Suspend(t.Context(), "business-1", "account-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.minter.Mint(t.Context(), someone, time.Minute); !errors.Is(err, minter.ErrSuspended) {
		t.Errorf("Mint = %v, want ErrSuspended", err)
	}
	if lifted, _, err := r.Resume(t.Context(), "business-1", "account-1"); !lifted || err != nil || len(missing) != 2 {
		t.Errorf("lifted: %v, %v; reported %v", lifted, err, missing)
	}
}
