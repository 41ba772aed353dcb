package main

import (
	"net/http"
	"strings"
	"sync"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/minter"
)

// member is an employee of a business: a person, or a service account.
type member struct {
	ID          string `json:"id"`
	Email       string `json:"email"`
	FirstName   string `json:"first_name"`
	LastName    string `json:"last_name"`
	FullName    string `json:"full_name"`
	AccountType string `json:"account_type"`
}

const (
	personAccount = "employee"
)

// people are the employees that every business starts with.
var people = []member{
	person("1b4e28ba-2fa1-41d2-883f-0016d3cca427", "Ada", "Lovelace"),
	person("2c5ea4c0-4067-41fe-8d5f-0b9d3c9a1f11", "Grace", "Hopper"),
	person("3d6f0a82-5b1c-4c3e-9a67-5d1f0a7c2e22", "Katherine", "Johnson"),
}

func person(id, first, last string) member {
	return member{
		ID: id, Email: strings.ToLower(first) + "@example.com",
		FirstName: first, LastName: last, FullName: first + " " + last, AccountType: personAccount,
	}
}

// team holds the service accounts that have called, by business and id.
type team struct {
	mu       sync.Mutex
	accounts map[string]map[string]member
}

func newTeam() *team { return &team{accounts: map[string]map[string]member{}} }

// addAccount makes the account a member of its business.
func (t *team) addAccount(id minter.Identity) {
	t.mu.Lock()
	defer t.mu.Unlock()
	accounts := t.accounts[id.BusinessID]
	if accounts == nil {
		accounts = map[string]member{}
		t.accounts[id.BusinessID] = accounts
	}
	accounts[id.AccountID] = member{
		ID: id.AccountID, Email: id.AccountID + "@serviceaccounts.kizen.com",
		FullName: accountName(id.AccountType), AccountType: id.AccountType,
	}
}

func (t *team) find(businessID, id string) (member, bool) {
	for _, m := range people {
		if m.ID == id {
			return m, true
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	m, ok := t.accounts[businessID][id]
	return m, ok
}

func accountName(accountType string) string {
	if accountType == "service_automation" {
		return "Agentic Workflow Code Account"
	}
	return accountType
}

// listTeam is the public employee list: service accounts are not in it.
func (p *platform) listTeam(c *gin.Context) { sendPage(c, people) }

func (p *platform) readMember(c *gin.Context) {
	m, ok := p.team.find(caller(c).BusinessID, c.Param("id"))
	if !ok {
		refuse(c, http.StatusNotFound, "not_found", "there is no team member %q", c.Param("id"))
		return
	}
	c.JSON(http.StatusOK, struct {
		member
		PerformedBy performer `json:"performed_by"`
	}{m, performedBy(c)})
}
