package minter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/ids"
)

// Revoker revokes signed keys before they expire, with effect on the next request. It needs no signing key. It leaves
// one small Redis key per scope, which expires after [MaxLifetime]. A suspension stays until it is lifted; the
// account's timeline shows both. An error is about an invalid ID, or comes from the Redis client.
type Revoker struct {
	redis    redis.UniversalClient
	operator string
	unlogged func(error)
}

// NewRevoker returns a Revoker that uses the Redis of the minters.
func NewRevoker(client redis.UniversalClient) *Revoker {
	return &Revoker{client, "an operator", func(error) {}}
}

// As returns a Revoker that names the operator in the timelines of accounts. It calls unlogged if a change could not be
// added to a timeline; the change itself is in effect.
func (r *Revoker) As(operator string, unlogged func(error)) *Revoker {
	return &Revoker{r.redis, operator, unlogged}
}

// Revocation is the revocation of one key, or of all keys of a scope.
type Revocation struct {
	// Again reports that [Revoker.Suspend] found the account already suspended by an operator.
	Again bool

	redis      redis.UniversalClient
	businessID string
	scope      string // the Redis key of the scope's generation; empty for one key
	before     string // the scope's generation before the revocation
	record     any    // the record of the one key
	perAccount bool   // it revoked the keys of whole accounts, not of one execution
}

// Key revokes the signed key with this ID (the JWT's jti) in a business.
func (r *Revoker) Key(ctx context.Context, businessID, id string) (Revocation, error) {
	revoked := Revocation{redis: r.redis, businessID: businessID}
	err := r.do("key", businessID, id, func() error {
		// The mark shows that the key was revoked, and not lost.
		was, err := before(r.redis.SetArgs(ctx, recordKey(businessID, id), revokedRecord,
			redis.SetArgs{Mode: "XX", KeepTTL: true, Get: true}))
		revoked.record = was
		return err
	})
	return revoked, err
}

// Execution revokes every key that was minted for an execution.
func (r *Revoker) Execution(ctx context.Context, businessID, id string) (Revocation, error) {
	return r.revoke(ctx, "execution", businessID, id, executionKey(businessID, id), false)
}

// Account revokes every key that was minted for an account. The account can still get new ones.
func (r *Revoker) Account(ctx context.Context, businessID, id string) (Revocation, error) {
	return r.revoke(ctx, "account", businessID, id, accountKey(businessID, id), true)
}

// Business revokes every key that was minted for a business.
func (r *Revoker) Business(ctx context.Context, id string) (Revocation, error) {
	return r.revoke(ctx, "business", id, id, businessKey(id), true)
}

func (r *Revoker) revoke(ctx context.Context, what, businessID, id, scope string, perAccount bool) (Revocation, error) {
	revoked := Revocation{redis: r.redis, businessID: businessID, scope: scope, perAccount: perAccount}
	err := r.do(what, businessID, id, func() (err error) {
		revoked.before, err = before(r.redis.SetArgs(ctx, scope, newGeneration(), redis.SetArgs{TTL: MaxLifetime, Get: true}))
		return err
	})
	return revoked, err
}

// Suspend suspends an account as an operator: until [Revoker.Resume], all its signed and stored keys are refused and no
// new one is minted. Its signed keys stay revoked even after that.
func (r *Revoker) Suspend(ctx context.Context, businessID, accountID string) (Revocation, error) {
	revoked := Revocation{redis: r.redis, businessID: businessID, scope: accountKey(businessID, accountID)}
	err := r.do("account", businessID, accountID, func() error {
		var generation, mark *redis.StatusCmd
		_, err := r.redis.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
			mark = pipe.SetArgs(ctx, markKey(businessID, accountID, ReasonOperator), "1", redis.SetArgs{Get: true})
			generation = pipe.SetArgs(ctx, revoked.scope, newGeneration(), redis.SetArgs{TTL: MaxLifetime, Get: true})
			return nil
		})
		if err != nil && !errors.Is(err, redis.Nil) { // redis.Nil: one of the two did not exist before
			return err
		}
		was, err := before(mark)
		if err != nil {
			return err
		}
		revoked.Again = was != ""
		if !revoked.Again {
			r.addToTimeline(ctx, businessID, accountID, "", ActionSuspend)
		}
		revoked.before, err = before(generation)
		return err
	})
	return revoked, err
}

// Resume lifts only an operator's suspension of an account. lifted is false if the account had none; left lists the
// reasons for which it stays suspended.
func (r *Revoker) Resume(ctx context.Context, businessID, accountID string) (lifted bool, left []Reason, err error) {
	err = r.do("account", businessID, accountID, func() error {
		n, err := r.redis.Del(ctx, markKey(businessID, accountID, ReasonOperator)).Result()
		if err != nil {
			return err
		}
		if lifted = n > 0; lifted {
			r.addToTimeline(ctx, businessID, accountID, "", ActionResume)
		}
		all, err := Suspensions(ctx, r.redis, businessID, accountID)
		if err == nil {
			left = all[0]
		}
		return err
	})
	return lifted, left, err
}

