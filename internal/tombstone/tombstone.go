// Package tombstone keeps the id of an execution from running twice: a small key in Redis outlives the result of the execution.
package tombstone

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// Limit is the least time for which an id does not run again.
const Limit = 7 * 24 * time.Hour

// Key is where the tombstone of an execution is. Its value is the SHA-256 of what was submitted, in hexadecimal.
func Key(business, id string) string { return "kizen:{" + business + "}:ran:" + id }

// Store keeps tombstones for a service that starts executions at once.
type Store struct{ Redis redis.UniversalClient }

// Begin writes down that the code of an execution starts now, of which digest was submitted. It is false if it has started before.
func (s Store) Begin(ctx context.Context, business, id, digest string) (bool, error) {
	return s.Redis.SetNX(ctx, Key(business, id), digest, Limit).Result()
}

// Begun reports whether the code of an execution has started.
func (s Store) Begun(ctx context.Context, business, id string) (bool, error) {
	found, err := s.Redis.MGet(ctx, Key(business, id)).Result() // GET is not among what a sidecar is allowed
	return err == nil && found[0] != nil, err
}
