package main

import (
	"log/slog"
	"strings"

	"github.com/google/uuid"

	"github.com/kizen/kizen-sidecar/internal/ids"
	"github.com/kizen/kizen-sidecar/minter"
)

// Ids that stand in for a real business and its Code Account on a first try.
const (
	developmentBusiness = "00000000-0000-4000-8000-00000000b001"
	developmentUser     = "00000000-0000-4000-8000-00000000c0de"
)

// targetFlags say for whom executions call the API.
type targetFlags struct {
	BusinessID  string `help:"Business that the step runs in. Default: a development id." placeholder:"ID" group:"Platform"`
	UserID      string `help:"Code Account of the business. Default: a development id." placeholder:"ID" group:"Platform"`
	AccountType string `help:"Type of that account." default:"service_automation" placeholder:"TYPE" group:"Platform"`
}

// executionFlags are those of a command that has one execution.
type executionFlags struct {
	targetFlags
	ExecutionID string `help:"Id of this execution. Default: a new UUID." placeholder:"ID" group:"Platform"`
}

// target is what these flags mean, checked.
type target struct {
	businessID, userID, accountType, executionID string
}

// announce says in the log that development ids stand in, if they do.
func (f targetFlags) announce(log *slog.Logger) {
	if f.BusinessID == "" || f.UserID == "" {
		log.Info("using development ids; set --business-id and --user-id for a real platform")
	}
}

// resolve checks the flags and fills in what was left out.
func (f targetFlags) resolve() (resolved target, err error) {
	resolved.accountType = f.AccountType
	if resolved.businessID, err = resolveID("--business-id", f.BusinessID, developmentBusiness); err == nil {
		resolved.userID, err = resolveID("--user-id", f.UserID, developmentUser)
	}
	return resolved, err
}

func (f executionFlags) resolve() (target, error) {
	resolved, err := f.targetFlags.resolve()
	if err == nil {
		resolved.executionID, err = resolveID("--execution-id", f.ExecutionID, uuid.NewString())
	}
	return resolved, err
}

// resolveID is the id that a flag was given, or what stands in for none.
func resolveID(flag, given, fallback string) (string, error) {
	id := strings.TrimSpace(given)
	if id == "" {
		return fallback, nil
	}
	if err := ids.Check(flag, id); err != nil {
		return "", usageError{err}
	}
	return id, nil
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