func (r *Revoker) do(what, businessID, id string, command func() error) error {
	err := errors.Join(ids.Check("business id", businessID), ids.Check(what+" id", id))
	if err == nil {
		err = command()
	}
	if err != nil {
		return fmt.Errorf("revoke %s %q: %w", what, id, err)
	}
	return nil
}

// newGeneration returns a new generation of a scope, which invalidates every record with another one.
func newGeneration() string { return rand.Text() }

// before returns the value that a SET with GET replaced, or "" if the key did not exist.
func before(replaced *redis.StatusCmd) (string, error) {
	value, err := replaced.Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	return value, err
}

// sharded is implemented by clients of a cluster.
type sharded interface {
	MasterForKey(ctx context.Context, key string) (*redis.Client, error)
}

// countBatch is how many Redis keys one SCAN examines.
const countBatch = 1000

// Ended returns the identity of each signed key that the revocation ended: those that were valid before it. It scans
// all keys in Redis, in batches, and serves only to inform: the revocation is already in effect.
func (r Revocation) Ended(ctx context.Context) ([]Identity, error) {
	ended, err := r.ended(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the revoked keys: %w", err)
	}
	return ended, nil
}

// AddToTimelines shows a revocation in the timelines of the accounts whose keys it ended, as [Revocation.Ended] returns
// them: once for each account, or for each execution if it was one of an execution or of a key.
func (r *Revoker) AddToTimelines(ctx context.Context, revoked Revocation, ended []Identity) {
	told := map[Identity]bool{}
	for _, id := range ended {
		entry := Identity{AccountID: id.AccountID, ExecutionID: id.ExecutionID}
		if revoked.perAccount {
			entry.ExecutionID = ""
		}
		if !told[entry] {
			told[entry] = true
			r.addToTimeline(ctx, revoked.businessID, entry.AccountID, entry.ExecutionID, ActionRevoke)
		}
	}
}

func (r Revocation) ended(ctx context.Context) (ended []Identity, err error) {
	if r.scope == "" {
		return r.live(ctx, []any{r.record})
	}
	var node redis.Cmdable = r.redis
	if c, ok := r.redis.(sharded); ok { // the keys of a business are in one slot, and SCAN runs on one node
		master, err := c.MasterForKey(ctx, r.scope)
		if err != nil {
			return nil, err
		}
		node = master
	}
	seen := map[string]bool{} // SCAN may return a key twice
	for cursor, first := uint64(0), true; first || cursor != 0; first = false {
		var names []string
		var err error
		names, cursor, err = node.Scan(ctx, cursor, recordKey(r.businessID, "*"), countBatch).Result()
		if err != nil {
			return nil, err
		}
		var fresh []string
		for _, name := range names {
			if !seen[name] {
				seen[name] = true
				fresh = append(fresh, name)
			}
		}
		if len(fresh) == 0 {
			continue
		}
		records, err := r.redis.MGet(ctx, fresh...).Result()
		if err != nil {
			return nil, err
		}
		here, err := r.live(ctx, records)
		if err != nil {
			return nil, err
		}
		ended = append(ended, here...)
	}
	return ended, nil
}

// live returns the identities of the records that were valid until this revocation ended them.
func (r Revocation) live(ctx context.Context, texts []any) (live []Identity, err error) {
	var records []record
	var names []string
	for _, text := range texts {
		text, _ := text.(string) // nil: it has expired in the meantime
		var found record
		if json.Unmarshal([]byte(text), &found) != nil || found.BusinessID != r.businessID {
			continue
		}
		keys := scopeKeys(Identity{BusinessID: r.businessID, AccountID: found.AccountID, ExecutionID: found.ExecutionID})
		scopes := keys[:len(generations{})]
		if r.scope != "" && scopes[0] != r.scope && scopes[1] != r.scope && scopes[2] != r.scope {
			continue
		}
		records, names = append(records, found), append(names, scopes...)
	}
	if len(records) == 0 {
		return nil, nil
	}
	values, err := r.redis.MGet(ctx, names...).Result()
	if err != nil {
		return nil, err
	}
	for i, found := range records {
		var then generations
		for j := range then {
			at := i*len(then) + j
			then[j], _ = values[at].(string)
			if names[at] == r.scope {
				then[j] = r.before
			}
		}
		if found.Generations.validUnder(then) {
			live = append(live, Identity{AccountID: found.AccountID, AccountType: found.AccountType,
				BusinessID: found.BusinessID, ExecutionID: found.ExecutionID})
		}
	}
	return live, nil
}
