package platform

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

// TestAccountsAreListedAsTheirTypeDefines creates an account of every type and checks which lists contain it.
func TestAccountsAreListedAsTheirTypeDefines(t *testing.T) {
	w := start(t)
	for _, kind := range policy.AccountTypes() {
		if kind.Service() {
			w.accountOf(kind)
		}
	}
	for path, shows := range map[string]func(policy.AccountType) bool{
		"/team":           func(k policy.AccountType) bool { return k.EmployeeList },
		"/billing/seats":  func(k policy.AccountType) bool { return k.BillingSeat },
		"/team/typeahead": func(k policy.AccountType) bool { return k.Typeahead },
		"/team/typeahead?include_service_accounts=false": func(k policy.AccountType) bool { return k.Typeahead },
		"/team/typeahead?include_service_accounts=true": func(k policy.AccountType) bool {
			return k.Typeahead ||
				k.Service()
		},
	} {
		types := column(w.want(200, w.headers, "GET", path, ""), "account_type")
		for _, kind := range policy.AccountTypes() {
			if got := slices.Contains(types, kind.Name); got != shows(kind) {
				t.Errorf("%s: %s is shown: %v", path, kind.Name, got)
			}
		}
	}
}

// TestOnlySomeTypesHaveTheirCallsInTheTimeline makes calls as every type of the table.
func TestOnlySomeTypesHaveTheirCallsInTheTimeline(t *testing.T) {
	w := start(t)
	w.call("GET", "/custom-objects", "") // the Code Account makes the first call for the business
	for _, kind := range policy.AccountTypes() {
		caller := w.callerAt(kind, policy.None)
		caller.call("GET", "/billing/seats", "")
		paths := column(w.want(200, w.person(admin), "GET", "/timeline?account="+caller.id, ""), "path")
		if got := slices.Contains(paths, "/billing/seats"); got != kind.Timeline {
			t.Errorf("%s is in the timeline: %v", kind.Name, got)
		}
	}
}

func TestServiceAccountsAreNeitherSeatsNorListed(t *testing.T) {
	w := start(t)
	w.call("GET", "/custom-objects", "") // the Code Account makes the first call for the business
	w.integrationAccount(`{"name":"Ada Integration"}`)
	for _, path := range []string{"/team", "/billing/seats", "/team/typeahead?search=a"} {
		for _, accountType := range column(w.want(200, w.headers, "GET", path, ""), "account_type") {
			if accountType != policy.Employee {
				t.Errorf("%s holds a %v", path, accountType)
			}
		}
	}
	for search, want := range map[string][]string{
		"ada": {"Ada Lovelace", "Ada Integration"}, "AGEN": {"Agentic Workflow Code Account"}, "ntic": {},
		"hop": {"Grace Hopper"}, "ada-int": {"Ada Integration"},
	} {
		got := column(w.want(200, w.headers, "GET", "/team/typeahead?include_service_accounts=true&search="+search, ""),
			"full_name")
		if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("search %q: %v", search, got)
		}
	}
}

func TestServiceAccountsExportTheConfigAndNeverImportIt(t *testing.T) {
	w := start(t)
	w.call("GET", "/custom-objects", "") // the Code Account makes the first call for the business
	for _, kind := range policy.AccountTypes() {
		c := w.callerAt(kind, policy.Remove)
		exported := c.call("GET", "/business-config/export", "")
		imported := c.call("POST", "/business-config/import", `{"custom_objects":[]}`)
		if exported.status != 200 || len(list(exported, "custom_objects")) != len(customObjects) {
			t.Errorf("%s exports: %d %v", kind.Name, exported.status, exported.body)
		}
		if kind.Service() && (imported.status != 403 || imported.body["policy"] != "guardrail.import_business_config") ||
			!kind.Service() && imported.status != 200 {
			t.Errorf("%s imports: %d %v", kind.Name, imported.status, imported.body)
		}
	}
}

