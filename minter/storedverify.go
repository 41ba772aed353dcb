package minter

import (
	"context"
	"crypto/subtle"
	"fmt"

	"github.com/go-json-experiment/json"
)

// storedOwner is found by a key's hash. Proof shows that somebody who has the sealing key wrote it, for this business: whoever
// can only write to Redis gives a key no other owner.
type storedOwner struct {
	ID          string `json:"id"`
	AccountID   string `json:"account_id"`
	AccountType string `json:"account_type"`
	Proof       string `json:"proof"`
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
