package minter_test

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/minter"
)

var integration = minter.Identity{AccountID: "account-7", AccountType: "service_integration", BusinessID: "business-1"}

// vault is a fixture with stored keys, on the key set in dir.
type vault struct {
	fixture
	dir    string
	keys   *minter.KeySet
	stored *minter.StoredKeys
}

func newVault(t testing.TB, url string) *vault {
	t.Helper()
	v := &vault{dir: t.TempDir()}
	rotate(t, v.dir, time.Now())
	v.rotateSealing(t)
	v.keys = load(t, v.dir)
	v.fixture = onRedis(t, url)
	var err error
	if v.verifier, err = minter.NewVerifier(minter.VerifierConfig{Redis: v.redis, Keys: v.keys}); err != nil {
		t.Fatal(err)
	}
	if v.minter, err = minter.New(minter.Config{Redis: v.redis, Keys: v.keys}); err != nil {
		t.Fatal(err)
	}
	if v.stored, err = minter.NewStoredKeys(v.redis, v.keys); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *vault) rotateSealing(t testing.TB) string {
	t.Helper()
	key, err := minter.NewSealingKey(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := minter.WriteKey(v.dir, key); err != nil {
		t.Fatal(err)
	}
	return key.ID
}

func (v *vault) create(t testing.TB) minter.StoredKey {
	t.Helper()
	key, err := v.stored.Create(t.Context(), integration, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (v *vault) rotate(t testing.TB) minter.StoredKey {
	t.Helper()
	key, err := v.stored.Rotate(t.Context(), integration.BusinessID, integration.AccountID, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// code returns the code with which a stored key is refused, or "" if it is accepted.
func (v *vault) code(t testing.TB, key minter.StoredKey) string {
	t.Helper()
	return v.verify(t, minter.Key{Token: key.Token, Identity: integration})
}

func everyVault(t *testing.T, test func(t *testing.T, v *vault)) {
	t.Run("embedded", func(t *testing.T) { test(t, newVault(t, embedded(t).URL())) })
	t.Run("redis-server", func(t *testing.T) { test(t, newVault(t, redistest.Start(t).URL())) })
	t.Run("cluster", func(t *testing.T) { test(t, newVault(t, "redis+cluster://"+redistest.StartCluster(t)[0].Addr)) })
}

func TestStoredKeysAreAtMostPrimaryAndSecondary(t *testing.T) {
	everyVault(t, func(t *testing.T, v *vault) {
		b, a := integration.BusinessID, integration.AccountID
		if _, err := v.stored.Rotate(t.Context(), b, a, time.Time{}); !errors.Is(err, minter.ErrNoStored) {
			t.Errorf("Rotate without a key = %v", err)
		}
		first := v.create(t)
		if _, err := v.stored.Create(t.Context(), integration, time.Time{}); !errors.Is(err, minter.ErrStoredExists) {
			t.Errorf("Create twice = %v", err)
		}
		if err := v.stored.DeleteSecondary(t.Context(), b, a); !errors.Is(err, minter.ErrNoSecondary) {
			t.Errorf("DeleteSecondary without one = %v", err)
		}
		second, third := v.rotate(t), v.rotate(t)
		check := func(step string, want map[string]string) {
			t.Helper()
			got := map[string]string{"first": v.code(t, first), "second": v.code(t, second), "third": v.code(t, third)}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %v, want %v", step, got, want)
			}
		}
		check("after two rotations", map[string]string{"first": minter.CodeRevoked, "second": "", "third": ""})
		held, err := v.stored.View(t.Context(), b, a)
		if err != nil || len(held) != 2 {
			t.Fatalf("View = %v, %v", held, err)
		}
		for i, want := range []minter.StoredKey{third, second} {
			got := held[i]
			if got.ID != want.ID || got.Token.Reveal() != want.Token.Reveal() || got.Identity != integration ||
				got.Primary != (i == 0) || !got.CreatedAt.Equal(want.CreatedAt) {
				t.Errorf("View[%d] = %+v, want %+v", i, got, want)
			}
		}
		if err := v.stored.DeleteSecondary(t.Context(), b, a); err != nil {
			t.Fatal(err)
		}
		check("after the secondary is deleted", map[string]string{"first": minter.CodeRevoked, "second": minter.CodeRevoked,
			"third": ""})
		if err := v.stored.Delete(t.Context(), b, a); err != nil {
			t.Fatal(err)
		}
		check("after the account is archived", map[string]string{"first": minter.CodeRevoked, "second": minter.CodeRevoked,
			"third": minter.CodeRevoked})
	})
}

func TestConcurrentRotationsLeaveTwoKeys(t *testing.T) {
	everyVault(t, func(t *testing.T, v *vault) {
		v.create(t)
		const n = 6
		keys := make([]minter.StoredKey, n)
		var rotations sync.WaitGroup
		for i := range n {
			rotations.Go(func() { keys[i] = v.rotate(t) })
		}
		rotations.Wait()
		held, err := v.stored.View(t.Context(), integration.BusinessID, integration.AccountID)
		if err != nil || len(held) != 2 {
			t.Fatalf("View = %v, %v; want two keys", held, err)
		}
		for _, key := range keys {
			want := minter.CodeRevoked
			if slices.ContainsFunc(held, func(h minter.StoredKey) bool { return h.ID == key.ID }) {
				want = ""
			}
			if got := v.code(t, key); got != want {
				t.Errorf("key %s: %q, want %q", key.ID, got, want)
			}
		}
	})
}

func TestStoredKeyIsFoundByScannersButCannotBeGuessed(t *testing.T) {
	v := newVault(t, embedded(t).URL())
	token := v.create(t).Token.Reveal()
	if !regexp.MustCompile(`^kizen_[0-9A-Za-z]{49}$`).MatchString(token) {
		t.Errorf("%q is not prefixed", token)
	}
	body, sum := token[6:49], token[49:]
	n, _ := new(big.Int).SetString(sum, 62)
	if n.Uint64() != uint64(crc32.ChecksumIEEE([]byte(body))) {
		t.Errorf("the checksum of %q is not its CRC-32", body)
	}
	for name, row := range map[string]struct{ token, business, user, want string }{
		"good":            {token, "business-1", "account-7", ""},
		"other business":  {token, "business-2", "account-7", minter.CodeRevoked},
		"other account":   {token, "business-1", "account-8", minter.CodeUser},
		"business header": {token, "business-1}:stored:{x", "account-7", minter.CodeMalformed},
		"user header":     {token, "business-1", "account-7}x", minter.CodeMalformed},
		"no headers":      {token, "", "", minter.CodeMalformed},
		"checksum is wrong": {token[:len(token)-1] + string(token[len(token)-1]^1), "business-1", "account-7",
			minter.CodeMalformed},
		"truncated":    {token[:40], "business-1", "account-7", minter.CodeMalformed},
		"longer":       {token + "0", "business-1", "account-7", minter.CodeMalformed},
		"line end":     {token + "\n", "business-1", "account-7", minter.CodeMalformed},
		"prefix alone": {"kizen_", "business-1", "account-7", minter.CodeMalformed},
		"another key":  {another(), "business-1", "account-7", minter.CodeRevoked},
	} {
		_, err := v.verifier.Verify(t.Context(), row.token, row.business, row.user)
		var denied *minter.DeniedError
		if got := ""; errors.As(err, &denied) {
			if got = denied.Code; got != row.want {
				t.Errorf("%s: %q, want %q", name, got, row.want)
			}
		} else if err != nil || row.want != "" {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

// another returns a well-formed stored key that was never issued.
func another() string {
	body := strings.Repeat("A", 43)
	sum := big.NewInt(int64(crc32.ChecksumIEEE([]byte(body)))).Text(62)
	return "kizen_" + body + strings.Repeat("0", 6-len(sum)) + sum
}

func TestRedisHoldsStoredKeysSealedForTheirAccount(t *testing.T) {
	v := newVault(t, redistest.Start(t).URL())
	key := v.create(t)
	v.rotate(t)
	for _, name := range v.redis.Keys(t.Context(), "*").Val() {
		if value := v.redis.Get(t.Context(), name).Val(); strings.Contains(name+value, key.Token.Reveal()[6:20]) {
			t.Errorf("%s = %s holds the key", name, value)
		}
	}
	// A key sealed for one account does not open for another.
	sealed := v.redis.Get(t.Context(), "kizen:{business-1}:stored:account-7").Val()
	if err := v.redis.Set(t.Context(), "kizen:{business-1}:stored:account-8", sealed, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if keys, err := v.stored.View(t.Context(), "business-1", "account-8"); err == nil {
		t.Errorf("the keys of another account open: %v", keys)
	}
	// An owner entry written by hand, under a hash that belongs to no key.
	if err := v.redis.Set(t.Context(), "kizen:{business-1}:storedhash:00", `{"id":"x","account_id":"account-7","account_type":"service_integration","hash":"00"}`, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if code := v.verify(t, minter.Key{Token: minter.NewToken(another()), Identity: integration}); code != minter.CodeRevoked {
		t.Errorf("a key that was never issued: %q", code)
	}
}

func TestWritingToRedisGivesAStoredKeyNoOtherOwner(t *testing.T) {
	v := newVault(t, embedded(t).URL())
	key := v.create(t)
	name := v.redis.Keys(t.Context(), "*:storedhash:*").Val()[0]
	owner := v.redis.Get(t.Context(), name).Val()
	set := func(name, value string) {
		t.Helper()
		if err := v.redis.Set(t.Context(), name, value, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for what, row := range map[string]struct{ name, owner, business, user string }{
		"another account": {name, strings.Replace(owner, "account-7", "account-1", 1), "business-1", "account-1"},
		"another type": {name, strings.Replace(owner, "service_integration", "service_automation", 1),
			"business-1", "account-7"},
		"another business":         {strings.Replace(name, "business-1", "business-2", 1), owner, "business-2", "account-7"},
		"another key's id":         {name, strings.Replace(owner, key.ID, "AAAA", 1), "business-1", "account-7"},
		"an owner without proof":   {name, owner[:strings.Index(owner, `,"proof"`)] + "}", "business-1", "account-7"},
		"not the form of an owner": {name, "[]", "business-1", "account-7"},
	} {
		if row.owner == owner && row.name == name {
			t.Fatalf("%s: the attack changes nothing", what)
		}
		set(row.name, row.owner)
		_, err := v.verifier.Verify(t.Context(), key.Token.Reveal(), row.business, row.user)
		var denied *minter.DeniedError
		if !errors.As(err, &denied) || denied.Code != minter.CodeRevoked {
			t.Errorf("%s: %v, want a refusal", what, err)
		}
		set(name, owner)
	}
	if code := v.code(t, key); code != "" {
		t.Errorf("the owner's own key is refused: %s", code)
	}
	// A rotation does not reseal keys for a changed account type either.
	document := "kizen:{business-1}:stored:account-7"
	set(document, strings.Replace(v.redis.Get(t.Context(), document).Val(), "service_integration", "service_automation",
		1))
	if key, err := v.stored.Rotate(t.Context(), "business-1", "account-7", time.Time{}); err == nil {
		t.Errorf("Rotate = %+v of an account whose type was changed in redis", key.Identity)
	}
	if code := v.code(t, key); code != "" {
		t.Errorf("the refused rotation ended the key: %s", code)
	}
}

func TestStoredKeysWithoutTheirSealingKeyFailWithAClearError(t *testing.T) {
	v := newVault(t, embedded(t).URL())
	key := v.create(t)
	if err := os.Remove(filepath.Join(v.dir, v.keys.List()[1].ID+".jwk")); err != nil {
		t.Fatal(err)
	}
	if err := v.keys.Reload(); err != nil {
		t.Fatal(err)
	}
	elsewhere := integration
	elsewhere.AccountID = "account-8"
	if _, err := v.stored.Create(t.Context(), elsewhere, time.Time{}); !errors.Is(err, minter.ErrNoSealingKey) {
		t.Errorf("Create = %v", err)
	}
	if _, err := v.stored.Rotate(t.Context(), "business-1", "account-7", time.Time{}); !errors.Is(err,
		minter.ErrNoSealingKey) {
		t.Errorf("Rotate = %v", err)
	}
	if code := v.code(t, key); code != minter.CodeUnknownKey {
		t.Errorf("Verify: %q", code)
	}
	if err := v.stored.Delete(t.Context(), "business-1", "account-7"); err != nil {
		t.Errorf("Delete = %v", err)
	}
}

func TestErrorsOfStoredKeysNameTheRedisServer(t *testing.T) {
	t.Parallel()
	servers := map[string][]*redistest.Server{"redis://": {redistest.Start(t)},
		"redis+cluster://": redistest.StartCluster(t)}
	for scheme, nodes := range servers {
		v := newVault(t, scheme+nodes[0].Addr)
		v.create(t)
		for _, node := range nodes {
			node.Stop()
		}
		for what, err := range map[string]error{
			"Rotate": func() error {
				_, err := v.stored.Rotate(t.Context(), "business-1", "account-7", time.Time{})
				return err
			}(),
			"View":   func() error { _, err := v.stored.View(t.Context(), "business-1", "account-7"); return err }(),
			"Delete": v.stored.Delete(t.Context(), "business-1", "account-7"),
		} {
			var failed *redisconn.Error
			if !errors.As(err,
				&failed) ||
				failed.Error() != "redis at "+nodes[0].Addr+" refused the connection; start one there, or correct the redis url" {
				t.Errorf("%s%s: %v", scheme, what, err)
			}
		}
	}
}

func TestSuspendedAccountsStoredKeysAreRefusedUntilItIsResumed(t *testing.T) {
	v := newVault(t, embedded(t).URL())
	key := v.create(t)
	revoker := minter.NewRevoker(v.redis)
	if _, err := revoker.Suspend(t.Context(), integration.BusinessID, integration.AccountID); err != nil {
		t.Fatal(err)
	}
	if got := v.code(t, key); got != minter.CodeSuspended {
		t.Errorf("suspended: %q", got)
	}
	if _, _, err := revoker.Resume(t.Context(), integration.BusinessID, integration.AccountID); err != nil {
		t.Fatal(err)
	}
	if got := v.code(t, key); got != "" {
		t.Errorf("resumed: %q", got)
	}
}

func TestSealingKeyIsRotatedWithoutLosingAStoredKey(t *testing.T) {
	v := newVault(t, embedded(t).URL())
	first := v.create(t)
	old := v.keys.List()[1].ID
	v.rotateSealing(t)
	if err := v.keys.Reload(); err != nil {
		t.Fatal(err)
	}
	if code := v.code(t, first); code != "" {
		t.Errorf("a key sealed by the old sealing key is refused: %s", code)
	}
	second := v.rotate(t) // seals the first again
	newest := v.rotateSealing(t)
	other, err := minter.NewStoredKeys(v.redis, load(t, v.dir))
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := integration
	elsewhere.AccountID = "account-8"
	if key, err := other.Create(t.Context(), elsewhere, time.Time{}); err != nil ||
		v.verify(t, minter.Key{Token: key.Token, Identity: elsewhere}) != "" {
		t.Errorf("a key sealed by another process with %s, which this one has not loaded, is refused: %v", newest, err)
	}
	if err := os.Remove(filepath.Join(v.dir, old+".jwk")); err != nil {
		t.Fatal(err)
	}
	if err := v.keys.Reload(); err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]minter.StoredKey{"first": first, "second": second} {
		if code := v.code(t, key); code != "" {
			t.Errorf("%s key without the old sealing key: %s", name, code)
		}
	}
	if held, err := v.stored.View(t.Context(), integration.BusinessID, integration.AccountID); err != nil ||
		len(held) != 2 || held[1].Token.Reveal() != first.Token.Reveal() {
		t.Errorf("View = %v, %v", held, err)
	}
}

func TestStoredKeysNeedASealingKey(t *testing.T) {
	dir := t.TempDir()
	rotate(t, dir, time.Now())
	keys := load(t, dir)
	f := withKeys(t, keys, keys)
	if _, err := minter.NewStoredKeys(f.redis, keys); !errors.Is(err, minter.ErrNoSealingKey) {
		t.Errorf("NewStoredKeys = %v", err)
	}
	if code := f.verify(t, minter.Key{Token: minter.NewToken(another()), Identity: integration}); code != minter.CodeUnknownKey {
		t.Errorf("a stored key, verified without a sealing key: %q", code)
	}
}
