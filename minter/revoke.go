package minter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// Revoker ends signed keys before they expire, effective on the next request that carries one. It needs no signing key. What
// it leaves in Redis is one small key a scope, which expires after [MaxLifetime]; a suspension stays until it is lifted. Its
// errors are about an id that cannot be one, or a [*RedisError].
type Revoker struct{ redis redis.UniversalClient }

// NewRevoker returns a Revoker on the Redis of the minters.
func NewRevoker(client redis.UniversalClient) *Revoker { return &Revoker{client} }

// Key revokes the one signed key of a business that has this id, the JWT's jti.
func (r *Revoker) Key(ctx context.Context, businessID, id string) error {
	return r.do("key", businessID, id, func() error {
		return r.redis.Del(ctx, recordKey(businessID, id)).Err()
	})
}

// Execution revokes every key that was minted for an execution.
func (r *Revoker) Execution(ctx context.Context, businessID, id string) error {
	return r.do("execution", businessID, id, func() error { return r.supersede(ctx, r.redis, executionKey(businessID, id)) })
}

// Account revokes every key that was minted for an account. It may go on with new ones.
func (r *Revoker) Account(ctx context.Context, businessID, id string) error {
	return r.do("account", businessID, id, func() error { return r.supersede(ctx, r.redis, accountKey(businessID, id)) })
}

// Business revokes every key that was minted for a business.
func (r *Revoker) Business(ctx context.Context, id string) error {
	return r.do("business", id, id, func() error { return r.supersede(ctx, r.redis, businessKey(id)) })
}

// Suspend revokes every key of an account, and lets none be minted until [Revoker.Resume]. The keys it had stay revoked then.
func (r *Revoker) Suspend(ctx context.Context, businessID, accountID string) error {
	return r.do("account", businessID, accountID, func() error {
		_, err := r.redis.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
			pipe.Set(ctx, suspendedKey(businessID, accountID), "1", 0)
			return r.supersede(ctx, pipe, accountKey(businessID, accountID))
		})
		return err
	})
}

// Resume lets keys be minted for an account again.
func (r *Revoker) Resume(ctx context.Context, businessID, accountID string) error {
	return r.do("account", businessID, accountID, func() error {
		return r.redis.Del(ctx, suspendedKey(businessID, accountID)).Err()
	})
}

func (r *Revoker) do(what, businessID, id string, command func() error) error {
	err := errors.Join(validateID("business id", businessID), validateID(what+" id", id))
	if err == nil {
		err = command()
	}
	if err != nil {
		return fmt.Errorf("revoke %s %q: %w", what, id, err)
	}
	return nil
}

// supersede starts a new generation of a scope, which leaves every record that names another one dead.
func (r *Revoker) supersede(ctx context.Context, redis redis.Cmdable, scope string) error {
	return redis.Set(ctx, scope, rand.Text(), MaxLifetime).Err()
}
