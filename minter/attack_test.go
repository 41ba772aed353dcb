package minter_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/minter"
)

// forge builds forged keys: it has a key set that a verifier trusts, a valid key, and methods to alter it.
type forge struct {
	fixture
	*attacks.Workbench
	good minter.Key
}

func newForge(t testing.TB) *forge {
	t.Helper()
	_, private := pair(t)
	keys := load(t, write(t, filepath.Join(t.TempDir(), "key.pem"), pemOf(t, private)))
	g := &forge{fixture: withKeys(t, keys, keys)}
	g.good = g.mint(t, someone)
	g.Workbench = attacks.NewWorkbench(attacks.Workbench{
		Good: g.good.Token.Reveal(), KeyID: keys.Current(), Trusted: private, Audience: minter.DefaultAudience,
		Leeway: minter.DefaultLeeway,
	})
	return g
}

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

func TestForgedTokensAreRefused(t *testing.T) {
	g := newForge(t)
	// The changes in the table must be the reason for a refusal: signed again without a change, the key is valid.
	if _, err := g.verifier.Verify(t.Context(), g.Unchanged(), "business-1", "account-1"); err != nil {
		t.Fatal(err)
	}
	for _, attack := range g.Tokens() {
		t.Run(attack.Name, func(t *testing.T) {
			id, err := g.verifier.Verify(t.Context(), attack.Text, "business-1", "account-1")
			var denied *minter.DeniedError
			if !errors.As(err, &denied) || id != (minter.Identity{}) {
				t.Fatalf("Verify = %v, %v; want a refusal", id, err)
			}
			if !slices.Contains(strings.Fields(attack.Codes), denied.Code) {
				t.Errorf("refused as %s (%v), want %s", denied.Code, denied.Err, attack.Codes)
			}
			if strings.Contains(denied.Error(), attack.Text) || strings.Contains(denied.Reason, "\n") {
				t.Errorf("the reason quotes the token: %s", denied.Reason)
			}
		})
	}
	if code := g.verify(t, g.good); code != "" {
		t.Errorf("after the attacks, the valid key is refused: %s", code)
	}
}

func TestHeadersMustBeTheKeysOwn(t *testing.T) {
	g := newForge(t)
	for name, row := range map[string]struct{ business, user, want string }{
		"other business": {"business-2", "account-1", minter.CodeBusiness},
		"no business":    {"", "account-1", minter.CodeBusiness},
		"other user":     {"business-1", "account-2", minter.CodeUser},
		"no user":        {"business-1", "", minter.CodeUser},
		"swapped":        {"account-1", "business-1", minter.CodeBusiness},
		"case":           {"Business-1", "account-1", minter.CodeBusiness},
	} {
		_, err := g.verifier.Verify(t.Context(), g.good.Token.Reveal(), row.business, row.user)
		var denied *minter.DeniedError
		if !errors.As(err, &denied) || denied.Code != row.want {
			t.Errorf("%s: %v, want %s", name, err, row.want)
		}
	}
}

func TestClocksMayDifferByAtMostTheLeeway(t *testing.T) {
	g := newForge(t)
	keys, err := minter.LoadKeySet(minter.KeySetConfig{Text: minter.NewToken(pemOf(t, g.Trusted))})
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		ahead time.Duration // by how much the verifier's clock is ahead of the minter's
		want  string
	}{
		"same clock":             {0, ""},
		"ahead within leeway":    {time.Minute + 4*time.Second, ""},
		"ahead beyond leeway":    {time.Minute + 7*time.Second, minter.CodeExpired},
		"behind within leeway":   {-9 * time.Second, ""}, // keys are backdated by the leeway too
		"behind beyond leeway":   {-12 * time.Second, minter.CodeNotYetValid},
		"a year behind":          {-365 * 24 * time.Hour, minter.CodeNotYetValid},
		"ahead, almost expired":  {time.Minute - 2*time.Second, ""},
		"ahead, a year too late": {365 * 24 * time.Hour, minter.CodeExpired},
	} {
		var err error
		g.verifier, err = minter.NewVerifier(minter.VerifierConfig{Redis: g.redis, Keys: keys,
			Now: func() time.Time { return time.Now().Add(row.ahead) }})
		if err != nil {
			t.Fatal(err)
		}
		if got := g.verify(t, g.mint(t, someone)); got != row.want {
			t.Errorf("%s: %q, want %q", name, got, row.want)
		}
	}
}

func TestReplayIsRefused(t *testing.T) {
	g := newForge(t)
	if err := g.minter.Revoke(t.Context(), g.good); err != nil {
		t.Fatal(err)
	}
	if got := g.verify(t, g.good); got != minter.CodeRevoked {
		t.Errorf("after a revocation: %q", got)
	}
	// The record expires with the key's lifetime; the leeway for clocks does not extend it.
	short, err := g.minter.Mint(t.Context(), someone, 30*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(short.ExpiresAt.Add(time.Millisecond)))
	if got := g.verify(t, short); got != minter.CodeRevoked {
		t.Errorf("after its lifetime: %q", got)
	}
}

