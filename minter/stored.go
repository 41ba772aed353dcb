package minter

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math/big"
	mathrand "math/rand/v2"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/redis/go-redis/v9"
)

// What a call about stored keys may be refused with.
var (
	ErrStoredExists   = errors.New("the account has a stored key already; rotate it")
	ErrNoStored       = errors.New("the account has no stored key")
	ErrNoSecondary    = errors.New("the account has no secondary key")
	ErrNoSealingKey   = errors.New("the key set holds no sealing key; make one with kizen-sidecar keys generate --sealing")
	ErrStoredConflict = errors.New("others keep changing the account's keys at this moment; try again")
)

// StoredKey is one of the at most two keys of an integration account. It is valid until it is rotated out or deleted.
type StoredKey struct {
	ID        string
	Token     Token
	Identity  Identity // without an execution
	CreatedAt time.Time
	Primary   bool
}

// StoredKeys keeps the keys of integration accounts: sealed, so that those who may can view them, and found by a keyed hash,
// so that verifying opens nothing. The account's keys and their hashes change in one transaction in one slot:
//
//	kizen:{BUSINESS}:stored:ACCOUNT    the account's keys, primary first, sealed, as JSON
//	kizen:{BUSINESS}:storedhash:HASH   whose key it is that has this hash
//
// It is safe for concurrent use, also by several processes. Errors are those above or a [*RedisError].
type StoredKeys struct {
	redis redis.UniversalClient
	keys  *KeySet
}

// storedDocument is what Redis holds of an account's keys.
type storedDocument struct {
	AccountType string         `json:"account_type"`
	Keys        []sealedStored `json:"keys"` // primary first
}

type sealedStored struct {
	ID         string    `json:"id"`
	CreatedAt  time.Time `json:"created_at"`
	SealingKey string    `json:"sealing_key"` // the id of the key that Sealed and Hash were made with
	Sealed     []byte    `json:"sealed"`
	Hash       string    `json:"hash"`
	Proof      string    `json:"proof"`
}

// storedOwner is found by a key's hash. Proof shows that somebody who has the sealing key wrote it, for this business: whoever
// can only write to Redis gives a key no other owner.
type storedOwner struct {
	ID          string `json:"id"`
	AccountID   string `json:"account_id"`
	AccountType string `json:"account_type"`
	Proof       string `json:"proof"`
}

func storedDocumentKey(business, account string) string {
	return "kizen:{" + business + "}:stored:" + account
}
func storedHashKey(business, hash string) string {
	return "kizen:{" + business + "}:storedhash:" + hash
}

// NewStoredKeys returns the stored keys in a Redis, sealed with the sealing keys of a set.
func NewStoredKeys(client redis.UniversalClient, keys *KeySet) (*StoredKeys, error) {
	if client == nil || keys == nil {
		return nil, errors.New("stored keys need a redis client and a key set")
	}
	if len(keys.state.Load().sealing) == 0 {
		return nil, ErrNoSealingKey
	}
	return &StoredKeys{client, keys}, nil
}

// Create makes the first key of an account. The execution of id is ignored. It returns [ErrStoredExists] when there is one.
func (s *StoredKeys) Create(ctx context.Context, id Identity) (StoredKey, error) {
	id.ExecutionID = ""
	return s.add(ctx, id, func(document *storedDocument) error {
		if len(document.Keys) > 0 {
			return ErrStoredExists
		}
		document.AccountType = id.AccountType
		return nil
	})
}

// Rotate makes a new primary key. The old one becomes the secondary, and the old secondary dies. It returns [ErrNoStored]
// for an account without a key.
func (s *StoredKeys) Rotate(ctx context.Context, businessID, accountID string) (StoredKey, error) {
	return s.add(ctx, Identity{BusinessID: businessID, AccountID: accountID}, func(document *storedDocument) error {
		if len(document.Keys) == 0 {
			return ErrNoStored
		}
		document.Keys = document.Keys[:1]
		return nil
	})
}

