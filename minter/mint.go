package minter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// DefaultIssuer is the iss claim of signed keys.
	DefaultIssuer = "kizen-sidecar"
	// DefaultAudience is the aud claim of signed keys.
	DefaultAudience = "kizen-api"
	// MaxLifetime is the maximal lifetime of a signed key. It is fixed because revocations are also kept for that
	// long.
	MaxLifetime = time.Hour
)

// Config configures a [Minter]. Redis and Keys are required.
type Config struct {
	Redis    redis.UniversalClient // the caller closes it
	Keys     *KeySet
	Issuer   string           // default [DefaultIssuer]
	Audience string           // default [DefaultAudience]
	Now      func() time.Time // default time.Now
	Admit    Admission        // if nil, every account that is not suspended gets keys
	// Renewed, if not nil, is called after each renewal of a [Lease].
	Renewed func(ctx context.Context, took time.Duration, err error)
}

// Minter mints and revokes signed keys. It is safe for concurrent use.
type Minter struct {
	config    Config
	store     store
	published atomic.Int64 // the latest expiry of all keys signed so far, in milliseconds since the epoch
}

// publishSlack is how much longer than necessary a public key stays published, so that concurrent mints need not extend
// it again.
const publishSlack = 500 * time.Millisecond

// New validates config and returns a Minter. It does not contact Redis.
func New(config Config) (*Minter, error) {
	if config.Redis == nil || config.Keys == nil {
		return nil, errors.New("a minter needs a redis client and a key set")
	}
	if config.Issuer == "" {
		config.Issuer = DefaultIssuer
	}
	if config.Audience == "" {
		config.Audience = DefaultAudience
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Minter{config: config, store: store{config.Redis}}, nil
}

// Mint signs a key for id that is valid for lifetime (at least one millisecond, at most [MaxLifetime]) and writes its
// record, in one round trip to Redis. If it fails, or if it is unknown whether Redis stored the record, Mint returns no
// token, and any record in Redis expires after lifetime. Errors are a [*DeniedError] for an account that may not act
// now, or an error of the Redis client.
func (m *Minter) Mint(ctx context.Context, id Identity, lifetime time.Duration) (Key, error) {
	return m.mint(ctx, id, lifetime, nil)
}

// mint is Mint, or, if previous is not nil, the renewal of that key: it fails with [ErrRevoked] if the execution was
// revoked after previous was minted.
func (m *Minter) mint(ctx context.Context, id Identity, lifetime time.Duration, previous *Key) (Key, error) {
	if err := id.validate(); err != nil {
		return Key{}, fmt.Errorf("mint key: %w", err)
	}
	if lifetime < time.Millisecond || lifetime > MaxLifetime {
		return Key{}, fmt.Errorf("mint key for execution %s: a lifetime of %s is outside 1ms to %s", id.ExecutionID, lifetime,
			MaxLifetime)
	}
	if err := m.config.Admit.decide(ctx, id, nil); err != nil {
		return Key{}, fmt.Errorf("mint key for execution %s: %w", id.ExecutionID, err)
	}
	now := m.config.Now().Round(0) // only the wall clock: the monotonic clock stops while the machine sleeps
	key := Key{ID: rand.Text(), Identity: id, IssuedAt: now, ExpiresAt: now.Add(lifetime)}
	keys := m.config.Keys.state.Load()
	signer, err := keys.signer(now)
	if err != nil {
		return Key{}, fmt.Errorf("mint key for execution %s: %w", id.ExecutionID, err)
	}
	if key.Token, err = sign(newClaims(key, m.config.Issuer, m.config.Audience), signer); err != nil {
		return Key{}, fmt.Errorf("mint key for execution %s: %w", id.ExecutionID, err)
	}
	var public *published
	if keys.publish != nil {
		public = &published{id: signer.id, jwk: keys.publish}
	}
	if key.generations, err = m.put(ctx, key, public, previous); err != nil {
		return Key{}, fmt.Errorf("mint key for execution %s: %w", id.ExecutionID, err)
	}
	return key, nil
}

// put writes the record of key, and the public key if it is published.
func (m *Minter) put(ctx context.Context, key Key, public *published, previous *Key) (generations, error) {
	if public == nil {
		return m.store.put(ctx, key, nil, previous, m.config.Admit)
	}
	public.until = m.publishUntil(key.ExpiresAt).Add(publishSlack)
	named, err := m.store.put(ctx, key, public, previous, m.config.Admit)
	// A concurrent mint of a longer-lived key may have published before this one, which then shortened the
	// publication.
	for err == nil && m.publishUntil(key.ExpiresAt).After(public.until) {
		public.until = m.publishUntil(key.ExpiresAt).Add(publishSlack)
		err = m.store.publish(ctx, m.store.redis, key, public)
	}
	return named, err
}

// publishUntil records the expiry of a key, and returns the latest expiry of all keys that this minter has signed.
func (m *Minter) publishUntil(expires time.Time) time.Time {
	end := expires.UnixMilli() + 1
	for last := m.published.Load(); end > last; last = m.published.Load() {
		if m.published.CompareAndSwap(last, end) {
			break
		}
	}
	return time.UnixMilli(m.published.Load())
}

// Revoke invalidates key at once by deleting its record. Revoking an expired or revoked key is not an error.
func (m *Minter) Revoke(ctx context.Context, key Key) error {
	if err := m.store.delete(ctx, recordKey(key.Identity.BusinessID, key.ID)); err != nil {
		return fmt.Errorf("revoke key of execution %s: %w", key.Identity.ExecutionID, err)
	}
	return nil
}

// revokeAll revokes keys of one identity in one round trip.
func (m *Minter) revokeAll(ctx context.Context, keys ...Key) error {
	records := make([]string, len(keys))
	for i, key := range keys {
		records[i] = recordKey(key.Identity.BusinessID, key.ID)
	}
	if err := m.store.delete(ctx, records...); err != nil {
		return fmt.Errorf("revoke keys of execution %s: %w", keys[0].Identity.ExecutionID, err)
	}
	return nil
}