func TestAConfigMovesFromOneBusinessToAnother(t *testing.T) {
	w := start(t)
	w.call("GET", "/custom-objects", "") // the Code Account makes the first call for the business
	w.integrationAccount(`{"name":"Sync","description":"Moves orders","permission_groups":["service-account-viewers"]}`)
	w.integrationAccount(`{"name":"Mail"}`)
	exported := w.want(200, w.headers, "GET", "/business-config/export", "")
	delete(exported.body, "performed_by")
	config, err := json.Marshal(exported.body)
	must(t, err)
	if strings.Contains(string(config), "kizen_") {
		t.Error("the config contains a token")
	}
	there := w.headersFor(w.mint(minter.Identity{AccountID: admin, AccountType: policy.Employee, BusinessID: "b2",
		ExecutionID: "e"}))
	first := w.want(200, there, "POST", "/business-config/import", string(config))
	if got := first.body["created"]; !equalJSON(got, `["sync","mail"]`) ||
		!equalJSON(first.body["skipped"], `["service_automation"]`) ||
		len(first.body["known"].([]any)) != len(customObjects) {
		t.Errorf("the first import: %v", first.body)
	}
	accounts := list(w.want(200, there, "GET", "/service-accounts?search=sync", ""), "results")
	if len(accounts) != 1 || accounts[0]["description"] != "Moves orders" ||
		!equalJSON(accounts[0]["permission_groups"], `["service-account-viewers"]`) {
		t.Errorf("the accounts are now %v", accounts)
	}
	second := w.want(200, there, "POST", "/business-config/import",
		strings.Replace(string(config), "Moves orders", "Moves stock", 1))
	if !equalJSON(second.body["created"], `[]`) || !equalJSON(second.body["updated"], `["sync","mail"]`) {
		t.Errorf("the second import: %v", second.body)
	}
	if got := column(w.want(200, there, "GET", "/service-accounts?search=sync", ""), "description"); got[0] != "Moves stock" {
		t.Errorf("the description is %v", got)
	}
}

func equalJSON(value any, want string) bool {
	got, err := json.Marshal(value)
	return err == nil && string(got) == want
}

func TestABadImportChangesNothing(t *testing.T) {
	w := start(t)
	for name, c := range map[string]struct{ body, field string }{
		"no objects":          {`{}`, "custom_objects"},
		"object without name": {`{"custom_objects":[{}]}`, "custom_objects[0].name"},
		"unknown type":        {`{"custom_objects":[],"service_accounts":[{"name":"a","api_name":"a"},{"name":"b","api_name":"b","account_type":"robot"}]}`, "service_accounts[1].account_type"},
		"no name": {`{"custom_objects":[],"service_accounts":[{"name":"a","api_name":"a"},{"api_name":"b"}]}`,
			"service_accounts[1].name"},
		"unknown field": {`{"custom_objects":[],"service_accounts":[{"name":"a","api_name":"a","status":"active"}]}`,
			"service_accounts[0].status"},
		"api_name twice": {`{"custom_objects":[],"service_accounts":[{"name":"a","api_name":"a"},{"name":"b","api_name":"a"}]}`, "service_accounts[1].api_name"},
		"unknown group":  {`{"custom_objects":[],"service_accounts":[{"name":"a","api_name":"a","permission_groups":["gods"]}]}`, "service_accounts[0].permission_groups"},
	} {
		t.Run(name, func(t *testing.T) {
			got := w.want(400, w.person(admin), "POST", "/business-config/import", c.body)
			if messages, _ := got.body[c.field].([]any); len(messages) != 1 || len(got.body) != 1 {
				t.Errorf("got %v, want only %q", got.body, c.field)
			}
		})
	}
	const grant = `{"custom_objects":[],"service_accounts":[{"name":"a","api_name":"a"},{"name":"b","api_name":"b","permission_groups":["service-account-admins"]}]}`
	w.refused(403, policy.CodeNotPermitted, "", w.person(viewer), "POST", "/business-config/import", grant)
	w.refused(403, policy.CodeGuardrail, "guardrail.grant_beyond_own", w.person(editor), "POST", "/business-config/import",
		grant)
	if got := column(w.want(200, w.person(viewer), "GET", "/service-accounts?account_type=service_integration", ""), "name"); len(got) > 0 {
		t.Errorf("accounts were created: %v", got)
	}
}
