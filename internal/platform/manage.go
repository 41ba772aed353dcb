package platform

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

// accountView is a service account as the API shows it.
type accountView struct {
	accountRow
	PerformedBy performer `json:"performed_by"`
}

// sendAccount responds with an account and the ETag for If-Match.
func sendAccount(c *gin.Context, status int, a account) {
	c.Header("ETag", a.etag())
	c.JSON(status, accountView{viewAccount(a), performedBy(c)})
}

// failed writes the response to a failed change.
func (p *Platform) failed(c *gin.Context, err error) {
	var fields fieldErrors
	switch {
	case errors.As(err, &fields):
		badRequest(c, fields)
	case errors.Is(err, errDenied): // the response has been written
	case errors.Is(err, errNoAccount):
		refuse(c, http.StatusNotFound, "not_found", "there is no service account %q", c.Param("account"))
	case errors.Is(err, errChanged):
		refuse(c, http.StatusPreconditionFailed, "changed", "%v", errChanged)
	case errors.Is(err, errConflict):
		refuse(c, http.StatusConflict, "conflict", "%v", errConflict)
	default:
		p.unavailable(c, err)
	}
}

// errDenied ends a change that a policy has denied; the response has been written.
var errDenied = errors.New("denied by policy")

// listAccounts lists the service accounts that match all filters, in the requested order.
func (p *Platform) listAccounts(c *gin.Context) {
	all, err := p.accounts.list(c.Request.Context(), callerOf(c).BusinessID)
	if err != nil {
		p.failed(c, err)
		return
	}
	errs := fieldErrors{}
	found := slices.DeleteFunc(all, func(a account) bool { return !fitsFilters(c, a) })
	if status := c.Query("status"); status != "" && status != statusActive && status != statusSuspended {
		errs.add("status", "expected active or suspended, got %q", status)
	}
	if name := c.Query("account_type"); name != "" {
		if kind, ok := policy.FindAccountType(name); !ok || !kind.Service() {
			errs.add("account_type", "there is no service account type %q", name)
		}
	}
	if archived := c.Query("archived"); archived != "" && archived != "true" && archived != "false" {
		errs.add("archived", "expected true or false, got %q", archived)
	}
	by, descending := strings.CutPrefix(c.DefaultQuery("ordering", "created_at"), "-")
	order, ok := orderings[by]
	if !ok {
		errs.add("ordering", "expected one of %s, got %q", strings.Join(slices.Sorted(maps.Keys(orderings)), ", "), by)
	}
	if len(errs) > 0 {
		badRequest(c, errs)
		return
	}
	slices.SortStableFunc(found, order)
	if descending {
		slices.Reverse(found)
	}
	views := make([]accountRow, len(found))
	for i, a := range found {
		views[i] = viewAccount(a)
	}
	sendPage(c, views)
}

// accountRow is a service account in a list.
type accountRow struct {
	account
	Status       string          `json:"status"`
	SuspendedFor []minter.Reason `json:"suspended_for"` // empty while it is active
}

func viewAccount(a account) accountRow {
	return accountRow{a, a.status(), append([]minter.Reason{}, a.suspended...)}
}

var orderings = map[string]func(a, b account) int{
	"name":       func(a, b account) int { return cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)) },
	"api_name":   func(a, b account) int { return cmp.Compare(a.APIName, b.APIName) },
	"created_at": func(a, b account) int { return a.CreatedAt.Compare(b.CreatedAt) },
	"updated_at": func(a, b account) int { return a.UpdatedAt.Compare(b.UpdatedAt) },
}

// fitsFilters reports whether an account matches all filters. Without a filter for them, archived accounts do not
// match.
func fitsFilters(c *gin.Context, a account) bool {
	search := strings.ToLower(c.Query("search"))
	status, accountType := c.Query("status"), c.Query("account_type")
	return (a.ArchivedAt != nil) == (c.Query("archived") == "true") &&
		(status == "" || a.status() == status) &&
		(accountType == "" || a.AccountType == accountType) &&
		(search == "" || strings.Contains(strings.ToLower(a.Name+" "+a.APIName+" "+a.Email), search))
}

// managed finds the account that a call is about, and evaluates the policies again now that its type is known. If the
// account does not exist or the call is denied, it writes the response and returns false.
func (p *Platform) managed(c *gin.Context) (account, bool) {
	businessID := callerOf(c).BusinessID
	a, err := p.accounts.find(c.Request.Context(), businessID, c.Param("account"))
	if err == nil && a.ArchivedAt != nil {
		err = errNoAccount
	}
	if err != nil {
		p.failed(c, err)
		return account{}, false
	}
	target := a.policyAccount(businessID)
	return a, p.allowed(c, policy.Call{Target: &target})
}

