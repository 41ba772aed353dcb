package minter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/backoff"
	"github.com/kizen/kizen-sidecar/internal/ids"
)

// The errors of operations on stored keys.
var (
	ErrStoredExists   = errors.New("the account already has a stored key; rotate it")
	ErrNoStored       = errors.New("the account has no stored key")
	ErrNoSecondary    = errors.New("the account has no secondary key")
	ErrNoSealingKey   = errors.New("the key set has no sealing key; create one with kizen-sidecar keys generate --sealing")
	ErrStoredConflict = errors.New("concurrent changes of the account's keys keep interfering; try again")
)

// StoredKey is one of the at most two keys of an integration account. It is valid until it is rotated out or deleted.
type StoredKey struct {
	ID        string
	Token     Token
	Identity  Identity // without an execution
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never
	Primary   bool
}

// StoredKeys keeps the keys of integration accounts. They are sealed, so that authorised users can view them, and
// looked up by a keyed hash, so that verification opens nothing. One transaction in one cluster slot changes the
// account's keys and their hashes:
//
//	kizen:{BUSINESS}:stored:ACCOUNT    the account's keys, primary first, sealed, as JSON
//	kizen:{BUSINESS}:storedhash:HASH   the owner of the key with this hash
//
// It is safe for concurrent use, also by several processes. Errors are those above, or come from the Redis client.
type StoredKeys struct {
	redis redis.UniversalClient
	keys  *KeySet
}

// storedDocument holds an account's keys in Redis.
type storedDocument struct {
	AccountType string         `json:"account_type"`
	Keys        []sealedStored `json:"keys"` // primary first
}

func storedDocumentKey(business, account string) string {
	return "kizen:{" + business + "}:stored:" + account
}
func storedHashKey(business, hash string) string {
	return "kizen:{" + business + "}:storedhash:" + hash
}

// NewStoredKeys returns the stored keys in a Redis, sealed with the sealing keys of a key set.
func NewStoredKeys(client redis.UniversalClient, keys *KeySet) (*StoredKeys, error) {
	if client == nil || keys == nil {
		return nil, errors.New("stored keys need a redis client and a key set")
	}
	if len(keys.state.Load().sealing) == 0 {
		return nil, ErrNoSealingKey
	}
	return &StoredKeys{client, keys}, nil
}

// Create creates the first key of an account. The key is valid until expires, or without limit if expires is zero.
// Create ignores the execution of id. If the account has a key, it returns [ErrStoredExists].
func (s *StoredKeys) Create(ctx context.Context, id Identity, expires time.Time) (StoredKey, error) {
	id.ExecutionID = ""
	return s.add(ctx, id, expires, func(document *storedDocument) error {
		if len(document.Keys) > 0 {
			return ErrStoredExists
		}
		document.AccountType = id.AccountType
		return nil
	})
}

// Rotate creates a new primary key, valid until expires, or without limit if expires is zero. The old primary becomes
// the secondary, and the old secondary is deleted. If the account has no key, Rotate returns [ErrNoStored].
func (s *StoredKeys) Rotate(ctx context.Context, businessID, accountID string, expires time.Time) (StoredKey, error) {
	return s.add(ctx, Identity{BusinessID: businessID, AccountID: accountID}, expires,
		func(document *storedDocument) error {
			if len(document.Keys) == 0 {
				return ErrNoStored
			}
			document.Keys = document.Keys[:1]
			return nil
		})
}

// DeleteSecondary deletes the secondary key, or returns [ErrNoSecondary].
func (s *StoredKeys) DeleteSecondary(ctx context.Context, businessID, accountID string) error {
	return s.change(ctx, businessID, accountID, func(document *storedDocument) error {
		if len(document.Keys) < 2 {
			return ErrNoSecondary
		}
		document.Keys = document.Keys[:1]
		return nil
	})
}

// DeleteKey deletes the account's key with this ID, or returns [ErrNoStored]. If it was the primary, the secondary
// becomes the primary.
func (s *StoredKeys) DeleteKey(ctx context.Context, businessID, accountID, id string) error {
	return s.change(ctx, businessID, accountID, func(document *storedDocument) error {
		i := slices.IndexFunc(document.Keys, func(key sealedStored) bool { return key.ID == id })
		if i < 0 {
			return ErrNoStored
		}
		document.Keys = slices.Delete(document.Keys, i, i+1)
		return nil
	})
}

// Delete ends every key of an account, as when its integration is archived.
func (s *StoredKeys) Delete(ctx context.Context, businessID, accountID string) error {
	return s.change(ctx, businessID, accountID, func(document *storedDocument) error {
		document.Keys = nil
		return nil
	})
}