// DeleteSecondary ends the secondary key, or returns [ErrNoSecondary].
func (s *StoredKeys) DeleteSecondary(ctx context.Context, businessID, accountID string) error {
	return s.change(ctx, businessID, accountID, func(document *storedDocument) error {
		if len(document.Keys) < 2 {
			return ErrNoSecondary
		}
		document.Keys = document.Keys[:1]
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

// View opens the keys of an account, primary first. Whoever calls it has checked that the viewer may see them.
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
		keys = append(keys, StoredKey{sealed.ID, token, id, sealed.CreatedAt, i == 0})
	}
	return keys, nil
}

// add puts a fresh key in front of those that prepare leaves.
func (s *StoredKeys) add(ctx context.Context, id Identity, prepare func(*storedDocument) error) (StoredKey, error) {
	key := StoredKey{ID: rand.Text(), Token: newStoredToken(), Identity: id, CreatedAt: time.Now().UTC(), Primary: true}
	err := s.change(ctx, id.BusinessID, id.AccountID, func(document *storedDocument) error {
		if err := prepare(document); err != nil {
			return err
		}
		key.Identity.AccountType = document.AccountType
		if err := validateID("account type", document.AccountType); err != nil {
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

// change edits an account's keys in a transaction, again from the start when somebody else was faster.
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
		select {
		case <-time.After(mathrand.N(time.Duration(attempt+1) * 5 * time.Millisecond)):
		case <-ctx.Done():
			return fmt.Errorf("change the keys of account %s: %w", accountID, ctx.Err())
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

func writeStored(ctx context.Context, pipe redis.Pipeliner, businessID, accountID string, before, after storedDocument) error {
	for _, key := range before.Keys {
		pipe.Del(ctx, storedHashKey(businessID, key.Hash))
	}
	for _, key := range after.Keys {
		owner, err := json.Marshal(storedOwner{key.ID, accountID, after.AccountType, key.Proof})
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

// renew seals again what an older sealing key sealed, so that this one can go some day. What was not sealed for this account as
// it is in the document stops the change.
func (s *StoredKeys) renew(businessID, accountID string, document *storedDocument) error {
	for i, sealed := range document.Keys {
		id := Identity{AccountID: accountID, AccountType: document.AccountType, BusinessID: businessID}
		token, err := s.open(id, sealed)
		if err != nil {
			return err
		}
		if sealed.SealingKey == s.keys.sealer() {
			continue
		}
		if document.Keys[i], err = s.seal(StoredKey{ID: sealed.ID, Token: token, Identity: id, CreatedAt: sealed.CreatedAt}); err != nil {
			return err
		}
	}
	return nil
}

func (s *StoredKeys) seal(key StoredKey) (sealedStored, error) {
	sealing := s.keys.state.Load().sealing
	if len(sealing) == 0 {
		return sealedStored{}, ErrNoSealingKey
	}
	current := sealing[len(sealing)-1]
	hash := current.hash(key.Token.Reveal())
	place := storedContext(key.Identity, key.ID)
	return sealedStored{
		ID: key.ID, CreatedAt: key.CreatedAt, SealingKey: current.id,
		Sealed: current.aead.Seal(nil, nil, []byte(key.Token.Reveal()), place),
		Hash:   hash, Proof: current.hash(hash + string(place)),
	}, nil
}

func (s *StoredKeys) open(id Identity, sealed sealedStored) (Token, error) {
	for _, key := range s.keys.state.Load().sealing {
		if key.id != sealed.SealingKey {
			continue
		}
		text, err := key.aead.Open(nil, nil, sealed.Sealed, storedContext(id, sealed.ID))
		if err != nil {
			return Token{}, fmt.Errorf("stored key %q was not sealed by sealing key %q for this account; delete the account's keys and make new ones", sealed.ID, key.id)
		}
		return NewToken(string(text)), nil
	}
	return Token{}, fmt.Errorf("stored key %q was sealed by sealing key %q, which the key set does not hold", sealed.ID, sealed.SealingKey)
}

// storedContext binds what is sealed to its place: moved to another account, or with another type of account, it does not open.
func storedContext(id Identity, keyID string) []byte {
	return []byte(id.BusinessID + "\x00" + id.AccountID + "\x00" + id.AccountType + "\x00" + keyID)
}

// newSealingKey derives from one secret what seals and what finds.
func newSealingKey(id string, secret []byte) (sealingKey, error) {
	seal, err := hkdf.Key(sha256.New, secret, nil, "kizen stored key: seal", sealingKeySize)
	if err != nil {
		return sealingKey{}, fmt.Errorf("derive from sealing key %q: %w", id, err)
	}
	find, err := hkdf.Key(sha256.New, secret, nil, "kizen stored key: find", sha256.Size)
	if err != nil {
		return sealingKey{}, fmt.Errorf("derive from sealing key %q: %w", id, err)
	}
	block, err := aes.NewCipher(seal)
	if err != nil {
		return sealingKey{}, fmt.Errorf("use sealing key %q: %w", id, err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return sealingKey{}, fmt.Errorf("use sealing key %q: %w", id, err)
	}
	return sealingKey{id, aead, find}, nil
}

// hash is the keyed hash that a stored key is found by.
func (k sealingKey) hash(token string) string {
	mac := hmac.New(sha256.New, k.find)
	mac.Write([]byte(token))
	return hex.EncodeToString(mac.Sum(nil))
}

// A stored key is its prefix, 256 random bits in 43 characters and their CRC-32 in 6, in base 62. Secret scanners find it as
// kizen_[0-9A-Za-z]{49}, and tell it from what merely looks like it by the checksum.
const (
	storedPrefix = "kizen_"
	storedBody   = 43
	storedCheck  = 6
)

func newStoredToken() Token {
	random := make([]byte, 32)
	_, _ = rand.Read(random) // never fails
	body := base62(new(big.Int).SetBytes(random), storedBody)
	return NewToken(storedPrefix + body + storedChecksum(body))
}

func storedChecksum(body string) string {
	return base62(big.NewInt(int64(crc32.ChecksumIEEE([]byte(body)))), storedCheck)
}

func base62(n *big.Int, width int) string {
	text := n.Text(62)
	return strings.Repeat("0", width-len(text)) + text
}

// isStoredToken says whether a token has the form of a stored key, its checksum included.
func isStoredToken(token string) bool {
	text, ok := strings.CutPrefix(token, storedPrefix)
	return ok && len(text) == storedBody+storedCheck && storedChecksum(text[:storedBody]) == text[storedBody:]
}

// verifyStored is [Verifier.Verify] for a stored key.
func (v *Verifier) verifyStored(ctx context.Context, token, businessID, userID string) (Identity, error) {
	if !isStoredToken(token) {
		return Identity{}, denied(CodeMalformed, "this is not a stored key", nil)
	}
	if err := validateAccount(businessID, userID); err != nil {
		return Identity{}, denied(CodeMalformed, "an id header cannot be one", err)
	}
	if v.config.Keys == nil || len(v.config.Keys.state.Load().sealing) == 0 {
		return Identity{}, denied(CodeUnknownKey, "stored keys are not accepted here", nil)
	}
	owner, suspended, err := v.findOwner(ctx, token, businessID, userID)
	if err == nil && owner == nil && v.config.Keys.refresh() { // it may be sealed with a key made since
		owner, suspended, err = v.findOwner(ctx, token, businessID, userID)
	}
	switch {
	case err != nil:
		return Identity{}, fmt.Errorf("verify a stored key of account %s: %w", userID, err)
	case owner == nil:
		return Identity{}, denied(CodeRevoked, "there is no such key in this business: it was rotated out or deleted", errNoRecord)
	}
	id := Identity{AccountID: owner.AccountID, AccountType: owner.AccountType, BusinessID: businessID}
	if err := checkHeaders(id, businessID, userID); err != nil {
		return Identity{}, err
	}
	if suspended {
		return Identity{}, denied(CodeSuspended, ErrSuspended.Error(), ErrSuspended)
	}
	return id, nil
}

// findOwner looks a key up by its hash under every sealing key, in one round trip, and says whether the user is suspended.
func (v *Verifier) findOwner(ctx context.Context, token, businessID, userID string) (*storedOwner, bool, error) {
	names := []string{suspendedKey(businessID, userID)}
	sealing := v.config.Keys.state.Load().sealing
	for _, key := range sealing {
		names = append(names, storedHashKey(businessID, key.hash(token)))
	}
	values, err := v.store.redis.MGet(ctx, names...).Result()
	if err != nil {
		return nil, false, err
	}
	for i, key := range sealing {
		text, _ := values[i+1].(string)
		var owner storedOwner
		if json.Unmarshal([]byte(text), &owner) != nil {
			continue
		}
		place := storedContext(Identity{AccountID: owner.AccountID, AccountType: owner.AccountType, BusinessID: businessID}, owner.ID)
		proof := key.hash(key.hash(token) + string(place))
		if subtle.ConstantTimeCompare([]byte(owner.Proof), []byte(proof)) == 1 {
			return &owner, values[0] != nil, nil
		}
	}
	return nil, false, nil
}
