// Package revoke implements kizen-sidecar keys revoke, with its messages: it revokes keys, suspends an account, or
// lifts a suspension.
package revoke

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/minter"
)

// Target selects what to revoke. Exactly one field besides BusinessID is set; BusinessID is required for all but
// Business.
type Target struct {
	BusinessID string
	// Key, Execution, Account and Business are IDs. Do revokes the signed keys of the one that is set.
	Key, Execution, Account, Business string
	// Suspend and Resume are IDs of accounts to suspend or resume.
	Suspend, Resume string
}

// Do revokes the target's keys as the operator who runs this process, and returns a sentence about it. It calls
// unlogged if a change is in effect but missing in the account's timeline. The error has exit code [exit.Nothing] if
// nothing had to be revoked, and [exit.Usage] for an invalid ID.
func (t Target) Do(ctx context.Context, client redis.UniversalClient, unlogged func(error)) (string, error) {
	done, err := t.do(ctx, minter.NewRevoker(client).As(operator(), unlogged))
	_, failed := errors.AsType[*redisconn.Error](err)
	_, coded := errors.AsType[*exit.Error](err)
	if err != nil && !failed && !coded {
		err = exit.WrongUsage(err)
	}
	return done, err
}

func (t Target) do(ctx context.Context, r *minter.Revoker) (string, error) {
	switch {
	case t.Suspend != "":
		return t.suspend(ctx, r)
	case t.Resume != "":
		return t.resume(ctx, r)
	}
	return t.revoke(ctx, r)
}

// operator returns the name of the user who runs this process, as far as this machine knows it.
func operator() string {
	name := "user " + strconv.Itoa(os.Getuid())
	if who, err := user.Current(); err == nil {
		name = who.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

// revoke revokes signed keys.
func (t Target) revoke(ctx context.Context, r *minter.Revoker) (string, error) {
	var revoked minter.Revocation
	var what string
	var err error
	switch {
	case t.Key != "":
		what = fmt.Sprintf("key %q in business %q", t.Key, t.BusinessID)
		revoked, err = r.Key(ctx, t.BusinessID, t.Key)
	case t.Execution != "":
		what = fmt.Sprintf("execution %q in business %q", t.Execution, t.BusinessID)
		revoked, err = r.Execution(ctx, t.BusinessID, t.Execution)
	case t.Account != "":
		what = fmt.Sprintf("account %q in business %q", t.Account, t.BusinessID)
		revoked, err = r.Account(ctx, t.BusinessID, t.Account)
	default:
		what = fmt.Sprintf("business %q", t.Business)
		revoked, err = r.Business(ctx, t.Business)
	}
	if err != nil {
		return "", err
	}
	ended, err := revoked.Ended(ctx)
	if err != nil {
		return "", err
	}
	r.AddToTimelines(ctx, revoked, ended)
	if len(ended) == 0 {
		return "", exit.Nothingf("there is no valid signed key of %s, so none was revoked; check the ids and --redis-url",
			what)
	}
	return fmt.Sprintf("revoked %s of %s", signedKeys(len(ended)), what), nil
}

func signedKeys(n int) string {
	if n == 1 {
		return "1 valid signed key"
	}
	return fmt.Sprintf("%d valid signed keys", n)
}

func (t Target) suspend(ctx context.Context, r *minter.Revoker) (string, error) {
	revoked, err := r.Suspend(ctx, t.BusinessID, t.Suspend)
	if err != nil {
		return "", err
	}
	ended, err := revoked.Ended(ctx)
	if err != nil {
		return "", err
	}
	if revoked.Again && len(ended) == 0 {
		return "", exit.Nothingf("account %q in business %q is already suspended by an operator; nothing changed", t.Suspend,
			t.BusinessID)
	}
	return fmt.Sprintf("suspended account %q in business %q, which revoked %s", t.Suspend, t.BusinessID,
		signedKeys(len(ended))), nil
}

func (t Target) resume(ctx context.Context, r *minter.Revoker) (string, error) {
	lifted, left, err := r.Resume(ctx, t.BusinessID, t.Resume)
	if err != nil {
		return "", err
	}
	still := ""
	for _, reason := range left {
		still += fmt.Sprintf("; it stays suspended: %s", reason)
	}
	if !lifted {
		return "", exit.Nothingf("no operator has suspended account %q in business %q, so nothing was lifted%s", t.Resume,
			t.BusinessID, still)
	}
	return fmt.Sprintf("lifted the suspension of account %q in business %q by an operator%s", t.Resume, t.BusinessID,
		still), nil
}
