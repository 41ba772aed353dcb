package main

import (
	"context"
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"

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

// setIntegration enables or disables an integration, which resumes or suspends its account. A suspension is written first
// where keys are verified, and lifted there last: whoever is killed in between leaves the account shut out.
func (p *platform) setIntegration(c *gin.Context) {
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
	var err error
	if !*body.Enabled {
		err = p.revoker.Suspend(ctx, businessID, a.ID)
	}
	if err == nil {
		a, err = p.accounts.update(ctx, businessID, a.ID, c.GetHeader("If-Match"), func(_ *business, a *account) error {
			a.Integration.Enabled = *body.Enabled
			return nil
		})
	}
	if err == nil {
		err = p.settle(ctx, businessID, a)
	}
	if err != nil {
		p.failed(c, err)
		return
	}
	sendIntegration(c, a)
}

// settle makes the suspension that verifiers see agree with the account, also when others switch it at the same time: whoever
// writes last looks once more whether that is still right.
func (p *platform) settle(ctx context.Context, businessID string, a account) error {
	for {
		mark := p.revoker.Resume
		if a.status() == statusSuspended || a.ArchivedAt != nil {
			mark = p.revoker.Suspend
		}
		if err := mark(ctx, businessID, a.ID); err != nil {
			return err
		}
		now, err := p.accounts.find(ctx, businessID, a.ID)
		if err != nil || now.Version == a.Version {
			return err
		}
		a = now
	}
}

func (p *platform) readIntegration(c *gin.Context) {
	if a, ok := p.integrated(c); ok {
		sendIntegration(c, a)
	}
}

func sendIntegration(c *gin.Context, a account) {
	c.Header("ETag", a.etag())
	c.JSON(http.StatusOK, integrationView{a.Integration.ID, a.Integration.Enabled, a.ID, a.status(), performedBy(c)})
}

// integrated finds the account of the integration that a call is about. It answers itself when there is none, when the caller
// may not, or when If-Match no longer fits.
func (p *platform) integrated(c *gin.Context) (account, bool) {
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
	target := all[i].as(businessID)
	return all[i], p.allowed(c, policy.Call{Target: &target})
}
