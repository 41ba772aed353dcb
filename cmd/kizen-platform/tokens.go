package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/minter"
)

// tokenView is a stored key as those see it who may.
type tokenView struct {
	ID        string    `json:"id"`
	Kind      string    `json:"kind"` // primary or secondary
	Token     string    `json:"token"`
	CreatedAt time.Time `json:"created_at"`
}

func viewToken(k minter.StoredKey) tokenView {
	kind := "secondary"
	if k.Primary {
		kind = "primary"
	}
	return tokenView{ID: k.ID, Kind: kind, Token: k.Token.Reveal(), CreatedAt: k.CreatedAt}
}

// tokensFailed answers what a call about stored keys was refused with.
func (p *platform) tokensFailed(c *gin.Context, err error) {
	switch {
	case errors.Is(err, minter.ErrNoSecondary), errors.Is(err, minter.ErrNoStored):
		refuse(c, http.StatusNotFound, "not_found", "the account has no such token")
	case errors.Is(err, minter.ErrStoredConflict), errors.Is(err, minter.ErrStoredExists):
		refuse(c, http.StatusConflict, "conflict", "the account's tokens are changing at this moment; try again")
	default:
		p.unavailable(c, err)
	}
}

func (p *platform) listTokens(c *gin.Context) {
	a, ok := p.managed(c)
	if !ok {
		return
	}
	keys, err := p.stored.View(c.Request.Context(), callerOf(c).BusinessID, a.ID)
	if err != nil {
		p.tokensFailed(c, err)
		return
	}
	views := make([]tokenView, len(keys))
	for i, k := range keys {
		views[i] = viewToken(k)
	}
	c.Header("Cache-Control", "no-store")
	sendPage(c, views)
}

// rotateToken makes a new primary token. An account that has none yet gets its first.
func (p *platform) rotateToken(c *gin.Context) {
	a, ok := p.managed(c)
	if !ok {
		return
	}
	key, err := p.newToken(c.Request.Context(), a.identity(callerOf(c).BusinessID))
	if err != nil {
		p.tokensFailed(c, err)
		return
	}
	sendToken(c, key)
}

func (p *platform) newToken(ctx context.Context, id minter.Identity) (minter.StoredKey, error) {
	key, err := p.stored.Rotate(ctx, id.BusinessID, id.AccountID)
	if errors.Is(err, minter.ErrNoStored) {
		key, err = p.stored.Create(ctx, id)
	}
	return key, err
}

func sendToken(c *gin.Context, key minter.StoredKey) {
	c.Header("Cache-Control", "no-store")
	c.JSON(http.StatusCreated, struct {
		tokenView
		PerformedBy performer `json:"performed_by"`
	}{viewToken(key), performedBy(c)})
}

func (p *platform) deleteSecondary(c *gin.Context) {
	a, ok := p.managed(c)
	if !ok {
		return
	}
	if err := p.stored.DeleteSecondary(c.Request.Context(), callerOf(c).BusinessID, a.ID); err != nil {
		p.tokensFailed(c, err)
		return
	}
	c.Status(http.StatusNoContent)
}

// createAPIKey makes a key for the caller itself, which guardrails keep from service accounts.
func (p *platform) createAPIKey(c *gin.Context) {
	id := callerOf(c).Identity
	key, err := p.newToken(c.Request.Context(), id)
	if err != nil {
		p.tokensFailed(c, err)
		return
	}
	sendToken(c, key)
}
