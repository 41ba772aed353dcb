package main

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/minter"
)

const (
	headerKey      = "X-Api-Key"
	headerBusiness = "X-Business-Id"
	headerUser     = "X-User-Id"
	headerAccount  = "X-Kizen-Account"

	identityKey = "identity"
)

// keyVerifier says whose key a token is, if it is valid now for this business and user.
type keyVerifier interface {
	Verify(ctx context.Context, token, businessID, userID string) (minter.Identity, error)
}

// performer names the service account that an answer was done as.
type performer struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	AccountType string `json:"account_type"`
	ExecutionID string `json:"execution_id,omitempty"`
}

// authenticate lets nobody pass without a key that is valid now, and keeps whose it is for the handlers.
func (p *platform) authenticate(c *gin.Context) {
	var values [3]string
	for i, name := range []string{headerKey, headerBusiness, headerUser} {
		switch given := c.Request.Header.Values(name); {
		case len(given) == 0 || given[0] == "":
			unauthorized(c, minter.CodeMissing, "the header "+strings.ToUpper(name)+" is missing")
			return
		case len(given) > 1:
			unauthorized(c, minter.CodeMalformed, "the header "+strings.ToUpper(name)+" was sent more than once")
			return
		default:
			values[i] = given[0]
		}
	}
	identity, err := p.verifier.Verify(c.Request.Context(), values[0], values[1], values[2])
	var denied *minter.DeniedError
	switch {
	case errors.As(err, &denied):
		unauthorized(c, denied.Code, denied.Reason)
	case err != nil:
		p.log.ErrorContext(c.Request.Context(), "a key could not be checked", "error", err)
		refuse(c, http.StatusServiceUnavailable, "store_unavailable", "the key cannot be checked now; try again")
	default:
		p.team.addAccount(identity)
		c.Set(identityKey, identity)
		c.Header(headerAccount, identity.AccountID)
	}
}

// unauthorized answers 401 with the challenge that RFC 9110 section 11.6.1 asks for.
func unauthorized(c *gin.Context, code, reason string) {
	c.Header("WWW-Authenticate", `ApiKey header="X-API-KEY"`)
	refuse(c, http.StatusUnauthorized, code, "%s", reason)
}

func identityOf(c *gin.Context) (minter.Identity, bool) {
	identity, ok := c.Value(identityKey).(minter.Identity)
	return identity, ok
}

// caller is for handlers behind authenticate.
func caller(c *gin.Context) minter.Identity {
	identity, _ := identityOf(c)
	return identity
}

func performedBy(c *gin.Context) performer {
	id := caller(c)
	return performer{ID: id.AccountID, Name: accountName(id.AccountType), AccountType: id.AccountType, ExecutionID: id.ExecutionID}
}
