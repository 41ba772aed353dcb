package minter

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// maxIDLength bounds every part of an [Identity], in bytes. Kizen's own are UUIDs.
const maxIDLength = 128

// Identity says for whom a key acts. It comes from the orchestrator, never from the step.
type Identity struct {
	AccountID   string // the service account: the JWT's sub, the X-USER-ID header
	AccountType string // "service_automation", "service_integration", ...
	BusinessID  string // the X-BUSINESS-ID header
	ExecutionID string // the execution the key was made for; empty for a stored key
}

// validate refuses what could not stand in a Redis key or in a header. A brace would move the key to another hash slot.
func (id Identity) validate() error {
	if err := validateAccount(id.BusinessID, id.AccountID); err != nil {
		return err
	}
	if err := validateID("account type", id.AccountType); err != nil {
		return err
	}
	return validateID("execution id", id.ExecutionID)
}

func validateAccount(businessID, accountID string) error {
	if err := validateID("business id", businessID); err != nil {
		return err
	}
	return validateID("account id", accountID)
}

func validateID(name, value string) error {
	switch {
	case value == "":
		return fmt.Errorf("%s is empty", name)
	case len(value) > maxIDLength:
		return fmt.Errorf("%s is longer than %d bytes", name, maxIDLength)
	case strings.ContainsFunc(value, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsPrint(r) || strings.ContainsRune(" {}*?[]\\", r)
	}):
		return fmt.Errorf("%s %q may hold printable ASCII without spaces and without {}*?[]\\ only", name, value)
	}
	return nil
}

// Key is a minted signed key.
type Key struct {
	ID        string // the JWT's jti
	Token     Token
	Identity  Identity
	IssuedAt  time.Time
	ExpiresAt time.Time // the record in Redis is gone by then

	generations generations // those that its record names
}
