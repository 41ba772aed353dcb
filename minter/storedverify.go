package minter

import (
	"context"
	"crypto/subtle"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
)

// storedOwner is the owner of a stored key, looked up by the key's hash. Proof shows that a holder of the sealing key
// wrote it for this business: write access to Redis is not enough to change a key's owner.
type storedOwner struct {
	ID          string `json:"id"`
	AccountID   string `json:"account_id"`
	AccountType string `json:"account_type"`
	Proof       string `json:"proof"`

	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// checkStored is check for a stored key.
func (v *Verifier) checkStored(ctx context.Context, token, businessID, userID string) (checked, error) {
	if !isStoredToken(token) {
		return checked{}, denied(CodeMalformed, "this is not a stored key", nil)
	}
	if err := validateAccount(businessID, userID); err != nil {
		return checked{}, denied(CodeMalformed, "the business or the user header is not a valid id", err)
	}
	if v.config.Keys == nil || len(v.config.Keys.state.Load().sealing) == 0 {
		return checked{}, denied(CodeUnknownKey, "stored keys are not accepted here", nil)
	}
	owner, suspended, err := v.findOwner(ctx, token, businessID, userID)
	if err == nil && owner == nil && v.config.Keys.refresh() { // it may be sealed with a newer key
		owner, suspended, err = v.findOwner(ctx, token, businessID, userID)
	}
	switch {
	case err != nil:
		return checked{}, fmt.Errorf("verify a stored key of account %s: %w", userID, err)
	case owner == nil:
		return checked{}, denied(CodeRevoked, "this business has no such key: it was rotated out or deleted", errNoRecord)
	}
	id := Identity{AccountID: owner.AccountID, AccountType: owner.AccountType, BusinessID: businessID}
	if err := checkHeaders(id, businessID, userID); err != nil {
		return checked{}, err
	}
	if !owner.ExpiresAt.IsZero() && !v.config.Now().Before(owner.ExpiresAt) {
		return checked{}, denied(CodeExpired, "the key has expired", nil)
	}
	return checked{id: id, storedID: owner.ID, suspended: suspended}, nil
}

// findOwner looks a key up by its hash under every sealing key, in one round trip, and reads why the user is suspended.
func (v *Verifier) findOwner(ctx context.Context, token, businessID, userID string) (*storedOwner, []Reason, error) {
	names := markKeys(businessID, userID)
	sealing := v.config.Keys.state.Load().sealing
	for _, key := range sealing {
		names = append(names, storedHashKey(businessID, key.hash(token)))
	}
	values, err := v.store.redis.MGet(ctx, names...).Result()
	if err != nil {
		return nil, nil, err
	}
	for i, key := range sealing {
		text, _ := values[len(marks)+i].(string)
		var owner storedOwner
		if json.Unmarshal([]byte(text), &owner) != nil {
			continue
		}
		place := storedContext(Identity{AccountID: owner.AccountID, AccountType: owner.AccountType, BusinessID: businessID},
			owner.ID)
		proof := key.hash(key.hash(token) + string(place) + expiryContext(owner.ExpiresAt))
		if subtle.ConstantTimeCompare([]byte(owner.Proof), []byte(proof)) == 1 {
			return &owner, readMarks(values), nil
		}
	}
	return nil, nil, nil
}
