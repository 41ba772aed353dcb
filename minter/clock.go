package minter

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/redis/go-redis/v9"
)

// ClockSkew returns by how much the clock of Redis is ahead of the one of this machine; negative: behind. It is exact to half of a
// round trip.
func ClockSkew(ctx context.Context, client redis.UniversalClient) (time.Duration, error) {
	began := time.Now()
	there, err := client.Time(ctx).Result()
	if err != nil {
		return 0, err
	}
	return there.Sub(began.Add(time.Since(began) / 2).Round(0)), nil
}

// Probe does to Redis what minting does, for a business that is none: it says whether a key could be minted now. It leaves nothing.
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

// probeLifetime is how long the record of a probe stays that could not be deleted.
const probeLifetime = 5 * time.Second
