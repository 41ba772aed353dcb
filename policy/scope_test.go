package policy

import (
	"testing"

	"github.com/cedar-policy/cedar-go"
)

// TestScopesDecideAsCedarDoes compares, for every kind of scope, the decision of the selected rules with Cedar's
// decision for the whole policy.
func TestScopesDecideAsCedarDoes(t *testing.T) {
	principals := []string{
		`principal`, `principal == Account::"` + code + `"`, `principal == Account::"other"`,
		`principal in AccountType::"service_plugin"`, `principal in AccountType::"employee"`, `principal in Business::"b1"`,
		`principal in Account::"` + code + `"`, `principal in Permission::"MANAGE_SERVICE_ACCOUNTS.write"`,
		`principal is Account`, `principal is Account in Business::"b1"`, `principal is Account in Business::"b2"`,
	}
	actions := []string{
		`action`, `action == Action::"GET"`, `action == Action::"other"`, `action in Action::"read"`,
		`action in Action::"write"`,
		`action in [Action::"POST", Action::"read"]`, `action in [Action::"DELETE"]`,
	}
	for _, level := range Levels() {
		for _, accountType := range AccountTypes() {
			entity, err := accountEntity(Account{ID: code, Type: accountType.Name, BusinessID: "b1", Level: level})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range principals {
				for _, a := range actions {
					compareScope(t, "permit ("+p+", "+a+", resource);", entity)
				}
			}
		}
	}
}

func compareScope(t *testing.T, text string, entity cedar.Entity) {
	t.Helper()
	policies, err := cedar.NewPolicyListFromBytes("test", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	whole := ruleSet{{policy: policies[0], bare: withoutScope(policies[0]), id: "x"}}
	kept := applicable(whole, entity)
	for method := range methods {
		entities := callEntities{principal: entity, endpoint: endpointEntity("/x", nil)}
		request := cedar.Request{
			Principal: entity.UID, Action: cedar.NewEntityUID("Action", cedar.String(method)), Resource: entities.endpoint.UID,
		}
		want, _ := cedar.Authorize(whole, entities, request)
		got, _ := cedar.Authorize(kept[method], entities, request)
		if got != want {
			t.Errorf("%s %s for %v: got %v, Cedar says %v", text, method, entity.UID, got, want)
		}
	}
}
