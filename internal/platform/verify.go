package platform

import (
	"context"
	"errors"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

// caller is the account that a request acts as.
type caller struct {
	minter.Identity
	name      string
	level     policy.Level
	principal *policy.Principal
}

const callerKey = "caller"

// performer names the account that performed a call.
type performer struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	AccountType string `json:"account_type"`
	ExecutionID string `json:"execution_id,omitempty"`
}

// admittedKey is where [Platform.admit] leaves the caller for later handlers: a *caller in the context.
type admittedKey struct{}

// authenticate refuses requests without a valid key of an account that may act now.
func (p *Platform) authenticate(c *gin.Context) {
	var who caller
	ctx := context.WithValue(c.Request.Context(), admittedKey{}, &who)
	_, err := p.verifier.VerifyRequest(ctx, c.Request.Header)
	var denied *minter.DeniedError
	switch {
	case errors.As(err, &denied):
		// RFC 9110 section 11.6.1 requires a challenge.
		c.Header("WWW-Authenticate", minter.Challenge(denied))
		refuse(c, http.StatusUnauthorized, denied.Code, "%s", denied.Reason)
	case err != nil:
		p.unavailable(c, err)
	default:
		c.Set(callerKey, who)
		c.Header(minter.HeaderAccount, who.AccountID)
	}
}

// admit decides whether the account of a valid key may act now. It is the Admission of the platform's verifier, so the
// API and /verify share it. It creates provisioned accounts, so a business has its Code Account from the first call
// on.
func (p *Platform) admit(ctx context.Context, id minter.Identity, suspended []minter.Reason) error {
	applicant := policy.Applicant{Type: id.AccountType, StoredKey: id.ExecutionID == ""}
	for _, reason := range suspended {
		applicant.Suspended = append(applicant.Suspended, string(reason))
	}
	who := caller{Identity: id}
	refusal := policy.Admit(applicant)
	if refusal == nil {
		var err error
		if applicant.Unknown, err = p.find(ctx, &who); err != nil {
			return err
		}
		refusal = policy.Admit(applicant)
	}
	if refusal != nil {
		denied := &minter.DeniedError{Code: refusal.Code, Reason: refusal.Reason}
		if refusal.Code == policy.CodeSuspended {
			denied.Err = minter.ErrSuspended
		}
		return denied
	}
	var err error
	who.principal, err = p.engine.For(policy.Account{ID: id.AccountID, Type: id.AccountType, BusinessID: id.BusinessID,
		Level: who.level})
	if admitted, ok := ctx.Value(admittedKey{}).(*caller); ok {
		*admitted = who
	}
	return err
}

// find adds the name and the level of a caller whose identity is known. If the business has no such account, it
// returns the reason.
func (p *Platform) find(ctx context.Context, who *caller) (unknown string, err error) {
	id := who.Identity
	kind, _ := policy.FindAccountType(id.AccountType)
	person, isPerson := findPerson(id.AccountID)
	if !kind.Service() && !isPerson {
		return "the business has no such employee", nil
	}
	a, provisioned, err := p.accounts.look(ctx, id.BusinessID, id.AccountID)
	if kind.Service() && errors.Is(err, errNoAccount) {
		a, err = p.accounts.provision(ctx, id)
	}
	var taken otherAccountError
	switch {
	case errors.As(err, &taken):
		return taken.Error(), nil
	case kind.Service() && errors.Is(err, errNoAccount):
		return "the business has no such account", nil
	case err != nil && !errors.Is(err, errNoAccount):
		return "", err
	case kind.Service() && a.AccountType != id.AccountType:
		return "the account is of another type than its key", nil
	case kind.Service() && a.ArchivedAt != nil: // archived by a version that left no mark
		return "the account is archived", nil
	}
	if !provisioned {
		if err := p.accounts.provisionAll(ctx, id.BusinessID); err != nil {
			return "", err
		}
	}
	if who.name, who.level = a.Name, levelOf(a.PermissionGroups); !kind.Service() {
		who.name, who.level = person.FullName, levelOf(person.groups)
	}
	return "", nil
}

// authorize refuses calls that no policy permits, or that a guardrail forbids by method and path.
func (p *Platform) authorize(c *gin.Context) { p.allowed(c, policy.Call{}) }

// allowed decides on a call with the handler's knowledge about it. If the call is denied, it sends the response and
// returns false.
func (p *Platform) allowed(c *gin.Context, call policy.Call) bool {
	call.Method, call.Path = c.Request.Method, c.Request.URL.EscapedPath()[len(apiRoot):]
	return decided(c, callerOf(c).principal.Decide(call))
}

// decided sends the reason to the caller of a denied call.
func decided(c *gin.Context, decision policy.Decision) bool {
	if !decision.Allowed {
		c.AbortWithStatusJSON(http.StatusForbidden,
			problem{Detail: decision.Reason, Code: decision.Code, Policy: decision.Policy})
	}
	return decision.Allowed
}

// callerOf returns the caller in handlers behind authenticate.
func callerOf(c *gin.Context) caller {
	who, _ := c.Value(callerKey).(caller)
	return who
}

func performedBy(c *gin.Context) performer {
	who := callerOf(c)
	return performer{ID: who.AccountID, Name: who.name, AccountType: who.AccountType, ExecutionID: who.ExecutionID}
}
