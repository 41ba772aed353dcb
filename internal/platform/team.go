package platform

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/policy"
)

// member is an employee of a business: a person, or a service account.
type member struct {
	ID          string `json:"id"`
	Email       string `json:"email"`
	FirstName   string `json:"first_name"`
	LastName    string `json:"last_name"`
	FullName    string `json:"full_name"`
	AccountType string `json:"account_type"`

	groups []string // permission groups
}

// people are the employees of every business. Each is in a different permission group.
var people = []member{
	person("1b4e28ba-2fa1-41d2-883f-0016d3cca427", "Ada", "Lovelace", "service-account-admins"),
	person("2c5ea4c0-4067-41fe-8d5f-0b9d3c9a1f11", "Grace", "Hopper", "service-account-editors"),
	person("3d6f0a82-5b1c-4c3e-9a67-5d1f0a7c2e22", "Katherine", "Johnson", "service-account-viewers"),
	person("4e7f1b93-6c2d-4d4f-8b78-6e2f1b8d3f33", "Edsger", "Dijkstra", "everyone"),
}

func person(id, first, last, group string) member {
	return member{
		ID: id, Email: strings.ToLower(first) + "@example.com", FirstName: first, LastName: last,
		FullName:    first + " " + last,
		AccountType: policy.Employee, groups: []string{group},
	}
}

func findPerson(id string) (member, bool) {
	i := slices.IndexFunc(people, func(m member) bool { return m.ID == id })
	if i < 0 {
		return member{}, false
	}
	return people[i], true
}

func (a account) member() member {
	return member{ID: a.ID, Email: a.Email, FullName: a.Name, AccountType: a.AccountType}
}

// employees returns the employees of the caller's business whose type is shown. If it cannot, it sends the error
// response.
func (p *Platform) employees(c *gin.Context, shows func(policy.AccountType) bool) ([]member, bool) {
	accounts, err := p.accounts.list(c.Request.Context(), callerOf(c).BusinessID)
	if err != nil {
		p.unavailable(c, err)
		return nil, false
	}
	all := slices.Clone(people)
	for _, a := range accounts {
		if a.ArchivedAt == nil {
			all = append(all, a.member())
		}
	}
	return slices.DeleteFunc(all, func(m member) bool {
		kind, _ := policy.FindAccountType(m.AccountType)
		return !shows(kind)
	}), true
}

// listTeam serves the public employee list.
func (p *Platform) listTeam(c *gin.Context) {
	if all, ok := p.employees(c, func(t policy.AccountType) bool { return t.EmployeeList }); ok {
		sendPage(c, all)
	}
}

// typeahead finds employees by the beginning of any word of their name, or of their address.
func (p *Platform) typeahead(c *gin.Context) {
	include := false
	if text, given := c.GetQuery("include_service_accounts"); given {
		var err error
		if include, err = strconv.ParseBool(text); err != nil {
			badRequest(c, fieldErrors{"include_service_accounts": {"expected true or false"}})
			return
		}
	}
	found, ok := p.employees(c, func(t policy.AccountType) bool { return t.Typeahead || include && t.Service() })
	if !ok {
		return
	}
	search := strings.ToLower(c.Query("search"))
	sendPage(c, slices.DeleteFunc(found, func(m member) bool {
		return !slices.ContainsFunc(append(strings.Fields(m.FullName), m.Email), func(word string) bool {
			return strings.HasPrefix(strings.ToLower(word), search)
		})
	}))
}

// listSeats serves the paid seats of the business.
func (p *Platform) listSeats(c *gin.Context) {
	if all, ok := p.employees(c, func(t policy.AccountType) bool { return t.BillingSeat }); ok {
		sendPage(c, all)
	}
}

func (p *Platform) readMember(c *gin.Context) {
	id := c.Param("id")
	m, ok := findPerson(id)
	if !ok {
		a, err := p.accounts.find(c.Request.Context(), callerOf(c).BusinessID, id)
		switch {
		case errors.Is(err, errNoAccount), err == nil && a.ArchivedAt != nil:
			refuse(c, http.StatusNotFound, "not_found", "there is no team member %q", id)
			return
		case err != nil:
			p.unavailable(c, err)
			return
		}
		m = a.member()
	}
	c.JSON(http.StatusOK, struct {
		member
		PerformedBy performer `json:"performed_by"`
	}{m, performedBy(c)})
}
