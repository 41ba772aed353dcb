package minter_test

import (
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/minter"
)

var someone = minter.Identity{AccountID: "account-1", AccountType: "service_automation", BusinessID: "business-1", ExecutionID: "execution-1"}

// fixture is a minter and a verifier on one embedded Redis.
type fixture struct {
	minter   *minter.Minter
	verifier *minter.Verifier
}

func newFixture(t testing.TB) fixture {
	t.Helper()
	embedded, err := minter.StartEmbedded("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(embedded.Close)
	client, err := minter.OpenRedis(minter.RedisConfig{URL: embedded.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	keys, err := minter.GenerateKeySet()
	if err != nil {
		t.Fatal(err)
	}
	m, err := minter.New(minter.Config{Redis: client, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	v, err := minter.NewVerifier(minter.VerifierConfig{Redis: client, TrustPublished: true})
	if err != nil {
		t.Fatal(err)
	}
	return fixture{m, v}
}

func TestMintedKeyIsValidUntilItIsRevoked(t *testing.T) {
	f := newFixture(t)
	key, err := f.minter.Mint(t.Context(), someone, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	id, err := f.verifier.Verify(t.Context(), key.Token.Reveal(), someone.BusinessID, someone.AccountID)
	if err != nil || id != someone {
		t.Fatalf("verify = %v, %v", id, err)
	}
	if err := f.minter.Revoke(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if _, err := f.verifier.Verify(t.Context(), key.Token.Reveal(), someone.BusinessID, someone.AccountID); err == nil {
		t.Fatal("a revoked key is valid")
	}
}
