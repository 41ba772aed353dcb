package minter

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// TimelineLength is about how many entries of a timeline are kept.
const TimelineLength = 1000

// What an operator did to an account, as its timeline names it.
const (
	ActionSuspend = "operator_suspend"
	ActionResume  = "operator_resume"
)

// operatorType stands in place of an account type where an operator did something, who has no account.
const operatorType = "operator"

// TimelineKey is the Redis Stream of what an account did and what was done to it. A platform fills and shows it; a [Revoker] adds
// what an operator does past the platform. Its fields are execution_id, method, path and status of a call, and where something was
// done to the account action, by, by_name and by_type.
func TimelineKey(businessID, accountID string) string {
	return "kizen:{" + businessID + "}:timeline:" + accountID
}

// note adds what an operator did to an account to its timeline.
func (r *Revoker) note(ctx context.Context, businessID, accountID, action string) {
	err := r.redis.XAdd(ctx, &redis.XAddArgs{
		Stream: TimelineKey(businessID, accountID), MaxLen: TimelineLength, Approx: true,
		Values: []any{"action", action, "by", operatorType, "by_name", r.operator, "by_type", operatorType},
	}).Err()
	if err != nil {
		r.unnoted(fmt.Errorf("add to the timeline of account %q: %w", accountID, err))
	}
}
