package execution

import (
	"github.com/kizen/kizen-sidecar/internal/ids"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/runner"
)

// defaultAccountType is the account type of a task that names none.
const defaultAccountType = "service_automation"

// CheckType rejects an unknown account type.
func CheckType(engine *policy.Engine, id minter.Identity) error {
	_, err := engine.For(policy.Account{ID: id.AccountID, Type: id.AccountType, BusinessID: id.BusinessID})
	return err
}

// Queued returns the function that turns the body of a task into a request. A program that can write to the queue may
// name any business and user. The function returns all errors together as *runner.FieldErrors.
func Queued(engine *policy.Engine, secrets Secrets, defaults runner.Limits) func(Body) (Request, error) {
	return func(body Body) (Request, error) {
		if body.AccountType == "" {
			body.AccountType = defaultAccountType
		}
		id := minter.Identity{BusinessID: body.BusinessID, AccountID: body.UserID, AccountType: body.AccountType,
			ExecutionID: body.ExecutionID}
		var refused runner.FieldErrors
		if !ids.Valid(body.UserID) {
			refused.Add(ids.Rule, "user_id")
		}
		refused.Merge(CheckType(engine, id), "account_type")
		job, limits, err := body.Job(body.BusinessID, secrets, defaults)
		refused.Merge(err)
		return Request{Identity: id, Name: body.Name, Job: job, Limits: limits}, refused.Err()
	}
}
