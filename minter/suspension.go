package minter

import (
	"context"
	"errors"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Reason says why an account is suspended. Several can hold at the same time, each is set and lifted independently, and an
// account may act while none holds.
type Reason string

// The reasons for which an account is suspended.
const (
	ReasonOperator Reason = "operator"             // an operator: [Revoker.Suspend], until [Revoker.Resume]
	ReasonDisabled Reason = "integration_disabled" // its integration is disabled
	ReasonArchived Reason = "archived"             // it was archived, for good
)

// marks names the Redis key of each reason. The value says nothing: the key exists while the reason holds.
var marks = []struct {
	reason Reason
	name   string
}{
	{ReasonOperator, "suspended"},
	{ReasonDisabled, "disabled"},
	{ReasonArchived, "archived"},
}

// markKeys returns the keys of every reason, in the order of marks.
func markKeys(businessID, accountID string) []string {
	keys := make([]string, len(marks))
	for i, mark := range marks {
		keys[i] = "kizen:{" + businessID + "}:" + mark.name + ":" + accountID
	}
	return keys
}

func markKey(businessID, accountID string, reason Reason) string {
	for i, mark := range marks {
		if mark.reason == reason {
			return markKeys(businessID, accountID)[i]
		}
	}
	panic("minter: unknown reason " + string(reason))
}

// readMarks reads the values of markKeys.
func readMarks(values []any) (held []Reason) {
	for i, mark := range marks {
		if values[i] != nil {
			held = append(held, mark.reason)
		}
	}
	return held
}

// ErrSuspended is found in what a mint and [Verifier.Verify] return for a suspended account, unless an [Admission] says otherwise.
var ErrSuspended = errors.New("the account is suspended")

// Admission decides whether an account may act now, given the reasons for which it is suspended. It is asked before a key is
// minted and after one was verified. The identity has no execution where the key is a stored one. A refusal should be a
// [*DeniedError].
type Admission func(ctx context.Context, id Identity, suspended []Reason) error

func (a Admission) decide(ctx context.Context, id Identity, suspended []Reason) error {
	if a != nil {
		return a(ctx, id, suspended)
	}
	if len(suspended) == 0 {
		return nil
	}
	names := make([]string, len(suspended))
	for i, reason := range suspended {
		names[i] = string(reason)
	}
	return denied(CodeSuspended, ErrSuspended.Error()+" ("+strings.Join(names, ", ")+")", ErrSuspended)
}

// SuspendIn suspends an account for a reason, and revokes every signed key that it has, as part of a caller's transaction.
func SuspendIn(ctx context.Context, pipe redis.Pipeliner, businessID, accountID string, reason Reason) {
	pipe.Set(ctx, markKey(businessID, accountID, reason), "1", 0) // errors of a transaction come with its end
	pipe.Set(ctx, accountKey(businessID, accountID), newGeneration(), MaxLifetime)
}

// LiftIn lifts one reason of an account's suspension, as part of a caller's transaction.
func LiftIn(ctx context.Context, pipe redis.Pipeliner, businessID, accountID string, reason Reason) {
	pipe.Del(ctx, markKey(businessID, accountID, reason))
}

// Suspensions returns the reasons for which each of some accounts of a business is suspended, in one round trip.
func Suspensions(ctx context.Context, client redis.Cmdable, businessID string, accountIDs ...string) ([][]Reason, error) {
	if len(accountIDs) == 0 {
		return nil, nil
	}
	var keys []string
	for _, id := range accountIDs {
		keys = append(keys, markKeys(businessID, id)...)
	}
	values, err := client.MGet(ctx, keys...).Result()
	if err != nil {
		return nil, err
	}
	all := make([][]Reason, len(accountIDs))
	for i := range all {
		all[i] = readMarks(values[i*len(marks):])
	}
	return all, nil
}
