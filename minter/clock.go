package minter

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/redis/go-redis/v9"
)

// ClockSkew returns how far the clock of Redis is ahead of this machine's clock; it is negative if Redis is behind. The
// error is at most half a round trip.
func ClockSkew(ctx context.Context, client redis.UniversalClient) (time.Duration, error) {
	began := time.Now()
	there, err := client.Time(ctx).Result()
	if err != nil {
		return 0, err
	}
	return there.Sub(began.Add(time.Since(began) / 2).Round(0)), nil
}

// Probe checks whether a key could be minted now. It writes to Redis what minting with configured keys writes, but for
// a reserved business ID, and deletes it.
func Probe(ctx context.Context, client redis.UniversalClient) error {
	return store{client}.probe(ctx, time.Now(), nil, nil)
}

// Probe checks whether this minter could mint a key now, as the function Probe does. If the minter publishes its
// public keys, Probe also writes one, and deletes it.
func (m *Minter) Probe(ctx context.Context) error {
	now, keys := m.config.Now(), m.config.Keys.state.Load()
	signer, err := keys.signer(now)
	if err != nil {
		return err
	}
	var public *published
	if keys.publish != nil {
		public = &published{id: signer.id, jwk: keys.publish, until: now.Add(probeLifetime)}
	}
	return m.store.probe(ctx, now, public, m.config.Admit)
}

// probeLifetime is the expiry of the keys that a probe writes, in case it cannot delete them.
const probeLifetime = 5 * time.Second

func (s store) probe(ctx context.Context, now time.Time, public *published, admit Admission) error {
	key := Key{ID: rand.Text(), IssuedAt: now, ExpiresAt: now.Add(probeLifetime), Identity: Identity{
		AccountID: "readiness", AccountType: "service_automation", BusinessID: "readiness", ExecutionID: "readiness",
	}}
	if _, err := s.put(ctx, key, public, nil, admit); err != nil {
		return err
	}
	written := []string{recordKey(key.Identity.BusinessID, key.ID)}
	if public != nil {
		written = append(written, publishedKey(key.Identity.BusinessID, public.id))
	}
	return s.delete(ctx, written...)
}