func TestWritingToRedisIsNotEnough(t *testing.T) {
	g := newForge(t)
	value := g.redis.Get(t.Context(), g.redis.Keys(t.Context(), "*:key:*").Val()[0]).Val()
	forged := strings.Replace(value, "execution-1", "execution-9", 1)
	set := func(key, value string) {
		if err := g.redis.Set(t.Context(), key, value, time.Minute).Err(); err != nil {
			t.Fatal(err)
		}
	}
	set("kizen:{business-1}:key:MALLORY", forged)
	jwk := `{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","kid":"mallory","x":"` + b64(g.OwnPublic()) + `"}`
	set("kizen:{business-1}:jwk:mallory", jwk)
	claims := map[string]any{"jti": "MALLORY", "execution_id": "execution-9"}
	for name, row := range map[string]struct{ token, want string }{
		"a record and our kid":             {g.Own(g.KeyID, claims), minter.CodeSignature},
		"a record and a published key":     {g.Own("mallory", claims), minter.CodeUnknownKey},
		"a record and no signature at all": {g.Unsigned(claims), minter.CodeSignature},
	} {
		_, err := g.verifier.Verify(t.Context(), row.token, "business-1", "account-1")
		var denied *minter.DeniedError
		if !errors.As(err, &denied) || denied.Code != row.want {
			t.Errorf("%s: %v, want %s", name, err, row.want)
		}
	}
	// A record is valid only for its own key.
	set("kizen:{business-1}:key:"+g.good.ID, forged)
	if got := g.verify(t, g.good); got != minter.CodeRevoked {
		t.Errorf("a record of another identity: %q", got)
	}
	for _, broken := range []string{"", "null", "{}", "[]", "\xff"} {
		set("kizen:{business-1}:key:"+g.good.ID, broken)
		if got := g.verify(t, g.good); got != minter.CodeRevoked {
			t.Errorf("record %q: %q", broken, got)
		}
	}
}

func TestPublishedKeyVerifiesOnlyInItsBusiness(t *testing.T) {
	f := onRedis(t, embedded(t).URL())
	key := f.mint(t, someone)
	name := f.redis.Keys(t.Context(), "*:jwk:*").Val()[0]
	jwk := f.redis.Get(t.Context(), name).Val()
	other := onRedis(t, embedded(t).URL())
	elsewhere := other.mint(t, minter.Identity{AccountID: "account-1", AccountType: "service_automation",
		BusinessID: "business-2", ExecutionID: "execution-1"})
	if _, err := f.verifier.Verify(t.Context(), elsewhere.Token.Reveal(), "business-2", "account-1"); err == nil {
		t.Error("a key whose public half is not published here is accepted")
	}
	// This published key has an ID that is not its thumbprint.
	_, mallory := pair(t)
	forged := strings.Replace(jwk, jwk[strings.Index(jwk, `"x":"`)+5:][:43], b64(mallory.Public().(ed25519.PublicKey)), 1)
	if err := f.redis.Set(t.Context(), name, forged, time.Minute).Err(); err != nil || forged == jwk {
		t.Fatal(err, forged)
	}
	var denied *minter.DeniedError
	if _, err := f.verifier.Verify(t.Context(), key.Token.Reveal(), "business-1", "account-1"); !errors.As(err, &denied) {
		t.Errorf("Verify with a swapped published key = %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	g := newForge(f)
	good := g.good.Token.Reveal()
	f.Add(good)
	for _, attack := range g.Tokens() {
		if len(attack.Text) < 1<<12 {
			f.Add(attack.Text)
		}
	}
	f.Fuzz(func(t *testing.T, token string) {
		id, err := g.verifier.Verify(t.Context(), token, "business-1", "account-1")
		var denied *minter.DeniedError
		switch {
		case err == nil && (token != good || id != someone):
			t.Errorf("accepted %q as %v", token, id)
		case err != nil && !errors.As(err, &denied):
			t.Errorf("Verify(%q) = %v, want a refusal", token, err)
		}
	})
}

func FuzzLoadKeySet(f *testing.F) {
	_, private := pair(f)
	f.Add(pemOf(f, private))
	f.Add(pemOf(f, private.Public().(ed25519.PublicKey)))
	key, err := minter.NewSigningKey(time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(key.JWK().Reveal())
	f.Add(`{"keys":[` + key.JWK().Reveal() + `]}`)
	f.Fuzz(func(t *testing.T, text string) {
		set, err := minter.LoadKeySet(minter.KeySetConfig{Text: minter.NewToken(text)})
		if err != nil {
			return
		}
		jwks, err := set.JWKS()
		if err != nil || strings.Contains(string(jwks), `"d"`) || strings.Contains(string(jwks), `"k"`) {
			t.Errorf("JWKS = %s, %v", jwks, err)
		}
	})
}
