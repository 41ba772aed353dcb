package platform

import (
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

// integrationView is an integration with its account.
type integrationView struct {
	ID          string    `json:"id"`
	Enabled     bool      `json:"enabled"`
	AccountID   string    `json:"account_id"`
	Status      string    `json:"account_status"`
	PerformedBy performer `json:"performed_by"`
}

// setIntegration enables or disables an integration. The same transaction suspends its account for that reason, or
// lifts that reason; other reasons stay unchanged.
func (p *Platform) setIntegration(c *gin.Context) {
	var body struct {
		Enabled *bool `json:"enabled"`
	}
	if !readBody(c, &body) {
		return
	}
	if body.Enabled == nil {
		badRequest(c, fieldErrors{"enabled": {"required: true or false"}})
		return
	}
	a, ok := p.integrated(c)
	if !ok {
		return
	}
	ctx, businessID := c.Request.Context(), callerOf(c).BusinessID
	switched := false
	a, err := p.accounts.update(ctx, businessID, a.ID, c.GetHeader("If-Match"), func(b *business, a *account) error {
		if switched = a.Integration.Enabled != *body.Enabled; !switched {
			return errSame
		}
		a.Integration.Enabled = *body.Enabled
		b.also = append(b.also, func(pipe redis.Pipeliner) {
			if *body.Enabled {
				minter.LiftIn(ctx, pipe, businessID, a.ID, minter.ReasonDisabled)
			} else {
				minter.SuspendIn(ctx, pipe, businessID, a.ID, minter.ReasonDisabled)
			}
		})
		return nil
	})
	if err != nil {
		p.failed(c, err)
		return
	}
	if switched {
		p.changed(c, a.ID, map[bool]string{true: "enable_integration", false: "disable_integration"}[a.Integration.Enabled])
	}
	sendIntegration(c, a)
}

func (p *Platform) readIntegration(c *gin.Context) {
	if a, ok := p.integrated(c); ok {
		sendIntegration(c, a)
	}
}

func sendIntegration(c *gin.Context, a account) {
	c.Header("ETag", a.etag())
	c.JSON(http.StatusOK, integrationView{a.Integration.ID, a.Integration.Enabled, a.ID, a.status(), performedBy(c)})
}

// integrated finds the account of the integration that a call is about. It writes the response itself if the
// integration does not exist, the call is denied, or If-Match does not match.
func (p *Platform) integrated(c *gin.Context) (account, bool) {
	businessID := callerOf(c).BusinessID
	all, err := p.accounts.list(c.Request.Context(), businessID)
	if err != nil {
		p.failed(c, err)
		return account{}, false
	}
	i := slices.IndexFunc(all, func(a account) bool {
		return a.ArchivedAt == nil && a.Integration != nil && a.Integration.ID == c.Param("integration")
	})
	if i < 0 {
		refuse(c, http.StatusNotFound, "not_found", "there is no integration %q", c.Param("integration"))
		return account{}, false
	}
	if !fits(c.GetHeader("If-Match"), all[i].etag()) {
		p.failed(c, errChanged)
		return account{}, false
	}
	target := all[i].policyAccount(businessID)
	return all[i], p.allowed(c, policy.Call{Target: &target})
}
