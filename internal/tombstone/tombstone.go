// Package tombstone prevents the ID of an execution from running twice. It uses a small key in Redis that outlives the
// execution's result.
package tombstone

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// Limit is the minimal time for which an ID cannot run again.
const Limit = 7 * 24 * time.Hour

// Key returns the Redis key of an execution's tombstone. Its value is the SHA-256 of the submitted request, in
// hexadecimal.
func Key(business, id string) string { return "kizen:{" + business + "}:ran:" + id }

// Store keeps the tombstones of a service that starts executions directly, without a queue in Redis.
type Store struct{ Redis redis.UniversalClient }

// Begin records that the code of an execution starts now; digest is the digest of its request. It returns false if the
// code has already started.
func (s Store) Begin(ctx context.Context, business, id, digest string) (bool, error) {
	return s.Redis.SetNX(ctx, Key(business, id), digest, Limit).Result()
}

// Begun reports whether the code of an execution has started.
func (s Store) Begun(ctx context.Context, business, id string) (bool, error) {
	found, err := s.Redis.MGet(ctx, Key(business, id)).Result() // a sidecar's ACL does not include GET
	return err == nil && found[0] != nil, err
}
