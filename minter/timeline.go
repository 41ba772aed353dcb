package minter

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// TimelineLength is the approximate number of entries that a timeline keeps.
const TimelineLength = 1000

// The actions of an operator in an account's timeline.
const (
	ActionSuspend = "operator_suspend"
	ActionResume  = "operator_resume"
	ActionRevoke  = "operator_revoke" // of signed keys
)

// operatorType replaces the account type in entries about an operator, who has no account.
const operatorType = "operator"

// TimelineKey returns the name of the Redis Stream with an account's calls and the actions on the account. A platform
// fills and shows it; a [Revoker] adds the actions of operators, which bypass the platform. Its fields are
// execution_id, method, path and status for a call, and action, by, by_name and by_type for an action on the account.
func TimelineKey(businessID, accountID string) string {
	return "kizen:{" + businessID + "}:timeline:" + accountID
}

// addToTimeline adds an operator's action to an account's timeline. executionID is empty if the action is on all of the
// account.
func (r *Revoker) addToTimeline(ctx context.Context, businessID, accountID, executionID, action string) {
	err := r.redis.XAdd(ctx, &redis.XAddArgs{
		Stream: TimelineKey(businessID, accountID), MaxLen: TimelineLength, Approx: true,
		Values: []any{"execution_id", executionID, "action", action, "by", operatorType, "by_name", r.operator, "by_type",
			operatorType},
	}).Err()
	if err != nil {
		r.unlogged(fmt.Errorf("add to the timeline of account %q: %w", accountID, err))
	}
}
