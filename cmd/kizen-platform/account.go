package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

// The status of an account.
const (
	statusActive    = "active"
	statusSuspended = "suspended"
)

// emailDomain is where the addresses of service accounts seem to be. Nobody logs in with one.
const emailDomain = "serviceaccounts.kizen.com"

// account is a service account as Redis holds it.
type account struct {
	ID               string       `json:"id"`
	AccountType      string       `json:"account_type"`
	Name             string       `json:"name"`
	APIName          string       `json:"api_name"`
	Email            string       `json:"email"`
	Description      string       `json:"description"`
	PermissionGroups []string     `json:"permission_groups"`
	Integration      *integration `json:"integration"` // null for accounts that the platform provisions
	CreatedAt        time.Time    `json:"created_at"`
	UpdatedAt        time.Time    `json:"updated_at"`
	ArchivedAt       *time.Time   `json:"archived_at"`
	Version          int64        `json:"version"` // grows with each change
}

// integration is what an integration account works for. Enabling and disabling it is what resumes and suspends the account.
type integration struct {
	ID      string `json:"id"`
	Enabled bool   `json:"enabled"`
}

func (a account) status() string {
	if a.Integration != nil && !a.Integration.Enabled {
		return statusSuspended
	}
	return statusActive
}

func (a account) etag() string { return `"` + strconv.FormatInt(a.Version, 10) + `"` }

// as is the account before a policy engine.
func (a account) as(businessID string) policy.Account {
	return policy.Account{ID: a.ID, Type: a.AccountType, BusinessID: businessID, Level: levelOf(a.PermissionGroups)}
}

func (a account) identity(businessID string) minter.Identity {
	return minter.Identity{AccountID: a.ID, AccountType: a.AccountType, BusinessID: businessID}
}

// What a change of accounts is refused with.
var (
	errNoAccount        = errors.New("there is no such service account")
	errOtherCodeAccount = errors.New("the business has another Code Account; GET /service-accounts?account_type=service_automation names it")

	errChanged  = errors.New("the account has changed since it was read; read it again")
	errConflict = errors.New("others keep changing the accounts at this moment; try again")
)

// accountStore keeps the service accounts of businesses in Redis, all of a business in one hash:
//
//	kizen:{BUSINESS}:accounts    account id -> the account as JSON; "{code_account}" -> the id of the Code Account
//
// A change is one transaction on that hash, so that it happens whole or not at all, whoever is killed meanwhile.
type accountStore struct{ redis redis.UniversalClient }

// codeAccountField is no account's id: those hold no braces.
const codeAccountField = "{code_account}"

func accountsKey(businessID string) string { return "kizen:{" + businessID + "}:accounts" }

// business is the accounts of one business while a change looks at them.
type business struct {
	accounts    map[string]account
	codeAccount string
}

func parseBusiness(fields map[string]string) (business, error) {
	b := business{accounts: map[string]account{}, codeAccount: fields[codeAccountField]}
	for id, text := range fields {
		if id == codeAccountField {
			continue
		}
		var a account
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			return b, fmt.Errorf("read account %s: %w", id, err)
		}
		b.accounts[id] = a
	}
	return b, nil
}

// list returns the accounts of a business, archived ones included, oldest first.
func (s accountStore) list(ctx context.Context, businessID string) ([]account, error) {
	fields, err := s.redis.HGetAll(ctx, accountsKey(businessID)).Result()
	if err != nil {
		return nil, fmt.Errorf("list the accounts of business %s: %w", businessID, err)
	}
	b, err := parseBusiness(fields)
	if err != nil {
		return nil, err
	}
	all := make([]account, 0, len(b.accounts))
	for _, a := range b.accounts {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b account) int {
		if byTime := a.CreatedAt.Compare(b.CreatedAt); byTime != 0 {
			return byTime
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all, nil
}

// find returns an account, archived or not, or errNoAccount.
func (s accountStore) find(ctx context.Context, businessID, id string) (account, error) {
	a, _, err := s.look(ctx, businessID, id)
	return a, err
}

// look is find that says in the same round trip whether the business has its Code Account.
func (s accountStore) look(ctx context.Context, businessID, id string) (a account, provisioned bool, err error) {
	if id == codeAccountField {
		return account{}, false, errNoAccount
	}
	values, err := s.redis.HMGet(ctx, accountsKey(businessID), id, codeAccountField).Result()
	if err != nil {
		return account{}, false, fmt.Errorf("find account %s: %w", id, err)
	}
	text, ok := values[0].(string)
	if !ok {
		return account{}, values[1] != nil, errNoAccount
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return account{}, false, fmt.Errorf("read account %s: %w", id, err)
	}
	return a, values[1] != nil, nil
}

// change edits one account of a business in a transaction, again from the start when somebody else was faster. edit sees all
// of the business and returns the account as it shall be, or errSame.
func (s accountStore) change(ctx context.Context, businessID string, edit func(*business) (account, error)) (account, error) {
	const attempts = 20
	key := accountsKey(businessID)
	for attempt := range attempts {
		var changed account
		err := s.redis.Watch(ctx, func(tx *redis.Tx) (err error) {
			changed, err = changeIn(ctx, tx, key, edit)
			return err
		}, key)
		switch {
		case err == nil, errors.Is(err, errSame):
			return changed, nil
		case !errors.Is(err, redis.TxFailedErr):
			return account{}, fmt.Errorf("change the accounts of business %s: %w", businessID, err)
		}
		select {
		case <-time.After(rand.N(time.Duration(attempt+1) * 5 * time.Millisecond)):
		case <-ctx.Done():
			return account{}, fmt.Errorf("change the accounts of business %s: %w", businessID, ctx.Err())
		}
	}
	return account{}, errConflict
}

// errSame ends a change that finds the account as it shall be.
var errSame = errors.New("nothing to change")

func changeIn(ctx context.Context, tx *redis.Tx, key string, edit func(*business) (account, error)) (account, error) {
	fields, err := tx.HGetAll(ctx, key).Result()
	if err != nil {
		return account{}, err
	}
	b, err := parseBusiness(fields)
	if err != nil {
		return account{}, err
	}
	changed, err := edit(&b)
	if err != nil {
		return changed, err
	}
	changed.Version++
	changed.UpdatedAt = time.Now().UTC()
	text, err := json.Marshal(changed)
	if err != nil {
		return account{}, err
	}
	_, err = tx.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
		if b.codeAccount != "" {
			pipe.HSet(ctx, key, codeAccountField, b.codeAccount)
		}
		return pipe.HSet(ctx, key, changed.ID, text).Err()
	})
	return changed, err
}

