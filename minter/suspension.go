package minter

import (
	"context"
	"errors"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Reason is a reason for which an account is suspended. Several can apply at the same time, and each is set and lifted
// independently. An account may act while none applies.
type Reason string

// The reasons for which an account is suspended.
const (
	// an operator suspended it: [Revoker.Suspend], until [Revoker.Resume]
	ReasonOperator Reason = "operator"
	ReasonDisabled Reason = "integration_disabled" // its integration is disabled
	ReasonArchived Reason = "archived"             // it was archived, for good
)

// marks names the Redis key of each reason. The key exists while the reason applies; its value has no meaning.
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

// ErrSuspended is wrapped by the errors of a mint and of [Verifier.Verify] for a suspended account, unless an
// [Admission] decides otherwise.
var ErrSuspended = errors.New("the account is suspended")

// Admission decides whether an account may act now, given the reasons for which it is suspended. It is called before a
// key is minted and after one was verified. For a stored key, the identity has no execution. A refusal should be a
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

// SuspendIn suspends an account for a reason, and revokes all its signed keys, as part of the caller's transaction.
func SuspendIn(ctx context.Context, pipe redis.Pipeliner, businessID, accountID string, reason Reason) {
	pipe.Set(ctx, markKey(businessID, accountID, reason), "1", 0) // Exec returns the errors of the transaction
	pipe.Set(ctx, accountKey(businessID, accountID), newGeneration(), MaxLifetime)
}

// LiftIn lifts one reason of an account's suspension, as part of the caller's transaction.
func LiftIn(ctx context.Context, pipe redis.Pipeliner, businessID, accountID string, reason Reason) {
	pipe.Del(ctx, markKey(businessID, accountID, reason))
}

// Suspensions returns, for each of the given accounts of a business, the reasons for which it is suspended, in one
// round trip.
func Suspensions(ctx context.Context, client redis.Cmdable, businessID string,
	accountIDs ...string) ([][]Reason, error) {
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
