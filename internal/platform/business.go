package platform

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/kizen/kizen-sidecar/policy"
)

// businessConfig is the configuration that can be copied from one business to another. It contains no keys.
type businessConfig struct {
	CustomObjects    []customObject    `json:"custom_objects"`
	PermissionGroups []permissionGroup `json:"permission_groups"`
	ServiceAccounts  []configAccount   `json:"service_accounts"`
}

type configAccount struct {
	AccountType      string   `json:"account_type"`
	Name             string   `json:"name"`
	APIName          string   `json:"api_name"`
	Description      string   `json:"description"`
	PermissionGroups []string `json:"permission_groups"`
}

func (p *Platform) exportConfig(c *gin.Context) {
	accounts, err := p.accounts.list(c.Request.Context(), callerOf(c).BusinessID)
	if err != nil {
		p.unavailable(c, err)
		return
	}
	config := businessConfig{CustomObjects: customObjects, PermissionGroups: permissionGroups,
		ServiceAccounts: []configAccount{}}
	for _, a := range accounts {
		if a.ArchivedAt == nil {
			config.ServiceAccounts = append(config.ServiceAccounts,
				configAccount{a.AccountType, a.Name, a.APIName, a.Description, a.PermissionGroups})
		}
	}
	c.JSON(http.StatusOK, struct {
		businessConfig
		PerformedBy performer `json:"performed_by"`
	}{config, performedBy(c)})
}

// importResult is the result of an import.
type importResult struct {
	Created     []string  `json:"created"` // service accounts, by api_name
	Updated     []string  `json:"updated"` // existing service accounts
	Skipped     []string  `json:"skipped"` // provisioned types of service accounts
	Known       []string  `json:"known"`   // existing custom objects
	Unknown     []string  `json:"unknown"` // custom objects, which the reference platform cannot create
	PerformedBy performer `json:"performed_by"`
}

// importConfig creates the accounts of a config that the business lacks, and updates those that exist. It validates
// the whole config before it writes anything. If an import is interrupted, repeating it completes it.
func (p *Platform) importConfig(c *gin.Context) {
	var body struct {
		CustomObjects   *[]customObject              `json:"custom_objects"`
		ServiceAccounts []map[string]json.RawMessage `json:"service_accounts"`
	}
	if !readBody(c, &body) {
		return
	}
	errs := fieldErrors{}
	result := importResult{Created: []string{}, Updated: []string{}, Skipped: []string{}, Known: []string{},
		Unknown: []string{}, PerformedBy: performedBy(c)}
	if body.CustomObjects == nil {
		errs.add("custom_objects", "required: a list")
	} else {
		result.compareObjects(*body.CustomObjects, errs)
	}
	all, err := p.accounts.list(c.Request.Context(), callerOf(c).BusinessID)
	if err != nil {
		p.unavailable(c, err)
		return
	}
	changes := planImport(body.ServiceAccounts, all, errs)
	if len(errs) > 0 {
		badRequest(c, errs)
		return
	}
	for _, change := range changes {
		if !p.mayImport(c, change) {
			return
		}
	}
	for _, change := range changes {
		if err := p.importAccount(c, change, &result); err != nil {
			p.failed(c, err)
			return
		}
	}
	c.JSON(http.StatusOK, result)
}

func (r *importResult) compareObjects(objects []customObject, errs fieldErrors) {
	for i, object := range objects {
		switch _, known := findObject(object.Name); {
		case !fieldName.MatchString(object.Name):
			errs.add(fmt.Sprintf("custom_objects[%d].name", i), "required: lower case letters, digits and '_'")
		case known:
			r.Known = append(r.Known, object.Name)
		default:
			r.Unknown = append(r.Unknown, object.Name)
		}
	}
}

// accountChange is the effect of an import on one account.
type accountChange struct {
	kind   policy.AccountType
	before account // its ID is empty for a new account
	after  account
	body   map[string]json.RawMessage
}

// planImport finds the existing account for each account of a config by its api_name, and reports all errors.
func planImport(configs []map[string]json.RawMessage, all []account, errs fieldErrors) []accountChange {
	b := business{accounts: map[string]account{}}
	for _, a := range all {
		b.accounts[a.ID] = a
	}
	var changes []accountChange
	for i, config := range configs {
		at := fmt.Sprintf("service_accounts[%d]", i)
		change := accountChange{body: maps.Clone(config)}
		kind, ok := findServiceType(config["account_type"])
		if !ok {
			errs.add(at+".account_type", "there is no service account type %s", config["account_type"])
		}
		delete(change.body, "account_type")
		change.kind = kind
		var apiName string
		_ = json.Unmarshal(config["api_name"], &apiName) // apply reports the error
		for _, a := range all {
			if a.APIName == apiName && a.ArchivedAt == nil && a.AccountType == kind.Name {
				change.before = a
			}
		}
		change.after = change.before
		if change.before.ID == "" {
			change.after.ID, change.after.AccountType = uuid.NewString(), kind.Name
		}
		for _, name := range unknownFields(config, "account_type", "name", "api_name", "description", "permission_groups") {
			errs.add(at+"."+name, "unknown field")
		}
		var wrong fieldErrors
		if kind.Creatable && errors.As(change.after.apply(&b, change.body), &wrong) {
			for name, messages := range wrong {
				errs[at+"."+name] = messages
			}
		}
		b.accounts[change.after.ID] = change.after
		changes = append(changes, change)
	}
	return changes
}

// mayImport makes the same policy decisions as for separate calls for each account. If one is denied, it writes the
// response.
func (p *Platform) mayImport(c *gin.Context, change accountChange) bool {
	if !change.kind.Creatable {
		return true // the import skips it
	}
	target := change.after.policyAccount(callerOf(c).BusinessID)
	call := policy.Call{Method: "POST", Path: "/service-accounts", Target: &target, Grants: grants(change.body)}
	if change.before.ID != "" {
		call.Method, call.Path = "PATCH", "/service-accounts/"+change.before.ID
		call.Changes, call.Grants = change.before.changes(change.body), change.before.grants(change.body)
	}
	return decided(c, callerOf(c).principal.Decide(call))
}

func (p *Platform) importAccount(c *gin.Context, change accountChange, result *importResult) error {
	ctx, businessID := c.Request.Context(), callerOf(c).BusinessID
	switch {
	case !change.kind.Creatable:
		result.Skipped = append(result.Skipped, change.kind.Name)
		return nil
	case change.before.ID == "":
		a, err := p.create(ctx, businessID, change.after.ID, change.kind, change.body)
		result.Created = append(result.Created, a.APIName)
		if err == nil {
			p.changed(c, a.ID, "")
		}
		return err
	}
	a, err := p.accounts.update(ctx, businessID, change.before.ID, "", func(b *business, a *account) error {
		return a.apply(b, change.body)
	})
	result.Updated = append(result.Updated, a.APIName)
	if err == nil {
		p.changed(c, a.ID, "")
	}
	return err
}
