package main

import (
	"context"
	"errors"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

// keyVerifier says whose key came with a request, if it is valid now.
type keyVerifier interface {
	VerifyRequest(ctx context.Context, header http.Header) (minter.Identity, error)
}

// caller is who a request acts as.
type caller struct {
	minter.Identity
	name      string
	level     policy.Level
	principal *policy.Principal
}

const callerKey = "caller"

// performer names the account that an answer was done as.
type performer struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	AccountType string `json:"account_type"`
	ExecutionID string `json:"execution_id,omitempty"`
}

// authenticate lets nobody pass without a key that is valid now, of an account that may act now.
func (p *platform) authenticate(c *gin.Context) {
	identity, err := p.verifier.VerifyRequest(c.Request.Context(), c.Request.Header)
	var who caller
	if err == nil {
		who, err = p.admit(c.Request.Context(), identity)
	}
	var denied *minter.DeniedError
	switch {
	case errors.As(err, &denied):
		// RFC 9110 section 11.6.1 asks for a challenge.
		c.Header("WWW-Authenticate", `ApiKey header="X-API-KEY"`)
		refuse(c, http.StatusUnauthorized, denied.Code, "%s", denied.Reason)
	case err != nil:
		p.unavailable(c, err)
	default:
		c.Set(callerKey, who)
		c.Header(minter.HeaderAccount, identity.AccountID)
	}
}

// The codes of a 401 beside the verifier's.
const (
	codeUnknownAccount = "unknown_account"
	codeArchived       = "archived"
	codeKeyKind        = "key_kind"
)

func deny(code, reason string) error { return &minter.DeniedError{Code: code, Reason: reason} }

// admit finds the account of a good key, and makes it where the platform provisions it: a business has its Code Account from
// its first mention.
func (p *platform) admit(ctx context.Context, id minter.Identity) (caller, error) {
	kind, ok := policy.FindAccountType(id.AccountType)
	switch stored := id.ExecutionID == ""; {
	case !ok:
		return caller{}, deny(codeUnknownAccount, "the account type is not known here")
	case stored && !kind.StoredKeys, !stored && !kind.SignedKeys:
		return caller{}, deny(codeKeyKind, "accounts of this type have no keys of this kind")
	case !kind.Service():
		return p.admitPerson(ctx, id)
	}
	a, provisioned, err := p.accounts.look(ctx, id.BusinessID, id.AccountID)
	if errors.Is(err, errNoAccount) {
		a, err = p.accounts.provision(ctx, id)
		provisioned = provisioned || kind.Provisioned == policy.ProvisionedByBusiness
	}
	if err == nil && !provisioned {
		err = p.accounts.provisionCodeAccount(ctx, id.BusinessID)
	}
	switch {
	case errors.Is(err, errNoAccount):
		return caller{}, deny(codeUnknownAccount, "the business has no such account")
	case errors.Is(err, errOtherCodeAccount):
		return caller{}, deny(codeUnknownAccount, errOtherCodeAccount.Error())
	case err != nil:
		return caller{}, err
	case a.AccountType != id.AccountType:
		return caller{}, deny(codeUnknownAccount, "the account is of another type than its key")
	case a.ArchivedAt != nil:
		return caller{}, deny(codeArchived, "the account is archived")
	case a.status() == statusSuspended:
		return caller{}, deny(minter.CodeSuspended, "the account is suspended; enable its integration")
	}
	return p.newCaller(id, a.Name, levelOf(a.PermissionGroups))
}

func (p *platform) admitPerson(ctx context.Context, id minter.Identity) (caller, error) {
	m, ok := findPerson(id.AccountID)
	if !ok {
		return caller{}, deny(codeUnknownAccount, "the business has no such employee")
	}
	if _, provisioned, err := p.accounts.look(ctx, id.BusinessID, id.AccountID); !provisioned {
		if err != nil && !errors.Is(err, errNoAccount) {
			return caller{}, err
		}
		if err := p.accounts.provisionCodeAccount(ctx, id.BusinessID); err != nil {
			return caller{}, err
		}
	}
	return p.newCaller(id, m.FullName, levelOf(m.groups))
}

func (p *platform) newCaller(id minter.Identity, name string, level policy.Level) (caller, error) {
	principal, err := p.engine.For(policy.Account{ID: id.AccountID, Type: id.AccountType, BusinessID: id.BusinessID, Level: level})
	return caller{Identity: id, name: name, level: level, principal: principal}, err
}

// authorize lets no call pass that no policy permits, or that a guardrail forbids by its method and path alone.
func (p *platform) authorize(c *gin.Context) { p.allowed(c, policy.Call{}) }

// allowed decides on a call with what the handler knows about it. It answers itself, and returns false, when it is denied.
func (p *platform) allowed(c *gin.Context, call policy.Call) bool {
	call.Method, call.Path = c.Request.Method, c.Request.URL.EscapedPath()[len(apiRoot):]
	return decided(c, callerOf(c).principal.Decide(call))
}

// decided tells the caller of a call that is denied why.
func decided(c *gin.Context, decision policy.Decision) bool {
	if !decision.Allowed {
		c.AbortWithStatusJSON(http.StatusForbidden, problem{Detail: decision.Reason, Code: decision.Code, Policy: decision.Policy})
	}
	return decision.Allowed
}

// callerOf is for handlers behind authenticate.
func callerOf(c *gin.Context) caller {
	who, _ := c.Value(callerKey).(caller)
	return who
}

func performedBy(c *gin.Context) performer {
	who := callerOf(c)
	return performer{ID: who.AccountID, Name: who.name, AccountType: who.AccountType, ExecutionID: who.ExecutionID}
}