func (p *Platform) readAccount(c *gin.Context) {
	if a, ok := p.managed(c); ok {
		sendAccount(c, http.StatusOK, a)
	}
}

// readOnly lists the fields of an account that no request can write.
var readOnly = []string{"id", "email", "account_type", "created_at", "updated_at", "archived_at", "version",
	"integration", "status", "suspended_for"}

// unknownFields returns the unknown fields of a body, sorted.
func unknownFields(body map[string]json.RawMessage, known ...string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(body)),
		func(name string) bool { return slices.Contains(known, name) })
}

// readChanges reads a body that may contain only the writable fields. If it is invalid, it writes the response and
// returns false.
func readChanges(c *gin.Context, writable ...string) (map[string]json.RawMessage, bool) {
	var body map[string]json.RawMessage
	if !readBody(c, &body) {
		return nil, false
	}
	errs := fieldErrors{}
	if body == nil {
		errs.add("body", "expected a JSON object, got null")
	}
	for _, name := range unknownFields(body, writable...) {
		if slices.Contains(readOnly, name) {
			errs.add(name, "cannot be written")
		} else {
			errs.add(name, "unknown field")
		}
	}
	if len(errs) > 0 {
		badRequest(c, errs)
		return nil, false
	}
	return body, true
}

// apply writes the fields of a body onto an account.
func (a *account) apply(b *business, body map[string]json.RawMessage) error {
	errs := fieldErrors{}
	text := func(name string, target *string, limit int) {
		raw, given := body[name]
		if !given {
			return
		}
		var value *string
		switch err := json.Unmarshal(raw, &value); {
		case err != nil || value == nil:
			errs.add(name, "expected a string")
		case utf8.RuneCountInString(*value) > limit:
			errs.add(name, "%d characters at most", limit)
		default:
			*target = strings.TrimSpace(*value)
		}
	}
	text("name", &a.Name, 100)
	text("api_name", &a.APIName, 64)
	text("description", &a.Description, 1000)
	if len(errs["name"]) == 0 && strings.ContainsFunc(a.Name,
		func(r rune) bool { return r == '\n' || r == '\t' || unprintable(r) }) {
		errs.add("name", "a name must not contain control characters")
	}
	if len(errs["description"]) == 0 && strings.ContainsFunc(a.Description, unprintable) {
		errs.add("description", "no control characters but line ends and tabs")
	}
	if len(errs["name"]) == 0 && a.Name == "" {
		errs.add("name", "required")
	}
	if _, given := body["api_name"]; given && len(errs["api_name"]) == 0 {
		switch {
		case !fieldName.MatchString(a.APIName):
			errs.add("api_name", "lower case letters, digits and '_', a letter first, 64 at most")
		case b.has(a.ID, a.APIName):
			errs.add("api_name", "another account has it")
		}
	}
	if raw, given := body["permission_groups"]; given {
		groups, err := parseGroups(raw)
		if err != nil {
			errs.add("permission_groups", "%v", err)
		}
		a.PermissionGroups = groups
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}

// unprintable reports characters that affect the text around them: control characters except line ends and tabs, line
// and paragraph separators, and bidirectional marks (Unicode's Bidi_Control).
func unprintable(r rune) bool {
	return unicode.IsControl(r) && r != '\n' && r != '\t' || unicode.In(r, unicode.Zl, unicode.Zp, unicode.Bidi_Control)
}

// changes returns the fields of a body, or of a config, that would change an account. A field with the current value
// changes nothing, so it is always allowed.
func (a account) changes(body map[string]json.RawMessage) []string {
	now := map[string]string{"name": a.Name, "api_name": a.APIName, "description": a.Description}
	changes := []string{}
	for _, name := range slices.Sorted(maps.Keys(body)) {
		var text string
		if is, known := now[name]; known && json.Unmarshal(body[name], &text) == nil && strings.TrimSpace(text) == is {
			continue
		}
		if groups, err := parseGroups(body[name]); name == "permission_groups" && err == nil &&
			slices.Equal(groups, a.PermissionGroups) {
			continue
		}
		changes = append(changes, name)
	}
	return changes
}

// grants returns the highest level that a body would grant an account beyond its current level.
func (a account) grants(body map[string]json.RawMessage) policy.Level {
	if !slices.Contains(a.changes(body), "permission_groups") {
		return policy.None
	}
	return grants(body)
}

// findServiceType returns the type that a body names; the default is the type of accounts created by hand.
func findServiceType(raw json.RawMessage) (policy.AccountType, bool) {
	name := policy.ServiceIntegration
	if raw != nil && json.Unmarshal(raw, &name) != nil {
		return policy.AccountType{}, false
	}
	kind, ok := policy.FindAccountType(name)
	return kind, ok && kind.Service()
}

// createAccount creates an account with its integration.
func (p *Platform) createAccount(c *gin.Context) {
	body, ok := readChanges(c, "name", "api_name", "description", "permission_groups", "account_type")
	if !ok {
		return
	}
	kind, ok := findServiceType(body["account_type"])
	if !ok {
		badRequest(c, fieldErrors{"account_type": {fmt.Sprintf("there is no service account type %s", body["account_type"])}})
		return
	}
	who := callerOf(c)
	id := uuid.NewString()
	target := policy.Account{ID: id, Type: kind.Name, BusinessID: who.BusinessID}
	if !p.allowed(c, policy.Call{Target: &target, Grants: grants(body)}) {
		return
	}
	a, err := p.create(c.Request.Context(), who.BusinessID, id, kind, body)
	if err != nil {
		p.failed(c, err)
		return
	}
	p.changed(c, a.ID, "")
	c.Header("Location", apiRoot+"/service-accounts/"+a.ID)
	sendAccount(c, http.StatusCreated, a)
}

// create creates an account, its integration and, if its type has stored keys, its first token.
func (p *Platform) create(ctx context.Context, businessID, id string, kind policy.AccountType,
	body map[string]json.RawMessage) (account, error) {
	a, err := p.accounts.change(ctx, businessID, func(b *business) (account, error) {
		a := account{ID: id, AccountType: kind.Name, PermissionGroups: []string{}, CreatedAt: time.Now().UTC()}
		if err := a.apply(b, body); err != nil {
			return account{}, err
		}
		if a.APIName == "" {
			a.APIName = b.freeAPIName(a.Name)
		}
		a.Email = b.freeEmail(a.APIName)
		a.Integration = &integration{ID: uuid.NewString(), Enabled: true}
		return a, nil
	})
	if err != nil || !kind.StoredKeys {
		return a, err
	}
	// If the store fails now, the account has no token yet; rotation creates one later.
	if _, err := p.stored.Create(ctx, a.identity(businessID), time.Time{}); err != nil {
		p.log.WarnContext(ctx, "an account has no token yet", "account_id", a.ID, "error", err)
	}
	return a, nil
}

// updateAccount changes the writable fields of an account.
func (p *Platform) updateAccount(c *gin.Context) {
	body, ok := readChanges(c, "name", "api_name", "description", "permission_groups", "status")
	if !ok {
		return
	}
	businessID := callerOf(c).BusinessID
	a, err := p.accounts.update(c.Request.Context(), businessID, c.Param("account"), c.GetHeader("If-Match"),
		func(b *business, a *account) error {
			target := a.policyAccount(businessID)
			if !p.allowed(c, policy.Call{Target: &target, Changes: a.changes(body), Grants: a.grants(body)}) {
				return errDenied
			}
			return a.apply(b, body)
		})
	if err != nil {
		p.failed(c, err)
		return
	}
	p.changed(c, a.ID, "")
	sendAccount(c, http.StatusOK, a)
}

// archiveAccount archives an account permanently. It deletes the keys first, so that a process killed in between
// leaves an account without keys, never keys without an account.
func (p *Platform) archiveAccount(c *gin.Context) {
	a, ok := p.managed(c)
	if !ok {
		return
	}
	if !fits(c.GetHeader("If-Match"), a.etag()) {
		p.failed(c, errChanged)
		return
	}
	ctx, businessID := c.Request.Context(), callerOf(c).BusinessID
	if err := p.stored.Delete(ctx, businessID, a.ID); err != nil {
		p.failed(c, err)
		return
	}
	_, err := p.accounts.update(ctx, businessID, a.ID, c.GetHeader("If-Match"), func(b *business, a *account) error {
		now := time.Now().UTC()
		a.ArchivedAt = &now
		b.also = append(b.also, func(pipe redis.Pipeliner) {
			minter.SuspendIn(ctx, pipe, businessID, a.ID, minter.ReasonArchived)
		})
		return nil
	})
	if err != nil {
		p.failed(c, err)
		return
	}
	p.changed(c, a.ID, "")
	c.Status(http.StatusNoContent)
}