// update edits an account that is there and not archived, if match, an If-Match header, still fits it.
func (s accountStore) update(ctx context.Context, businessID, id, match string, edit func(*business, *account) error) (account, error) {
	return s.change(ctx, businessID, func(b *business) (account, error) {
		a, ok := b.accounts[id]
		switch {
		case !ok || a.ArchivedAt != nil:
			return account{}, errNoAccount
		case !fits(match, a.etag()):
			return account{}, errChanged
		}
		return a, edit(b, &a)
	})
}

// fits decides as RFC 9110 section 13.1.1 says. A weak tag never fits.
func fits(match, etag string) bool {
	match = strings.TrimSpace(match)
	if match == "" || match == "*" {
		return true
	}
	for tag := range strings.SplitSeq(match, ",") {
		if strings.TrimSpace(tag) == etag {
			return true
		}
	}
	return false
}

// provision makes an account that the platform gives of itself, unless it is there, and the Code Account of the business.
func (s accountStore) provision(ctx context.Context, id minter.Identity) (account, error) {
	return s.change(ctx, id.BusinessID, func(b *business) (account, error) {
		if a, ok := b.accounts[id.AccountID]; ok {
			return a, errSame
		}
		kind, _ := policy.FindAccountType(id.AccountType)
		switch {
		case kind.Provisioned == policy.ProvisionedByBusiness && b.codeAccount != "":
			return account{}, errOtherCodeAccount
		case kind.Provisioned == policy.ProvisionedByBusiness:
			b.codeAccount = id.AccountID
		case kind.Provisioned != policy.ProvisionedByPlugin:
			return account{}, errNoAccount
		}
		return newAccount(b, id.AccountID, kind, kind.Title, ""), nil
	})
}

// provisionCodeAccount makes the Code Account of a business whose first mention was not by it.
func (s accountStore) provisionCodeAccount(ctx context.Context, businessID string) error {
	_, err := s.change(ctx, businessID, func(b *business) (account, error) {
		if b.codeAccount != "" {
			return b.accounts[b.codeAccount], errSame
		}
		b.codeAccount = uuid.NewString()
		kind, _ := policy.FindAccountType(policy.ServiceAutomation)
		return newAccount(b, b.codeAccount, kind, kind.Title, ""), nil
	})
	return err
}

// newAccount is an account that no other account of the business is like. apiName may be empty.
func newAccount(b *business, id string, kind policy.AccountType, name, apiName string) account {
	if apiName == "" {
		apiName = b.freeAPIName(name)
	}
	return account{
		ID: id, AccountType: kind.Name, Name: name, APIName: apiName, Email: b.freeEmail(apiName),
		PermissionGroups: []string{}, CreatedAt: time.Now().UTC(),
	}
}

// maxEmailName is how much of an api_name an address holds: RFC 5321 section 4.5.3.1.1 allows 64 characters before the "@", and
// what makes the address unique, in other businesses too, needs 17 of them.
const maxEmailName = 47

// freeEmail generates an address that no account of the business has or had.
func (b *business) freeEmail(apiName string) string {
	name := strings.TrimRight(strings.ReplaceAll(apiName[:min(len(apiName), maxEmailName)], "_", "-"), "-")
	for {
		random := uuid.New()
		email := fmt.Sprintf("%s.%x@%s", name, random[8:], emailDomain)
		if !b.any(func(a account) bool { return a.Email == email }) {
			return email
		}
	}
}

// freeAPIName makes an api_name of a name that no account of the business has.
func (b *business) freeAPIName(name string) string {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
	base := strings.Join(words, "_")
	if base == "" || base[0] < 'a' {
		base = "account_" + base
	}
	base = strings.TrimRight(base[:min(len(base), 56)], "_")
	for i := 1; ; i++ {
		apiName := base
		if i > 1 {
			apiName += "_" + strconv.Itoa(i)
		}
		if !b.has("", apiName) {
			return apiName
		}
	}
}

// has reports whether an account other than id has the api_name. Archived ones keep theirs.
func (b *business) has(id, apiName string) bool {
	return b.any(func(a account) bool { return a.APIName == apiName && a.ID != id })
}

func (b *business) any(is func(account) bool) bool {
	for _, a := range b.accounts {
		if is(a) {
			return true
		}
	}
	return false
}
