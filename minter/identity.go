package minter

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/kizen/kizen-sidecar/internal/ids"
)

// maxKIDLength limits the ID of a signing or sealing key, in bytes.
const maxKIDLength = 128

// Identity is the account that a key acts for, and its execution. It comes from the orchestrator, never from the step.
type Identity struct {
	AccountID   string // the service account: the JWT's sub, the X-USER-ID header
	AccountType string // "service_automation", "service_integration", ...
	BusinessID  string // the X-BUSINESS-ID header
	ExecutionID string // the execution the key was made for; empty for a stored key
}

// validate rejects IDs that are not safe in a Redis key or in a header. A brace would move the key to another hash
// slot.
func (id Identity) validate() error {
	if err := validateAccount(id.BusinessID, id.AccountID); err != nil {
		return err
	}
	if err := ids.Check("account type", id.AccountType); err != nil {
		return err
	}
	return ids.Check("execution id", id.ExecutionID)
}

func validateAccount(businessID, accountID string) error {
	if err := ids.Check("business id", businessID); err != nil {
		return err
	}
	return ids.Check("account id", accountID)
}

// validateKID checks the ID of a key. The creator of the key chooses it (RFC 7517 section 4.5), so its rules are looser
// than those of our own IDs: the thumbprint of a key (RFC 7638) can begin with "-".
func validateKID(value string) error {
	switch {
	case value == "":
		return errors.New("kid is empty")
	case len(value) > maxKIDLength:
		return fmt.Errorf("kid is longer than %d bytes", maxKIDLength)
	case strings.ContainsFunc(value, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsPrint(r) || strings.ContainsRune(" {}*?[]\\", r)
	}):
		return fmt.Errorf("kid %q may contain only printable ASCII without spaces and without {}*?[]\\", value)
	}
	return nil
}

// Key is a minted signed key.
type Key struct {
	ID        string // the JWT's jti
	Token     Token
	Identity  Identity
	IssuedAt  time.Time
	ExpiresAt time.Time // the record in Redis has expired by then

	generations generations // the ones in its record
}
