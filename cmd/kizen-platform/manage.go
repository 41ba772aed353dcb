package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/kizen/kizen-sidecar/policy"
)

// accountView is a service account as the API shows it.
type accountView struct {
	account
	Status      string    `json:"status"`
	PerformedBy performer `json:"performed_by"`
}

// sendAccount answers an account with the ETag that If-Match takes.
func sendAccount(c *gin.Context, status int, a account) {
	c.Header("ETag", a.etag())
	c.JSON(status, accountView{a, a.status(), performedBy(c)})
}

// failed answers what a change was refused with.
func (p *platform) failed(c *gin.Context, err error) {
	var fields fieldErrors
	switch {
	case errors.As(err, &fields):
		badRequest(c, fields)
	case errors.Is(err, errDenied): // answered already
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

// errDenied ends a change that a policy has forbidden; the caller has been told.
var errDenied = errors.New("denied by policy")

// listAccounts answers the service accounts that fit every filter, in the order asked for.
func (p *platform) listAccounts(c *gin.Context) {
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
		views[i] = accountRow{a, a.status()}
	}
	sendPage(c, views)
}

// accountRow is a service account in a list.
type accountRow struct {
	account
	Status string `json:"status"`
}

var orderings = map[string]func(a, b account) int{
	"name":       func(a, b account) int { return cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)) },
	"api_name":   func(a, b account) int { return cmp.Compare(a.APIName, b.APIName) },
	"created_at": func(a, b account) int { return a.CreatedAt.Compare(b.CreatedAt) },
	"updated_at": func(a, b account) int { return a.UpdatedAt.Compare(b.UpdatedAt) },
}

// fitsFilters leaves archived accounts out unless they are asked for.
func fitsFilters(c *gin.Context, a account) bool {
	search := strings.ToLower(c.Query("search"))
	status, accountType := c.Query("status"), c.Query("account_type")
	return (a.ArchivedAt != nil) == (c.Query("archived") == "true") &&
		(status == "" || a.status() == status) &&
		(accountType == "" || a.AccountType == accountType) &&
		(search == "" || strings.Contains(strings.ToLower(a.Name+" "+a.APIName+" "+a.Email), search))
}

// managed finds the account that a call is about, and asks the policies again now that its type is known. It answers itself,
// and returns false, when there is none or the call is denied.
func (p *platform) managed(c *gin.Context) (account, bool) {
	businessID := callerOf(c).BusinessID
	a, err := p.accounts.find(c.Request.Context(), businessID, c.Param("account"))
	if err == nil && a.ArchivedAt != nil {
		err = errNoAccount
	}
	if err != nil {
		p.failed(c, err)
		return account{}, false
	}
	target := a.as(businessID)
	return a, p.allowed(c, policy.Call{Target: &target})
}

func (p *platform) readAccount(c *gin.Context) {
	if a, ok := p.managed(c); ok {
		sendAccount(c, http.StatusOK, a)
	}
}

