package minter

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/redis/go-redis/v9"
)

// ErrSuspended is returned by a mint for a suspended account, and found in what [Verifier.Verify] returns for its keys.
var ErrSuspended = errors.New("the account is suspended")

// suspended stands where a scope's generation would be.
const suspended = "suspended"

// record is what Redis holds of a signed key. It never holds the token.
type record struct {
	AccountID   string    `json:"account_id"`
	AccountType string    `json:"account_type"`
	BusinessID  string    `json:"business_id"`
	ExecutionID string    `json:"execution_id"`
	ExpiresAt   time.Time `json:"expires_at"`
}

// store keeps the records of signed keys. All the Redis keys of a business share a hash tag, so that minting and
// verifying are each one command in one cluster slot:
//
//	kizen:{BUSINESS}:key:JTI         the generations of its three scopes, a space, the record as JSON
//	kizen:{BUSINESS}:business        the business's generation
//	kizen:{BUSINESS}:account:ID      the account's generation, or "suspended"
//	kizen:{BUSINESS}:execution:ID    the execution's generation
//	kizen:{BUSINESS}:jwk:KID         a public key that was published
//
// A key is valid while its record exists and names the generations in force. Deleting a scope's generation therefore
// revokes every key minted under it, at once and however many there are; the next mint starts a new generation, which
// leaves the old keys dead. Every Redis key but a suspension expires with the last signed key that needs it.
type store struct{ redis redis.UniversalClient }

func recordKey(business, id string) string    { return "kizen:{" + business + "}:key:" + id }
func businessKey(business string) string      { return "kizen:{" + business + "}:business" }
func accountKey(business, id string) string   { return "kizen:{" + business + "}:account:" + id }
func executionKey(business, id string) string { return "kizen:{" + business + "}:execution:" + id }
func publishedKey(business, id string) string { return "kizen:{" + business + "}:jwk:" + id }

func scopeKeys(id Identity) []string {
	return []string{
		businessKey(id.BusinessID), accountKey(id.BusinessID, id.AccountID), executionKey(id.BusinessID, id.ExecutionID),
	}
}

//go:embed mint.lua
var mintScript string

// put writes the record of key, and the public key where one is to be published, in one round trip. The script is sent
// whole: EVALSHA would save a few hundred bytes and cost a cold start a second round trip.
func (s store) put(ctx context.Context, key Key, signer string, publish []byte) error {
	value, err := json.Marshal(record{
		AccountID: key.Identity.AccountID, AccountType: key.Identity.AccountType,
		BusinessID: key.Identity.BusinessID, ExecutionID: key.Identity.ExecutionID, ExpiresAt: key.ExpiresAt.UTC(),
	})
	if err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	keys := append([]string{recordKey(key.Identity.BusinessID, key.ID)}, scopeKeys(key.Identity)...)
	args := []any{value, key.ExpiresAt.Sub(key.IssuedAt).Milliseconds(), key.ID}
	if publish != nil {
		keys, args = append(keys, publishedKey(key.Identity.BusinessID, signer)), append(args, publish)
	}
	answer, err := s.redis.Eval(ctx, mintScript, keys, args...).Text()
	if err == nil && answer == suspended {
		err = ErrSuspended
	}
	return err
}

// held is what Redis says about a signed key.
type held struct {
	record    string // empty: there is none
	scopes    []any
	published string
}

// get reads everything that decides about a key in one round trip. signer is empty unless its published key is wanted.
func (s store) get(ctx context.Context, id Identity, keyID, signer string) (held, error) {
	keys := append([]string{recordKey(id.BusinessID, keyID)}, scopeKeys(id)...)
	if signer != "" {
		keys = append(keys, publishedKey(id.BusinessID, signer))
	}
	values, err := s.redis.MGet(ctx, keys...).Result()
	if err != nil {
		return held{}, err
	}
	h := held{scopes: values[1:4]}
	h.record, _ = values[0].(string)
	if signer != "" {
		h.published, _ = values[4].(string)
	}
	return h, nil
}

var errNoRecord = errors.New("no record of this key: it has expired or was revoked")

// check says whether the record stands and is the one of id.
func (h held) check(id Identity) error {
	generations := make([]string, len(h.scopes))
	for i, scope := range h.scopes {
		generations[i], _ = scope.(string)
		if generations[i] == suspended {
			return ErrSuspended
		}
	}
	minted, text, ok := strings.Cut(h.record, " ")
	if !ok || minted != strings.Join(generations, ".") {
		return errNoRecord
	}
	var r record
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return fmt.Errorf("read the record: %w", err)
	}
	if (Identity{r.AccountID, r.AccountType, r.BusinessID, r.ExecutionID}) != id {
		return errors.New("the record is of another identity")
	}
	return nil
}

func (s store) delete(ctx context.Context, keys ...string) error {
	return s.redis.Del(ctx, keys...).Err()
}
