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

// Probe writes to Redis as minting does, for a reserved business ID, to check whether a key could be minted now. It
// deletes what it wrote.
func Probe(ctx context.Context, client redis.UniversalClient) error {
	now := time.Now()
	key := Key{ID: rand.Text(), IssuedAt: now, ExpiresAt: now.Add(probeLifetime), Identity: Identity{
		AccountID: "readiness", AccountType: "service_automation", BusinessID: "readiness", ExecutionID: "readiness",
	}}
	s := store{client}
	if _, err := s.put(ctx, key, nil, nil, nil); err != nil {
		return err
	}
	return s.delete(ctx, recordKey(key.Identity.BusinessID, key.ID))
}

// probeLifetime is the expiry of a probe's record, in case it cannot be deleted.
const probeLifetime = 5 * time.Second