// View opens the keys of an account, primary first. The caller must check that the viewer may see them.
func (s *StoredKeys) View(ctx context.Context, businessID, accountID string) ([]StoredKey, error) {
	if err := validateAccount(businessID, accountID); err != nil {
		return nil, err
	}
	document, err := readStored(ctx, s.redis, storedDocumentKey(businessID, accountID))
	if err != nil {
		return nil, fmt.Errorf("view the keys of account %s: %w", accountID, err)
	}
	var keys []StoredKey
	for i, sealed := range document.Keys {
		id := Identity{AccountID: accountID, AccountType: document.AccountType, BusinessID: businessID}
		token, err := s.open(id, sealed)
		if err != nil {
			return nil, fmt.Errorf("view the keys of account %s: %w", accountID, err)
		}
		keys = append(keys, StoredKey{sealed.ID, token, id, sealed.CreatedAt, sealed.ExpiresAt, i == 0})
	}
	return keys, nil
}

// add prepends a new key to those that prepare leaves.
func (s *StoredKeys) add(ctx context.Context, id Identity, expires time.Time,
	prepare func(*storedDocument) error) (StoredKey, error) {
	key := StoredKey{ID: rand.Text(), Token: newStoredToken(), Identity: id, CreatedAt: time.Now().UTC(), Primary: true}
	if !expires.IsZero() {
		key.ExpiresAt = expires.UTC()
	}
	err := s.change(ctx, id.BusinessID, id.AccountID, func(document *storedDocument) error {
		if err := prepare(document); err != nil {
			return err
		}
		key.Identity.AccountType = document.AccountType
		if err := ids.Check("account type", document.AccountType); err != nil {
			return err
		}
		sealed, err := s.seal(key)
		document.Keys = append([]sealedStored{sealed}, document.Keys...)
		return err
	})
	if err != nil {
		return StoredKey{}, err
	}
	return key, nil
}

// change edits an account's keys in a transaction, and starts over if another change interfered.
func (s *StoredKeys) change(ctx context.Context, businessID, accountID string, edit func(*storedDocument) error) error {
	if err := validateAccount(businessID, accountID); err != nil {
		return err
	}
	const attempts = 20
	name := storedDocumentKey(businessID, accountID)
	for attempt := range attempts {
		err := s.redis.Watch(ctx, func(tx *redis.Tx) error {
			before, err := readStored(ctx, tx, name)
			if err != nil {
				return err
			}
			after := storedDocument{before.AccountType, append([]sealedStored(nil), before.Keys...)}
			if err := edit(&after); err != nil {
				return err
			}
			if err := s.renew(businessID, accountID, &after); err != nil {
				return err
			}
			_, err = tx.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
				return writeStored(ctx, pipe, businessID, accountID, before, after)
			})
			return err
		}, name)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, redis.TxFailedErr):
			return fmt.Errorf("change the keys of account %s: %w", accountID, err)
		}
		if err := backoff.Wait(ctx, backoff.Delay(attempt+1, 5*time.Millisecond, 100*time.Millisecond)); err != nil {
			return fmt.Errorf("change the keys of account %s: %w", accountID, err)
		}
	}
	return fmt.Errorf("change the keys of account %s: %w", accountID, ErrStoredConflict)
}

func readStored(ctx context.Context, redisClient redis.Cmdable, name string) (document storedDocument, err error) {
	text, err := redisClient.Get(ctx, name).Bytes()
	switch {
	case errors.Is(err, redis.Nil):
		return storedDocument{}, nil
	case err != nil:
		return storedDocument{}, err
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return storedDocument{}, fmt.Errorf("read the stored keys: %w", err)
	}
	return document, nil
}

func writeStored(ctx context.Context, pipe redis.Pipeliner, businessID, accountID string, before,
	after storedDocument) error {
	for _, key := range before.Keys {
		pipe.Del(ctx, storedHashKey(businessID, key.Hash))
	}
	for _, key := range after.Keys {
		owner, err := json.Marshal(storedOwner{key.ID, accountID, after.AccountType, key.Proof, key.ExpiresAt})
		if err != nil {
			return fmt.Errorf("write the owner of a stored key: %w", err)
		}
		pipe.Set(ctx, storedHashKey(businessID, key.Hash), owner, 0)
	}
	if len(after.Keys) == 0 {
		pipe.Del(ctx, storedDocumentKey(businessID, accountID))
		return nil
	}
	text, err := json.Marshal(after)
	if err != nil {
		return fmt.Errorf("write the stored keys: %w", err)
	}
	pipe.Set(ctx, storedDocumentKey(businessID, accountID), text, 0)
	return nil
}
