package minter

import (
	"context"
	"crypto/rand"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

var benchIdentity = Identity{AccountID: "account-1", AccountType: "service_automation", BusinessID: "business-1",
	ExecutionID: "execution-1"}

// bench is a minter and a verifier on one key set and a real Redis.
type bench struct {
	redis    redis.UniversalClient
	minter   *Minter
	verifier *Verifier
	keys     *KeySet
}

func newBench(b *testing.B) *bench {
	b.Helper()
	client, err := redisconn.Open(redisconn.Config{URL: redistest.Start(b).URL()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = client.Close() })
	text, err := NewSigningKey(time.Time{})
	if err != nil {
		b.Fatal(err)
	}
	keys, err := LoadKeySet(KeySetConfig{Text: text.JWK()})
	if err != nil {
		b.Fatal(err)
	}
	m, err := New(Config{Redis: client, Keys: keys})
	if err != nil {
		b.Fatal(err)
	}
	v, err := NewVerifier(VerifierConfig{Redis: client, Keys: keys})
	if err != nil {
		b.Fatal(err)
	}
	return &bench{client, m, v, keys}
}

func (x *bench) mint(b *testing.B) Key {
	key, err := x.minter.Mint(b.Context(), benchIdentity, time.Minute)
	if err != nil {
		b.Fatal(err)
	}
	return key
}

// set is the baseline: one Redis SET with a lifetime, of the size of a record.
func (x *bench) set(b *testing.B) {
	if err := x.redis.Set(b.Context(), "baseline", string(make([]byte, 200)), time.Minute).Err(); err != nil {
		b.Fatal(err)
	}
}

// compare alternates prepare, the baseline and the subject, so that other load on the machine affects both equally, and
// reports the median of each and their ratio.
func compare(b *testing.B, prepare, baseline, subject func()) {
	b.Helper()
	var times [2][]time.Duration
	for b.Loop() {
		prepare()
		for i, run := range []func(){baseline, subject} {
			start := time.Now()
			run()
			times[i] = append(times[i], time.Since(start))
		}
	}
	var medians [2]float64
	for i := range times {
		slices.Sort(times[i])
		medians[i] = float64(times[i][len(times[i])/2])
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(medians[0]/1e3, "baseline-µs")
	b.ReportMetric(medians[1]/1e3, "subject-µs")
	b.ReportMetric(medians[1]/medians[0], "ratio")
}

func BenchmarkMintAgainstOneSet(b *testing.B) {
	x := newBench(b)
	compare(b, func() {}, func() { x.set(b) }, func() { x.mint(b) })
}

// BenchmarkMintUnsignedAgainstOneSet measures the Redis part of minting, without the signature, whose share depends on
// the latency of Redis.
func BenchmarkMintUnsignedAgainstOneSet(b *testing.B) {
	x := newBench(b)
	compare(b, func() {}, func() { x.set(b) }, func() {
		now := time.Now()
		key := Key{ID: rand.Text(), Identity: benchIdentity, IssuedAt: now, ExpiresAt: now.Add(time.Minute)}
		if _, err := x.minter.store.put(b.Context(), key, nil, nil, nil); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkRevokeAgainstOneSet(b *testing.B) {
	x := newBench(b)
	var key Key
	compare(b, func() { key = x.mint(b) }, func() { x.set(b) }, func() {
		if err := x.minter.Revoke(b.Context(), key); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkVerifyAgainstOneSet(b *testing.B) {
	x := newBench(b)
	key := x.mint(b)
	compare(b, func() {}, func() { x.set(b) }, func() {
		if _, err := x.verifier.Verify(b.Context(), key.Token.Reveal(), benchIdentity.BusinessID, benchIdentity.AccountID); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkVerifyStoredAgainstOneSet(b *testing.B) {
	x := newBench(b)
	sealing, err := NewSealingKey(time.Time{})
	if err != nil {
		b.Fatal(err)
	}
	if x.keys, err = LoadKeySet(KeySetConfig{Text: sealing.JWK()}); err != nil {
		b.Fatal(err)
	}
	x.verifier.config.Keys = x.keys
	stored, err := NewStoredKeys(x.redis, x.keys)
	if err != nil {
		b.Fatal(err)
	}
	key, err := stored.Create(b.Context(), benchIdentity, time.Time{})
	if err != nil {
		b.Fatal(err)
	}
	compare(b, func() {}, func() { x.set(b) }, func() {
		if _, err := x.verifier.Verify(b.Context(), key.Token.Reveal(), benchIdentity.BusinessID, benchIdentity.AccountID); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	keys, err := GenerateKeySet()
	if err != nil {
		b.Fatal(err)
	}
	signer, err := keys.state.Load().signer(time.Now())
	if err != nil {
		b.Fatal(err)
	}
	key := Key{ID: "AAAAAAAAAAAAAAAAAAAAAAAAAA", Identity: benchIdentity, IssuedAt: time.Now(),
		ExpiresAt: time.Now().Add(time.Minute)}
	for b.Loop() {
		if _, err := sign(newClaims(key, DefaultIssuer, DefaultAudience), signer); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyWithoutRecord(b *testing.B) {
	x := newBench(b)
	token := x.mint(b).Token.Reveal()
	for b.Loop() {
		if _, _, err := x.verifier.parse(context.Background(), token); err != nil {
			b.Fatal(err)
		}
	}
}
