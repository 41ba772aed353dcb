package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/backoff"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

// The status of an account.
const (
	statusActive    = "active"
	statusSuspended = "suspended"
)

// account is a service account as stored in Redis.
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
	Version          int64        `json:"version"` // incremented by each change

	suspended []minter.Reason // stored separately, where verifiers read them
}

// integration is the integration of an integration account. Disabling it suspends the account for that reason.
type integration struct {
	ID      string `json:"id"`
	Enabled bool   `json:"enabled"`
}

func (a account) status() string {
	if len(a.suspended) > 0 {
		return statusSuspended
	}
	return statusActive
}

func (a account) etag() string { return `"` + strconv.FormatInt(a.Version, 10) + `"` }

// policyAccount returns the account for a policy engine.
func (a account) policyAccount(businessID string) policy.Account {
	return policy.Account{ID: a.ID, Type: a.AccountType, BusinessID: businessID, Level: levelOf(a.PermissionGroups)}
}

func (a account) identity(businessID string) minter.Identity {
	return minter.Identity{AccountID: a.ID, AccountType: a.AccountType, BusinessID: businessID}
}

// The errors of changes of accounts.
var (
	errNoAccount = errors.New("there is no such service account")

	errChanged  = errors.New("the account has changed since it was read; read it again")
	errConflict = errors.New("concurrent changes of the accounts keep interfering; try again")
)

// otherAccountError reports that the business already has another account of a type of which it can have only one.
type otherAccountError struct{ kind policy.AccountType }

// Error implements error.
func (e otherAccountError) Error() string {
	return fmt.Sprintf("the business has another %s; GET /service-accounts?account_type=%s names it", e.kind.Title,
		e.kind.Name)
}

// accountStore keeps the service accounts of businesses in Redis, in one hash for each business:
//
//	kizen:{BUSINESS}:accounts    account id -> the account as JSON. For each provisioned type also
//	                             provisionedField -> the id of that account
//
// A change is one transaction on that hash and on the suspension marks in the same cluster slot, so it is atomic, even
// if this process is killed.
type accountStore struct {
	redis redis.UniversalClient
	// emailDomain is the domain of the generated addresses of new accounts. They are never used to log in.
	emailDomain string
}

// provisionedField returns the hash field with the ID of the one account of a type. It cannot be an account ID, because
// those contain no braces. The name for the Code Account is older than the other types.
func provisionedField(accountType string) string {
	if accountType == policy.ServiceAutomation {
		return "{code_account}"
	}
	return "{provisioned:" + accountType + "}"
}

// provisionedTypes returns the types of which the platform provisions one account for each business.
func provisionedTypes() []policy.AccountType {
	return slices.DeleteFunc(policy.AccountTypes(),
		func(t policy.AccountType) bool { return t.Provisioned != policy.ProvisionedByBusiness })
}

func accountsKey(businessID string) string { return "kizen:{" + businessID + "}:accounts" }

// business has the accounts of one business during a change.
type business struct {
	accounts    map[string]account
	provisioned map[string]string       // account type -> the ID of the one account of that type
	also        []func(redis.Pipeliner) // further writes of the change
	emailDomain string
}

