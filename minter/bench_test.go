package minter

import (
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/minter/redistest"
)

var benchIdentity = Identity{AccountID: "account-1", AccountType: "service_automation", BusinessID: "business-1", ExecutionID: "execution-1"}

func BenchmarkSign(b *testing.B) {
	keys, err := GenerateKeySet()
	if err != nil {
		b.Fatal(err)
	}
	signer, err := keys.state.Load().signer(time.Now())
	if err != nil {
		b.Fatal(err)
	}
	key := Key{ID: "AAAAAAAAAAAAAAAAAAAAAAAAAA", Identity: benchIdentity, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Minute)}
	for b.Loop() {
		if s := sign(newClaims(key, DefaultIssuer, DefaultAudience), signer); s.err != nil {
			b.Fatal(s.err)
		}
	}
}

func BenchmarkMint(b *testing.B) {
	client, err := OpenRedis(RedisConfig{URL: redistest.Start(b).URL()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	keys, err := GenerateKeySet()
	if err != nil {
		b.Fatal(err)
	}
	m, err := New(Config{Redis: client, Keys: keys})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("set", func(b *testing.B) {
		for b.Loop() {
			if err := client.Set(b.Context(), "baseline", "0123456789", time.Minute).Err(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("mint", func(b *testing.B) {
		for b.Loop() {
			if _, err := m.Mint(b.Context(), benchIdentity, time.Minute); err != nil {
				b.Fatal(err)
			}
		}
	})
}
