package minter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/redis/go-redis/v9"
)

// ErrRevoked ends a [Lease] whose execution was revoked.
var ErrRevoked = errors.New("the execution was revoked")

// generations holds the generation of each of a key's three scopes: business, account and execution. If a scope was not
// revoked in the last MaxLifetime, its generation is empty.
type generations [3]string

// ofExecution is the index of the execution's generation.
const ofExecution = 2

// record is the record of a signed key in Redis. It never contains the token.
type record struct {
	AccountID   string      `json:"account_id"`
	AccountType string      `json:"account_type"`
	BusinessID  string      `json:"business_id"`
	ExecutionID string      `json:"execution_id"`
	ExpiresAt   time.Time   `json:"expires_at"`
	Generations generations `json:"generations"`
}

// store keeps the records of signed keys. All Redis keys of a business share a hash tag, so they are in one cluster
// slot:
//
//	kizen:{BUSINESS}:key:JTI         a record as JSON, or the mark of a revoked key, until the key expires
//	kizen:{BUSINESS}:business        a scope's generation, until MaxLifetime after its revocation
//	kizen:{BUSINESS}:account:ID      the same
//	kizen:{BUSINESS}:execution:ID    the same
//	kizen:{BUSINESS}:MARK:ID         exists while the account is suspended for that reason, see [Reason]
//	kizen:{BUSINESS}:jwk:KID         a published public key, until the keys that it signed expire
//
// A key is valid while its record exists, its account is not suspended and none of its scopes has another generation.
// Revoking a scope gives it a new generation, which invalidates all earlier records at once, however many exist. They
// have all expired when the generation expires.
type store struct{ redis redis.UniversalClient }

func recordKey(business, id string) string    { return "kizen:{" + business + "}:key:" + id }
func businessKey(business string) string      { return "kizen:{" + business + "}:business" }
func accountKey(business, id string) string   { return "kizen:{" + business + "}:account:" + id }
func executionKey(business, id string) string { return "kizen:{" + business + "}:execution:" + id }
func publishedKey(business, id string) string { return "kizen:{" + business + "}:jwk:" + id }

// scopes is the state of a key's scopes in Redis.
type scopes struct {
	generations generations
	suspended   []Reason
}

func scopeKeys(id Identity) []string {
	return append([]string{
		businessKey(id.BusinessID), accountKey(id.BusinessID, id.AccountID), executionKey(id.BusinessID, id.ExecutionID),
	}, markKeys(id.BusinessID, id.AccountID)...)
}

// readScopes reads the values of scopeKeys.
func readScopes(values []any) (s scopes) {
	for i := range s.generations {
		s.generations[i], _ = values[i].(string)
	}
	s.suspended = readMarks(values[len(s.generations):])
	return s
}

// published is a public key to write beside a record, with its expiry.
type published struct {
	id    string
	jwk   []byte
	until time.Time
}

func (s store) publish(ctx context.Context, to redis.Cmdable, key Key, public *published) error {
	name := publishedKey(key.Identity.BusinessID, public.id)
	return to.Set(ctx, name, public.jwk, public.until.Sub(key.IssuedAt)).Err()
}

// put writes the record of key and reads the current generations of its scopes, in one round trip. Only if a scope was
// revoked recently, it writes the record again with those generations. It returns the generations in the record. If key
// renews previous and the execution was revoked since, it gets no valid record.
func (s store) put(ctx context.Context, key Key, public *published, previous *Key,
	admit Admission) (generations, error) {
	found, err := s.putUnder(ctx, key, public, generations{})
	now := found.generations
	if err == nil {
		err = admit.decide(ctx, key.Identity, found.suspended)
	}
	switch {
	case err != nil:
		return now, err
	case previous != nil && now[ofExecution] != "" && now[ofExecution] != previous.generations[ofExecution]:
		return now, ErrRevoked
	case now != generations{}:
		_, err = s.putUnder(ctx, key, nil, now)
	}
	return now, err
}

func (s store) putUnder(ctx context.Context, key Key, public *published, named generations) (scopes, error) {
	id := key.Identity
	value, err := json.Marshal(record{id.AccountID, id.AccountType, id.BusinessID, id.ExecutionID, key.ExpiresAt.UTC(),
		named})
	if err != nil {
		return scopes{}, fmt.Errorf("write the record: %w", err)
	}
	pipe := s.redis.Pipeline()
	if public != nil {
		_ = s.publish(ctx, pipe, key, public) // a pipeline's errors come with Exec
	}
	pipe.Set(ctx, recordKey(id.BusinessID, key.ID), value, key.ExpiresAt.Sub(key.IssuedAt))
	found := pipe.MGet(ctx, scopeKeys(id)...)
	if _, err := pipe.Exec(ctx); err != nil {
		return scopes{}, err
	}
	return readScopes(found.Val()), nil
}

// keyState is the state of a signed key in Redis.
type keyState struct {
	record    string // empty if Redis has none
	scopes    scopes
	published string // empty if Redis has none, or if it was not requested
}

// get reads the whole state of a key in one round trip. If signer is not empty, it also reads the signer's published
// key.
func (s store) get(ctx context.Context, id Identity, keyID, signer string) (*keyState, error) {
	keys := append(scopeKeys(id), recordKey(id.BusinessID, keyID))
	if signer != "" {
		keys = append(keys, publishedKey(id.BusinessID, signer))
	}
	values, err := s.redis.MGet(ctx, keys...).Result()
	if err != nil {
		return nil, err
	}
	h := &keyState{}
	scopes := len(keys) - 1
	if signer != "" {
		scopes--
		h.published, _ = values[len(keys)-1].(string)
	}
	h.scopes = readScopes(values[:scopes])
	h.record, _ = values[scopes].(string)
	return h, nil
}

var (
	errNoRecord = errors.New("the key has no record: it has expired or was revoked")
	errLost     = errors.New("neither the key nor a revocation of it has a record: it has expired or was lost")
)

// revokedRecord replaces the record of a key that was revoked by its ID.
const revokedRecord = "revoked"

// check returns an error unless the record is valid and belongs to id.
func (h *keyState) check(id Identity) error {
	switch {
	case h.record == "" && h.scopes.generations == generations{} && len(h.scopes.suspended) == 0:
		return errLost
	case h.record == "", h.record == revokedRecord:
		return errNoRecord
	}
	var r record
	if err := json.Unmarshal([]byte(h.record), &r); err != nil {
		return fmt.Errorf("read the record: %w", err)
	}
	if (Identity{r.AccountID, r.AccountType, r.BusinessID, r.ExecutionID}) != id {
		return errors.New("the record belongs to another identity")
	}
	if !r.Generations.validUnder(h.scopes.generations) {
		return errNoRecord
	}
	return nil
}

// validUnder reports whether a record with these generations is valid under the current ones: none of its scopes was
// revoked since.
func (g generations) validUnder(now generations) bool {
	for i, generation := range now {
		if generation != "" && generation != g[i] {
			return false
		}
	}
	return true
}

func (s store) delete(ctx context.Context, keys ...string) error {
	return s.redis.Del(ctx, keys...).Err()
}