// readChanges reads a body of which only these fields may be written. It answers itself when it cannot.
func readChanges(c *gin.Context, writable ...string) (map[string]json.RawMessage, bool) {
	var body map[string]json.RawMessage
	if !readBody(c, &body) {
		return nil, false
	}
	errs := fieldErrors{}
	if body == nil {
		errs.add("body", "expected a JSON object, got null")
	}
	for name := range body {
		switch {
		case slices.Contains(writable, name):
		case slices.Contains([]string{"id", "email", "account_type", "created_at", "updated_at", "archived_at", "version", "integration"}, name):
			errs.add(name, "cannot be written")
		default:
			errs.add(name, "there is no such field")
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

func parseGroups(raw json.RawMessage) ([]string, error) {
	var groups []string
	if err := json.Unmarshal(raw, &groups); err != nil || groups == nil {
		return nil, errors.New("expected a list of permission group ids")
	}
	for _, id := range groups {
		if _, ok := findGroup(id); !ok {
			return nil, fmt.Errorf("there is no permission group %q", id)
		}
	}
	slices.Sort(groups)
	return slices.Compact(groups), nil
}

// grants is the highest level that a body would give.
func grants(body map[string]json.RawMessage) policy.Level {
	groups, err := parseGroups(body["permission_groups"])
	if err != nil {
		return policy.None // a bad field, which is said when it is applied
	}
	return levelOf(groups)
}

// createAccount makes an account by hand, with its integration.
func (p *platform) createAccount(c *gin.Context) {
	body, ok := readChanges(c, "name", "api_name", "description", "permission_groups", "account_type")
	if !ok {
		return
	}
	accountType := policy.ServiceIntegration
	if raw, given := body["account_type"]; given {
		if err := json.Unmarshal(raw, &accountType); err != nil {
			badRequest(c, fieldErrors{"account_type": {"expected a string"}})
			return
		}
	}
	kind, known := policy.FindAccountType(accountType)
	if !known || !kind.Service() {
		badRequest(c, fieldErrors{"account_type": {fmt.Sprintf("there is no service account type %q", accountType)}})
		return
	}
	who := callerOf(c)
	id := uuid.NewString()
	target := policy.Account{ID: id, Type: accountType, BusinessID: who.BusinessID}
	if !p.allowed(c, policy.Call{Target: &target, Grants: grants(body)}) {
		return
	}
	a, err := p.accounts.change(c.Request.Context(), who.BusinessID, func(b *business) (account, error) {
		a := account{ID: id, AccountType: accountType, PermissionGroups: []string{}, CreatedAt: time.Now().UTC()}
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
	if err != nil {
		p.failed(c, err)
		return
	}
	// Without its first token, if the store fails right now, the account gets one by rotating.
	if kind.StoredKeys {
		if _, err := p.stored.Create(c.Request.Context(), a.identity(who.BusinessID)); err != nil {
			p.log.WarnContext(c.Request.Context(), "an account has no token yet", "account_id", a.ID, "error", err)
		}
	}
	c.Header("Location", apiRoot+"/service-accounts/"+a.ID)
	sendAccount(c, http.StatusCreated, a)
}

// updateAccount changes what a person may change of an account.
func (p *platform) updateAccount(c *gin.Context) {
	body, ok := readChanges(c, "name", "api_name", "description", "status")
	if !ok {
		return
	}
	businessID := callerOf(c).BusinessID
	a, err := p.accounts.update(c.Request.Context(), businessID, c.Param("account"), c.GetHeader("If-Match"),
		func(b *business, a *account) error {
			target := a.as(businessID)
			if !p.allowed(c, policy.Call{Target: &target, Changes: slices.Sorted(maps.Keys(body))}) {
				return errDenied
			}
			return a.apply(b, body)
		})
	if err != nil {
		p.failed(c, err)
		return
	}
	sendAccount(c, http.StatusOK, a)
}

// archiveAccount ends an account for good. Its keys die first: whoever is killed in between leaves an account without keys,
// never keys without an account.
func (p *platform) archiveAccount(c *gin.Context) {
	a, ok := p.managed(c)
	if !ok {
		return
	}
	if !fits(c.GetHeader("If-Match"), a.etag()) {
		p.failed(c, errChanged)
		return
	}
	ctx, businessID := c.Request.Context(), callerOf(c).BusinessID
	if err := errors.Join(p.revoker.Suspend(ctx, businessID, a.ID), p.stored.Delete(ctx, businessID, a.ID)); err != nil {
		p.failed(c, err)
		return
	}
	_, err := p.accounts.update(ctx, businessID, a.ID, c.GetHeader("If-Match"), func(_ *business, a *account) error {
		now := time.Now().UTC()
		a.ArchivedAt = &now
		return nil
	})
	if err != nil {
		p.failed(c, err)
		return
	}
	c.Status(http.StatusNoContent)
}

// groupsView is the permission groups of an account.
type groupsView struct {
	PermissionGroups []permissionGroup `json:"permission_groups"`
	PerformedBy      performer         `json:"performed_by"`
}

func sendGroups(c *gin.Context, a account) {
	view := groupsView{PermissionGroups: []permissionGroup{}, PerformedBy: performedBy(c)}
	for _, id := range a.PermissionGroups {
		if g, ok := findGroup(id); ok {
			view.PermissionGroups = append(view.PermissionGroups, g)
		}
	}
	c.Header("ETag", a.etag())
	c.JSON(http.StatusOK, view)
}

func (p *platform) readGroups(c *gin.Context) {
	if a, ok := p.managed(c); ok {
		sendGroups(c, a)
	}
}

func (p *platform) setGroups(c *gin.Context) {
	body, ok := readChanges(c, "permission_groups")
	if !ok {
		return
	}
	if _, given := body["permission_groups"]; !given {
		badRequest(c, fieldErrors{"permission_groups": {"required"}})
		return
	}
	businessID := callerOf(c).BusinessID
	a, err := p.accounts.update(c.Request.Context(), businessID, c.Param("account"), c.GetHeader("If-Match"),
		func(b *business, a *account) error {
			target := a.as(businessID)
			if !p.allowed(c, policy.Call{Target: &target, Grants: grants(body)}) {
				return errDenied
			}
			return a.apply(b, body)
		})
	if err != nil {
		p.failed(c, err)
		return
	}
	sendGroups(c, a)
}

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
	if err == nil && *body.Enabled {
		err = p.revoker.Resume(ctx, businessID, a.ID)
	}
	if err != nil {
		p.failed(c, err)
		return
	}
	sendIntegration(c, a)
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
