package minter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// DefaultIssuer is the iss claim of signed keys.
	DefaultIssuer = "kizen-sidecar"
	// DefaultAudience is the aud claim of signed keys.
	DefaultAudience = "kizen-api"
	// DefaultMaxLifetime bounds how long a signed key may live.
	DefaultMaxLifetime = time.Hour
)

// Config says how a [Minter] works. Redis and Keys are required.
type Config struct {
	Redis       redis.UniversalClient // from [OpenRedis]; the caller closes it
	Keys        *KeySet
	Issuer      string           // default [DefaultIssuer]
	Audience    string           // default [DefaultAudience]
	MaxLifetime time.Duration    // of a key; default [DefaultMaxLifetime]
	Now         func() time.Time // default time.Now
}

// Minter mints and revokes signed keys. It is safe for concurrent use.
type Minter struct {
	config Config
	store  store
}

// New checks config and returns a Minter. It does not talk to Redis.
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
	if config.MaxLifetime == 0 {
		config.MaxLifetime = DefaultMaxLifetime
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Minter{config: config, store: store{config.Redis}}, nil
}

// Mint signs a key for id that is valid for lifetime (at least one millisecond, at most Config.MaxLifetime) and writes its
// record, in one round trip to Redis. When it fails, or when nobody can tell whether Redis took the record, no token leaves
// this function, and what Redis may hold expires after lifetime. Errors are [ErrSuspended] or a [*RedisError].
func (m *Minter) Mint(ctx context.Context, id Identity, lifetime time.Duration) (Key, error) {
	if err := id.validate(); err != nil {
		return Key{}, fmt.Errorf("mint key: %w", err)
	}
	if lifetime < time.Millisecond || lifetime > m.config.MaxLifetime {
		return Key{}, fmt.Errorf("mint key for execution %s: a lifetime of %s is outside 1ms to %s", id.ExecutionID, lifetime, m.config.MaxLifetime)
	}
	now := m.config.Now()
	key := Key{ID: rand.Text(), Identity: id, IssuedAt: now, ExpiresAt: now.Add(lifetime)}
	keys := m.config.Keys.state.Load()
	var err error
	if key.Token, err = sign(newClaims(key, m.config.Issuer, m.config.Audience), keys.current); err != nil {
		return Key{}, fmt.Errorf("mint key for execution %s: %w", id.ExecutionID, err)
	}
	if err := m.store.put(ctx, key, keys.current.id, keys.publish); err != nil {
		return Key{}, fmt.Errorf("mint key for execution %s: %w", id.ExecutionID, err)
	}
	return key, nil
}

// Revoke ends key at once by deleting its record. Revoking a key that has expired or was revoked is no error.
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
