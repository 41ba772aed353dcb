package main

import (
	"log/slog"
	"strings"

	"github.com/google/uuid"

	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/request"
	"github.com/kizen/kizen-sidecar/minter"
)

// Ids that stand in for a real business and its Code Account on a first try.
const (
	developmentBusiness = "00000000-0000-4000-8000-00000000b001"
	developmentUser     = "00000000-0000-4000-8000-00000000c0de"
)

// targetFlags say for whom an execution calls the API.
type targetFlags struct {
	BusinessID  string `help:"Business that the step runs in. Default: a development id." placeholder:"ID" group:"Platform"`
	UserID      string `help:"Code Account of the business. Default: a development id." placeholder:"ID" group:"Platform"`
	AccountType string `help:"Type of that account." default:"service_automation" placeholder:"TYPE" group:"Platform"`
	ExecutionID string `help:"Id of this execution. Default: a new UUID." placeholder:"ID" group:"Platform"`
}

// target is what targetFlags mean, checked.
type target struct {
	businessID, userID, accountType, executionID string
}

// resolve checks the flags and fills in what was left out. The log says once
// when development ids stand in.
func (f targetFlags) resolve(log *slog.Logger) (target, error) {
	resolved := target{businessID: f.BusinessID, userID: f.UserID, accountType: f.AccountType, executionID: f.ExecutionID}
	if f.BusinessID == "" || f.UserID == "" {
		log.Info("using development ids; set --business-id and --user-id for a real platform")
	}
	for _, id := range []struct {
		flag     string
		value    *string
		fallback func() string
	}{
		{"--business-id", &resolved.businessID, func() string { return developmentBusiness }},
		{"--user-id", &resolved.userID, func() string { return developmentUser }},
		{"--execution-id", &resolved.executionID, uuid.NewString},
	} {
		*id.value = strings.TrimSpace(*id.value)
		if *id.value == "" {
			*id.value = id.fallback()
		}
		if !request.ValidID(*id.value) {
			return resolved, usagef("%s %q is not an id; use letters, digits, '.', '_', ':' and '-', 128 at most", id.flag, *id.value)
		}
	}
	return resolved, nil
}

// identity is whom the execution's key speaks for.
func (t target) identity() minter.Identity {
	return minter.Identity{
		AccountID:   t.userID,
		AccountType: t.accountType,
		BusinessID:  t.businessID,
		ExecutionID: t.executionID,
	}
}
