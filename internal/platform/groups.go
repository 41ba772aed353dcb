package platform

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/policy"
)

// permissionGroup gives its members a level of MANAGE_SERVICE_ACCOUNTS.
type permissionGroup struct {
	ID    string       `json:"id"`
	Name  string       `json:"name"`
	Level policy.Level `json:"manage_service_accounts"`
}

// permissionGroups lists the groups that every business has.
var permissionGroups = []permissionGroup{
	{"everyone", "Everyone", policy.None},
	{"service-account-viewers", "Service Account Viewers", policy.Read},
	{"service-account-editors", "Service Account Editors", policy.Write},
	{"service-account-admins", "Service Account Admins", policy.Remove},
}

func findGroup(id string) (permissionGroup, bool) {
	i := slices.IndexFunc(permissionGroups, func(g permissionGroup) bool { return g.ID == id })
	if i < 0 {
		return permissionGroup{}, false
	}
	return permissionGroups[i], true
}

// levelOf returns the highest level that any of the groups grants.
func levelOf(groups []string) policy.Level {
	level := policy.None
	for _, id := range groups {
		if g, ok := findGroup(id); ok {
			level = max(level, g.Level)
		}
	}
	return level
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

// grants returns the highest level that a body would grant.
func grants(body map[string]json.RawMessage) policy.Level {
	groups, err := parseGroups(body["permission_groups"])
	if err != nil {
		return policy.None // apply reports the invalid field
	}
	return levelOf(groups)
}

// listGroups lists every permission group.
func (p *Platform) listGroups(c *gin.Context) { sendPage(c, permissionGroups) }

// groupsView shows the permission groups of an account.
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

func (p *Platform) readGroups(c *gin.Context) {
	if a, ok := p.managed(c); ok {
		sendGroups(c, a)
	}
}

func (p *Platform) setGroups(c *gin.Context) {
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
			target := a.policyAccount(businessID)
			if !p.allowed(c, policy.Call{Target: &target, Grants: grants(body)}) {
				return errDenied
			}
			return a.apply(b, body)
		})
	if err != nil {
		p.failed(c, err)
		return
	}
	p.changed(c, a.ID, "")
	sendGroups(c, a)
}