func parseBusiness(fields map[string]string) (business, error) {
	b := business{accounts: map[string]account{}, provisioned: map[string]string{}}
	for _, kind := range provisionedTypes() {
		if id, ok := fields[provisionedField(kind.Name)]; ok {
			b.provisioned[kind.Name] = id
		}
	}
	for id, text := range fields {
		if strings.HasPrefix(id, "{") {
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
	return all, s.readSuspensions(ctx, businessID, all)
}

// readSuspensions fills in the reasons for which each account is suspended.
func (s accountStore) readSuspensions(ctx context.Context, businessID string, accounts []account) error {
	ids := make([]string, len(accounts))
	for i, a := range accounts {
		ids[i] = a.ID
	}
	suspended, err := minter.Suspensions(ctx, s.redis, businessID, ids...)
	if err != nil {
		return fmt.Errorf("read the suspensions of business %s: %w", businessID, err)
	}
	for i := range suspended {
		accounts[i].suspended = suspended[i]
	}
	return nil
}

// find returns an account, archived or not, or errNoAccount.
func (s accountStore) find(ctx context.Context, businessID, id string) (account, error) {
	a, _, err := s.look(ctx, businessID, id)
	if err != nil {
		return a, err
	}
	return s.complete(ctx, businessID, a)
}

// complete fills in the reasons for which an account is suspended.
func (s accountStore) complete(ctx context.Context, businessID string, a account) (account, error) {
	one := []account{a}
	err := s.readSuspensions(ctx, businessID, one)
	return one[0], err
}

// look reads an account without its suspensions, or returns errNoAccount. In the same round trip, it determines
// whether the business has all provisioned accounts.
func (s accountStore) look(ctx context.Context, businessID, id string) (a account, provisioned bool, err error) {
	if strings.HasPrefix(id, "{") {
		return account{}, false, errNoAccount
	}
	fields := []string{id}
	for _, kind := range provisionedTypes() {
		fields = append(fields, provisionedField(kind.Name))
	}
	values, err := s.redis.HMGet(ctx, accountsKey(businessID), fields...).Result()
	if err != nil {
		return account{}, false, fmt.Errorf("find account %s: %w", id, err)
	}
	provisioned = !slices.Contains(values[1:], nil)
	text, ok := values[0].(string)
	if !ok {
		return account{}, provisioned, errNoAccount
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return account{}, false, fmt.Errorf("read account %s: %w", id, err)
	}
	return a, provisioned, nil
}

// change edits one account of a business in a transaction, and retries if another change interfered. edit gets all
// accounts of the business and returns the changed account, or errSame.
func (s accountStore) change(ctx context.Context, businessID string,
	edit func(*business) (account, error)) (account, error) {
	const attempts = 20
	key := accountsKey(businessID)
	for attempt := range attempts {
		var changed account
		err := s.redis.Watch(ctx, func(tx *redis.Tx) (err error) {
			changed, err = s.changeIn(ctx, tx, key, edit)
			return err
		}, key)
		switch {
		case err == nil, errors.Is(err, errSame):
			return s.complete(ctx, businessID, changed)
		case !errors.Is(err, redis.TxFailedErr):
			return account{}, fmt.Errorf("change the accounts of business %s: %w", businessID, err)
		}
		if err := backoff.Wait(ctx, backoff.Delay(attempt+1, 5*time.Millisecond, 100*time.Millisecond)); err != nil {
			return account{}, fmt.Errorf("change the accounts of business %s: %w", businessID, err)
		}
	}
	return account{}, errConflict
}

// errSame ends a change that has nothing to change.
var errSame = errors.New("nothing to change")

func (s accountStore) changeIn(ctx context.Context, tx *redis.Tx, key string,
	edit func(*business) (account, error)) (account, error) {
	fields, err := tx.HGetAll(ctx, key).Result()
	if err != nil {
		return account{}, err
	}
	b, err := parseBusiness(fields)
	if err != nil {
		return account{}, err
	}
	b.emailDomain = s.emailDomain
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
		for kind, id := range b.provisioned {
			pipe.HSet(ctx, key, provisionedField(kind), id)
		}
		for _, write := range b.also {
			write(pipe)
		}
		return pipe.HSet(ctx, key, changed.ID, text).Err()
	})
	return changed, err
}

// update edits an existing account that is not archived, if the If-Match header match fits it.
func (s accountStore) update(ctx context.Context, businessID, id, match string,
	edit func(*business, *account) error) (account, error) {
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

// fits reports whether an If-Match header matches (RFC 9110 section 13.1.1). A weak tag never matches.
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

// provision creates an account of a provisioned type, unless it exists. If a business can have only one account of the
// type, provision fails once the business has another one.
func (s accountStore) provision(ctx context.Context, id minter.Identity) (account, error) {
	return s.change(ctx, id.BusinessID, func(b *business) (account, error) {
		if a, ok := b.accounts[id.AccountID]; ok {
			return a, errSame
		}
		kind, _ := policy.FindAccountType(id.AccountType)
		switch {
		case kind.Provisioned == policy.ProvisionedByBusiness && b.provisioned[kind.Name] != "":
			return account{}, otherAccountError{kind}
		case kind.Provisioned == policy.ProvisionedByBusiness:
			b.provisioned[kind.Name] = id.AccountID
		case kind.Provisioned != policy.ProvisionedByPlugin:
			return account{}, errNoAccount
		}
		return newAccount(b, id.AccountID, kind, kind.Title, ""), nil
	})
}

// provisionAll creates the provisioned accounts that a business lacks.
func (s accountStore) provisionAll(ctx context.Context, businessID string) error {
	for _, kind := range provisionedTypes() {
		_, err := s.change(ctx, businessID, func(b *business) (account, error) {
			if id := b.provisioned[kind.Name]; id != "" {
				return b.accounts[id], errSame
			}
			id := uuid.NewString()
			b.provisioned[kind.Name] = id
			return newAccount(b, id, kind, kind.Title, ""), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// newAccount returns an account with an api_name and an address that are unique in the business. apiName may be empty.
func newAccount(b *business, id string, kind policy.AccountType, name, apiName string) account {
	if apiName == "" {
		apiName = b.freeAPIName(name)
	}
	return account{
		ID: id, AccountType: kind.Name, Name: name, APIName: apiName, Email: b.freeEmail(apiName),
		PermissionGroups: []string{}, CreatedAt: time.Now().UTC(),
	}
}

// maxEmailName is the maximal length of the api_name in an address: RFC 5321 section 4.5.3.1.1 allows 64 characters
// before the "@", and the suffix that makes the address globally unique needs 17 of them.
const maxEmailName = 47

// freeEmail generates an address that no account of the business has or had.
func (b *business) freeEmail(apiName string) string {
	name := strings.TrimRight(strings.ReplaceAll(apiName[:min(len(apiName), maxEmailName)], "_", "-"), "-")
	for {
		random := uuid.New()
		email := fmt.Sprintf("%s.%x@%s", name, random[8:], b.emailDomain)
		if !b.any(func(a account) bool { return a.Email == email }) {
			return email
		}
	}
}

// freeAPIName derives an unused api_name from a name.
func (b *business) freeAPIName(name string) string {
	words := strings.FieldsFunc(strings.ToLower(name),
		func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
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

// has reports whether an account other than id has the api_name. Archived accounts keep theirs.
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
