// Package tombstone prevents the id of an execution from running twice, with a small key in Redis that outlives the
// execution's result.
package tombstone

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// Limit is the minimum time for which an id does not run again.
const Limit = 7 * 24 * time.Hour

// Key returns the Redis key of an execution's tombstone. Its value is the SHA-256 of the submitted request, in
// hexadecimal.
func Key(business, id string) string { return "kizen:{" + business + "}:ran:" + id }

// Store keeps the tombstones of a service that starts executions at once.
type Store struct{ Redis redis.UniversalClient }

// Begin records that the code of an execution starts now; digest is that of its request. It returns false if the code
// has already started.
func (s Store) Begin(ctx context.Context, business, id, digest string) (bool, error) {
	return s.Redis.SetNX(ctx, Key(business, id), digest, Limit).Result()
}

// Begun reports whether the code of an execution has started.
func (s Store) Begun(ctx context.Context, business, id string) (bool, error) {
	found, err := s.Redis.MGet(ctx, Key(business, id)).Result() // a sidecar's ACL does not include GET
	return err == nil && found[0] != nil, err
}
