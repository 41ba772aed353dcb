package main

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"
)

// businessConfig is what can be carried from one business to another. It holds no keys.
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

func (p *platform) exportConfig(c *gin.Context) {
	accounts, err := p.accounts.list(c.Request.Context(), callerOf(c).BusinessID)
	if err != nil {
		p.unavailable(c, err)
		return
	}
	config := businessConfig{CustomObjects: customObjects, PermissionGroups: permissionGroups, ServiceAccounts: []configAccount{}}
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

// importResult says what an import found.
type importResult struct {
	Known       []string  `json:"known"`   // custom objects that are here already
	Unknown     []string  `json:"unknown"` // custom objects that the reference platform cannot make
	PerformedBy performer `json:"performed_by"`
}

// importConfig compares a config with what is here. The reference platform's objects and groups are fixed: there is nothing
// that it could change.
func (p *platform) importConfig(c *gin.Context) {
	var body struct {
		CustomObjects *[]customObject `json:"custom_objects"`
	}
	if !readBody(c, &body) {
		return
	}
	if body.CustomObjects == nil {
		badRequest(c, fieldErrors{"custom_objects": {"required: a list"}})
		return
	}
	result := importResult{Known: []string{}, Unknown: []string{}, PerformedBy: performedBy(c)}
	errs := fieldErrors{}
	for i, object := range *body.CustomObjects {
		switch _, known := findObject(object.Name); {
		case !fieldName.MatchString(object.Name):
			errs.add(fmt.Sprintf("custom_objects[%d].name", i), "required: lower case letters, digits and '_'")
		case known:
			result.Known = append(result.Known, object.Name)
		default:
			result.Unknown = append(result.Unknown, object.Name)
		}
	}
	if len(errs) > 0 {
		badRequest(c, errs)
		return
	}
	slices.Sort(result.Unknown)
	c.JSON(http.StatusOK, result)
}
