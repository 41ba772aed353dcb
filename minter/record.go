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

// generations are those of a key's three scopes: its business, its account and its execution. A scope that was not revoked
// in the last MaxLifetime has the empty one.
type generations [3]string

// ofExecution is the index of the execution's generation.
const ofExecution = 2

// record is what Redis holds of a signed key. It never holds the token.
type record struct {
	AccountID   string      `json:"account_id"`
	AccountType string      `json:"account_type"`
	BusinessID  string      `json:"business_id"`
	ExecutionID string      `json:"execution_id"`
	ExpiresAt   time.Time   `json:"expires_at"`
	Generations generations `json:"generations"`
}

// store keeps the records of signed keys. All the Redis keys of a business share a hash tag, so that what belongs together
// is in one cluster slot:
//
//	kizen:{BUSINESS}:key:JTI         a record as JSON, or that the key was revoked by its id, until the key expires
//	kizen:{BUSINESS}:business        a scope's generation, until MaxLifetime after its revocation
//	kizen:{BUSINESS}:account:ID      the same
//	kizen:{BUSINESS}:execution:ID    the same
//	kizen:{BUSINESS}:MARK:ID         there while the account is suspended for that reason, see [Reason]
//	kizen:{BUSINESS}:jwk:KID         a published public key, until what it signed expires
//
// A key is valid while its record exists, its account is not suspended and no scope of it has another generation. Revoking a
// scope gives it a new generation, which leaves every record that was written before dead, at once and however many there
// are. When the generation expires, so have they all.
type store struct{ redis redis.UniversalClient }

func recordKey(business, id string) string    { return "kizen:{" + business + "}:key:" + id }
func businessKey(business string) string      { return "kizen:{" + business + "}:business" }
func accountKey(business, id string) string   { return "kizen:{" + business + "}:account:" + id }
func executionKey(business, id string) string { return "kizen:{" + business + "}:execution:" + id }
func publishedKey(business, id string) string { return "kizen:{" + business + "}:jwk:" + id }

// scopes is what Redis says about the scopes of a key.
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

// published is a public key to write beside a record, and until when.
type published struct {
	id    string
	jwk   []byte
	until time.Time
}

func (s store) publish(ctx context.Context, to redis.Cmdable, key Key, public *published) error {
	name := publishedKey(key.Identity.BusinessID, public.id)
	return to.Set(ctx, name, public.jwk, public.until.Sub(key.IssuedAt)).Err()
}

// put writes the record of key and reads the generations it should name, in one round trip. Only where a scope was revoked
// lately is a second one needed, which names them. It returns those that the record names. A key that renews previous gets no
// record that stands when the execution has been revoked since.
func (s store) put(ctx context.Context, key Key, public *published, previous *Key, admit Admission) (generations, error) {
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
	value, err := json.Marshal(record{id.AccountID, id.AccountType, id.BusinessID, id.ExecutionID, key.ExpiresAt.UTC(), named})
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

// held is what Redis says about a signed key.
type held struct {
	record    string // empty: there is none
	scopes    scopes
	published string // empty: there is none, or it was not asked for
}

// get reads everything that decides about a key in one round trip. signer is empty unless its published key is wanted.
func (s store) get(ctx context.Context, id Identity, keyID, signer string) (*held, error) {
	keys := append(scopeKeys(id), recordKey(id.BusinessID, keyID))
	if signer != "" {
		keys = append(keys, publishedKey(id.BusinessID, signer))
	}
	values, err := s.redis.MGet(ctx, keys...).Result()
	if err != nil {
		return nil, err
	}
	h := &held{}
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
	errNoRecord = errors.New("there is no record of the key: it has expired or was revoked")
	errLost     = errors.New("there is no record of the key, nor of its revocation: it has expired or was lost")
)

// revokedRecord stands in place of the record of a key that was revoked by its id.
const revokedRecord = "revoked"

// check says whether the record stands and is the one of id.
func (h *held) check(id Identity) error {
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
		return errors.New("the record is of another identity")
	}
	if !r.Generations.stand(h.scopes.generations) {
		return errNoRecord
	}
	return nil
}

// stand reports whether a record that names these generations is good now: no scope of it was revoked since.
func (g generations) stand(now generations) bool {
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
