package minter

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"
)

// sealedStored is one key of a storedDocument.
type sealedStored struct {
	ID         string    `json:"id"`
	CreatedAt  time.Time `json:"created_at"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
	SealingKey string    `json:"sealing_key"` // the ID of the key behind Sealed, Hash and Proof
	Sealed     []byte    `json:"sealed"`
	Hash       string    `json:"hash"`
	Proof      string    `json:"proof"`
}

// renew reseals keys that an older sealing key sealed, so that the older one can be removed eventually. If a key was
// not sealed for exactly this account, renew fails and stops the change.
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
		if document.Keys[i], err = s.seal(StoredKey{ID: sealed.ID, Token: token, Identity: id, CreatedAt: sealed.CreatedAt, ExpiresAt: sealed.ExpiresAt}); err != nil {
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
		ID: key.ID, CreatedAt: key.CreatedAt, ExpiresAt: key.ExpiresAt, SealingKey: current.id,
		Sealed: current.aead.Seal(nil, nil, []byte(key.Token.Reveal()), place),
		Hash:   hash, Proof: current.hash(hash + string(place) + expiryContext(key.ExpiresAt)),
	}, nil
}

func (s *StoredKeys) open(id Identity, sealed sealedStored) (Token, error) {
	for _, key := range s.keys.state.Load().sealing {
		if key.id != sealed.SealingKey {
			continue
		}
		text, err := key.aead.Open(nil, nil, sealed.Sealed, storedContext(id, sealed.ID))
		if err != nil {
			return Token{}, fmt.Errorf(
				"stored key %q was not sealed by sealing key %q for this account; delete the account's keys and create new ones", sealed.ID, key.id,
			)
		}
		return NewToken(string(text)), nil
	}
	return Token{}, fmt.Errorf("stored key %q was sealed by sealing key %q, which is not in the key set", sealed.ID,
		sealed.SealingKey)
}

// storedContext binds a sealed key to its account: it does not open for another account or another account type.
func storedContext(id Identity, keyID string) []byte {
	return []byte(id.BusinessID + "\x00" + id.AccountID + "\x00" + id.AccountType + "\x00" + keyID)
}

// expiryContext is the part of a proof for the key's expiry. It is empty for a key without one, as in proofs from
// before expiries existed.
func expiryContext(expires time.Time) string {
	if expires.IsZero() {
		return ""
	}
	return "\x00" + expires.UTC().Format(time.RFC3339Nano)
}

// newSealingKey derives the key for sealing and the key for lookups from one secret.
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

// hash returns the keyed hash by which a stored key is looked up.
func (k sealingKey) hash(token string) string {
	mac := hmac.New(sha256.New, k.find)
	mac.Write([]byte(token))
	return hex.EncodeToString(mac.Sum(nil))
}
