package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/minter"
)

// tokenView is a stored key as authorised callers see it.
type tokenView struct {
	ID        string    `json:"id"`
	Kind      string    `json:"kind"` // primary or secondary
	Token     string    `json:"token"`
	CreatedAt time.Time `json:"created_at"`
	// ExpiresAt is null for a token that lasts until it is rotated out or deleted. LastUsedAt is null before the first
	// use, and exact to a minute.
	ExpiresAt  *time.Time `json:"expires_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
}

func viewToken(k minter.StoredKey) tokenView {
	kind := "secondary"
	if k.Primary {
		kind = "primary"
	}
	view := tokenView{ID: k.ID, Kind: kind, Token: k.Token.Reveal(), CreatedAt: k.CreatedAt}
	if !k.ExpiresAt.IsZero() {
		view.ExpiresAt = &k.ExpiresAt
	}
	return view
}

// usePrecision is the precision of the last use: the use of a token is written at most this often.
const usePrecision = time.Minute

// storedUses keeps the last uses of stored keys, in Redis:
//
//	kizen:{BUSINESS}:storeduse:ACCOUNT    a hash: the key's id -> RFC 3339
//
// It is safe for concurrent use.
type storedUses struct {
	redis redis.UniversalClient
	log   *slog.Logger

	mu      sync.Mutex
	written map[string]time.Time // by key id, the recent writes of this process
}

func storedUseKey(businessID, accountID string) string {
	return "kizen:{" + businessID + "}:storeduse:" + accountID
}

// note records a use. If the store is down, the use is lost, but not the response.
func (u *storedUses) note(ctx context.Context, id minter.Identity, keyID string) {
	now := time.Now().UTC()
	u.mu.Lock()
	fresh := now.Sub(u.written[keyID]) < usePrecision
	if !fresh {
		for other, at := range u.written {
			if now.Sub(at) >= usePrecision {
				delete(u.written, other)
			}
		}
		u.written[keyID] = now
	}
	u.mu.Unlock()
	if fresh {
		return
	}
	if err := u.redis.HSet(ctx, storedUseKey(id.BusinessID, id.AccountID), keyID, now.Format(time.RFC3339)).Err(); err != nil {
		u.log.WarnContext(ctx, "the use of a token is not recorded", "account_id", id.AccountID, "error", err)
	}
}

// fill sets the last use of each token in views.
func (u *storedUses) fill(ctx context.Context, businessID, accountID string, views []tokenView) error {
	used, err := u.redis.HGetAll(ctx, storedUseKey(businessID, accountID)).Result()
	if err != nil {
		return fmt.Errorf("read when the tokens of account %s were used: %w", accountID, err)
	}
	for i := range views {
		if at, err := time.Parse(time.RFC3339, used[views[i].ID]); err == nil {
			views[i].LastUsedAt = &at
		}
	}
	return nil
}

// keep deletes the recorded uses of all tokens of an account except the given ones.
func (u *storedUses) keep(ctx context.Context, businessID, accountID string, keys []minter.StoredKey) error {
	used, err := u.redis.HKeys(ctx, storedUseKey(businessID, accountID)).Result()
	if err != nil {
		return err
	}
	gone := slices.DeleteFunc(used, func(id string) bool {
		return slices.ContainsFunc(keys, func(k minter.StoredKey) bool { return k.ID == id })
	})
	if len(gone) == 0 {
		return nil
	}
	return u.redis.HDel(ctx, storedUseKey(businessID, accountID), gone...).Err()
}

// readExpiry reads the body of a call that creates a token: no body, or {"expires_at": time}. If the body is invalid,
// it sends the error response.
func readExpiry(c *gin.Context) (expires time.Time, ok bool) {
	if c.Request.ContentLength == 0 {
		return time.Time{}, true
	}
	body, ok := readChanges(c, "expires_at")
	if !ok {
		return time.Time{}, false
	}
	raw := body["expires_at"]
	if raw == nil || string(raw) == "null" {
		return time.Time{}, true
	}
	if err := json.Unmarshal(raw, &expires); err != nil {
		badRequest(c, fieldErrors{"expires_at": {"expected a time as in RFC 3339, or null"}})
		return time.Time{}, false
	}
	if !expires.After(time.Now()) {
		badRequest(c, fieldErrors{"expires_at": {"it has passed"}})
		return time.Time{}, false
	}
	return expires, true
}

// tokensFailed responds to a failed call about stored keys.
func (p *Platform) tokensFailed(c *gin.Context, err error) {
	switch {
	case errors.Is(err, minter.ErrNoSecondary), errors.Is(err, minter.ErrNoStored):
		refuse(c, http.StatusNotFound, "not_found", "the account has no such token")
	case errors.Is(err, minter.ErrStoredConflict), errors.Is(err, minter.ErrStoredExists):
		refuse(c, http.StatusConflict, "conflict", "the account's tokens are changing at this moment; try again")
	default:
		p.unavailable(c, err)
	}
}

func (p *Platform) listTokens(c *gin.Context) {
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
	ctx, businessID := c.Request.Context(), callerOf(c).BusinessID
	if err := errors.Join(p.uses.keep(ctx, businessID, a.ID, keys), p.uses.fill(ctx, businessID, a.ID, views)); err != nil {
		p.tokensFailed(c, err)
		return
	}
	c.Header("Cache-Control", "no-store")
	sendPage(c, views)
}

// rotateToken creates a new primary token. It also creates the first token of an account.
func (p *Platform) rotateToken(c *gin.Context) {
	a, ok := p.managed(c)
	if !ok {
		return
	}
	expires, ok := readExpiry(c)
	if !ok {
		return
	}
	key, err := p.newToken(c.Request.Context(), a.identity(callerOf(c).BusinessID), expires)
	if err != nil {
		p.tokensFailed(c, err)
		return
	}
	p.changed(c, a.ID, "")
	sendToken(c, key)
}

func (p *Platform) newToken(ctx context.Context, id minter.Identity, expires time.Time) (minter.StoredKey, error) {
	key, err := p.stored.Rotate(ctx, id.BusinessID, id.AccountID, expires)
	if errors.Is(err, minter.ErrNoStored) {
		key, err = p.stored.Create(ctx, id, expires)
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

func (p *Platform) deleteSecondary(c *gin.Context) {
	a, ok := p.managed(c)
	if !ok {
		return
	}
	if err := p.stored.DeleteSecondary(c.Request.Context(), callerOf(c).BusinessID, a.ID); err != nil {
		p.tokensFailed(c, err)
		return
	}
	p.changed(c, a.ID, "")
	c.Status(http.StatusNoContent)
}

// createAPIKey creates a key for the caller itself; guardrails deny it to service accounts.
func (p *Platform) createAPIKey(c *gin.Context) {
	expires, ok := readExpiry(c)
	if !ok {
		return
	}
	key, err := p.newToken(c.Request.Context(), callerOf(c).Identity, expires)
	if err != nil {
		p.tokensFailed(c, err)
		return
	}
	sendToken(c, key)
}

// deleteAPIKey deletes one of the caller's own keys.
func (p *Platform) deleteAPIKey(c *gin.Context) {
	id := callerOf(c).Identity
	if err := p.stored.DeleteKey(c.Request.Context(), id.BusinessID, id.AccountID, c.Param("key")); err != nil {
		p.tokensFailed(c, err)
		return
	}
	c.Status(http.StatusNoContent)
}
