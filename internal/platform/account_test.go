package platform

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

func TestAccountLivesFromCreateToArchive(t *testing.T) {
	w := start(t)
	created := w.want(201, w.person(editor), "POST", "/service-accounts",
		`{"name":" Warehouse Sync ","description":"Moves orders","permission_groups":["everyone"]}`)
	id := text(created, "id")
	if text(created, "name") != "Warehouse Sync" || text(created, "api_name") != "warehouse_sync" ||
		text(created, "account_type") != policy.ServiceIntegration ||
		text(created, "status") != statusActive || created.header.Get("Location") != "/api/service-accounts/"+id {
		t.Errorf("created %v at %s", created.body, created.header.Get("Location"))
	}
	path := "/service-accounts/" + id
	changed := w.want(200, w.person(editor), "PATCH", path, `{"name":"Stock","api_name":"stock","description":""}`)
	read := w.want(200, w.person(viewer), "GET", path, "")
	if text(read, "name") != "Stock" || text(read, "api_name") != "stock" || text(read, "description") != "" ||
		text(read, "email") != text(created, "email") {
		t.Errorf("read %v", read.body)
	}
	if read.header.Get("ETag") != changed.header.Get("ETag") || read.header.Get("ETag") == created.header.Get("ETag") {
		t.Errorf("ETags: created %s, changed %s, read %s", created.header.Get("ETag"), changed.header.Get("ETag"),
			read.header.Get("ETag"))
	}
	w.want(204, w.person(admin), "DELETE", path, "")
	for _, call := range []string{"GET " + path, "PATCH " + path, "DELETE " + path, "GET " + path + "/tokens",
		"POST " + path + "/tokens/rotate", "GET /team/" + id} {
		method, at, _ := strings.Cut(call, " ")
		w.refused(404, "not_found", "", w.person(admin), method, at, `{"name":"x"}`)
	}
	if got := column(w.want(200, w.person(viewer), "GET", "/service-accounts?archived=true", ""), "name"); !slices.Equal(got, []string{"Stock"}) {
		t.Errorf("the archived accounts are %v", got)
	}
	got := w.want(400, w.person(editor), "POST", "/service-accounts", `{"name":"Another","api_name":"stock"}`)
	if got.body["api_name"] == nil {
		t.Errorf("the api_name of an archived account is taken: %v", got.body)
	}
}

func TestEmailIsGeneratedAndUnique(t *testing.T) {
	w := start(t)
	form := regexp.MustCompile(`^[a-z0-9.-]+@serviceaccounts\.kizen\.com$`)
	seen := map[string]bool{}
	for range 5 {
		created := w.want(201, w.person(editor), "POST", "/service-accounts", `{"name":"Ünïcode & Co."}`)
		for _, name := range []string{"email", "api_name"} {
			if seen[text(created, name)] {
				t.Errorf("two accounts have the %s %s", name, text(created, name))
			}
			seen[text(created, name)] = true
		}
		if !form.MatchString(text(created, "email")) {
			t.Errorf("email %q", text(created, "email"))
		}
	}
	long := w.want(201, w.person(editor), "POST", "/service-accounts",
		`{"name":"Long","api_name":"`+strings.Repeat("a", 64)+`"}`)
	if local, _, _ := strings.Cut(text(long, "email"), "@"); len(local) > 64 || !form.MatchString(text(long, "email")) {
		t.Errorf("email %q", text(long, "email"))
	}
	for _, call := range []string{"POST /service-accounts", "PATCH /service-accounts/" + testAccount} {
		method, path, _ := strings.Cut(call, " ")
		if got := w.want(400, w.person(admin), method, path, `{"name":"x","email":"me@example.com"}`); got.body["email"] == nil {
			t.Errorf("%s with an email: %v", call, got.body)
		}
	}
}

func TestAccountListFiltersOrdersAndPages(t *testing.T) {
	w := start(t)
	for _, name := range []string{"banana", "Apple", "cherry"} {
		w.want(201, w.person(editor), "POST", "/service-accounts", `{"name":"`+name+`"}`)
	}
	suspended, _ := w.integrationAccount(`{"name":"damson"}`)
	w.switchIntegration(suspended, false)
	archived, _ := w.integrationAccount(`{"name":"elder"}`)
	w.want(204, w.person(admin), "DELETE", "/service-accounts/"+archived, "")
	const code = "Agentic Workflow Code Account"
	for name, c := range map[string]struct {
		query string
		names []string
	}{
		"oldest first":        {"", []string{code, "banana", "Apple", "cherry", "damson"}},
		"newest first":        {"?ordering=-created_at", []string{"damson", "cherry", "Apple", "banana", code}},
		"by name":             {"?ordering=name", []string{code, "Apple", "banana", "cherry", "damson"}},
		"by name, descending": {"?ordering=-name", []string{"damson", "cherry", "banana", "Apple", code}},
		"by api_name":         {"?ordering=api_name", []string{code, "Apple", "banana", "cherry", "damson"}},
		"changed last":        {"?ordering=-updated_at&page_size=1", []string{"damson"}},
		"second page":         {"?ordering=name&page_size=2&page=2", []string{"banana", "cherry"}},
		"by type":             {"?account_type=service_automation", []string{code}},
		"by search":           {"?search=AN", []string{"banana"}},
		"by e-mail":           {"?search=cherry.", []string{"cherry"}},
		"suspended":           {"?status=suspended", []string{"damson"}},
		"active": {"?status=active&account_type=service_integration&ordering=name",
			[]string{"Apple", "banana", "cherry"}},
		"archived": {"?archived=true", []string{"elder"}},
		"nothing":  {"?search=zzz", []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := column(w.want(200, w.person(viewer), "GET", "/service-accounts"+c.query, ""), "name"); !slices.Equal(got,
				c.names) {
				t.Errorf("got %v, want %v", got, c.names)
			}
		})
	}
	first := w.want(200, w.person(viewer), "GET", "/service-accounts?ordering=name&page_size=2", "")
	if first.body["count"] != 5.0 || text(first, "next") != "/service-accounts?ordering=name&page=2&page_size=2" {
		t.Errorf("count %v, next %q", first.body["count"], text(first, "next"))
	}
}

// switchIntegration enables or disables the integration of an account.
func (w *world) switchIntegration(account string, enabled bool) {
	w.t.Helper()
	read := w.want(200, w.person(admin), "GET", "/service-accounts/"+account, "")
	integration, _ := read.body["integration"].(map[string]any)
	body := map[bool]string{true: `{"enabled":true}`, false: `{"enabled":false}`}[enabled]
	w.want(200, w.person(admin), "PATCH", "/integrations/"+integration["id"].(string), body)
}

func TestBadFieldsOfAccountsAreKeyedByField(t *testing.T) {
	w := start(t)
	id, _ := w.integrationAccount(`{"name":"Taken","api_name":"taken"}`)
	one := "/service-accounts/" + id
	for name, c := range map[string]struct{ method, path, body, field string }{
		"unknown status":           {"GET", "/service-accounts?status=asleep", "", "status"},
		"unknown type in a filter": {"GET", "/service-accounts?account_type=employee", "", "account_type"},
		"archived not bool":        {"GET", "/service-accounts?archived=maybe", "", "archived"},
		"unknown ordering":         {"GET", "/service-accounts?ordering=token", "", "ordering"},
		"page size":                {"GET", "/service-accounts?page_size=0", "", "page_size"},
		"no name":                  {"POST", "/service-accounts", `{}`, "name"},
		"blank name":               {"POST", "/service-accounts", `{"name":"  "}`, "name"},
		"null name":                {"POST", "/service-accounts", `{"name":null}`, "name"},
		"number for a name":        {"POST", "/service-accounts", `{"name":1}`, "name"},
		"long name":                {"POST", "/service-accounts", `{"name":"` + strings.Repeat("é", 101) + `"}`, "name"},
		"bad api_name":             {"POST", "/service-accounts", `{"name":"x","api_name":"A-b"}`, "api_name"},
		"taken api_name":           {"POST", "/service-accounts", `{"name":"x","api_name":"taken"}`, "api_name"},
		"long description":         {"PATCH", one, `{"description":"` + strings.Repeat("x", 1001) + `"}`, "description"},
		"unknown group": {"POST", "/service-accounts", `{"name":"x","permission_groups":["gods"]}`,
			"permission_groups"},
		"groups not a list": {"POST", "/service-accounts", `{"name":"x","permission_groups":"everyone"}`,
			"permission_groups"},
		"unknown type": {"POST", "/service-accounts", `{"name":"x","account_type":"service_robot"}`,
			"account_type"},
		"a person":                 {"POST", "/service-accounts", `{"name":"x","account_type":"employee"}`, "account_type"},
		"type not a string":        {"POST", "/service-accounts", `{"name":"x","account_type":{}}`, "account_type"},
		"status on creation":       {"POST", "/service-accounts", `{"name":"x","status":"active"}`, "status"},
		"unknown field":            {"POST", "/service-accounts", `{"name":"x","colour":"red"}`, "colour"},
		"field of another case":    {"PATCH", one, `{"Status":"suspended"}`, "Status"},
		"read-only field":          {"PATCH", one, `{"id":"x"}`, "id"},
		"change of type":           {"PATCH", one, `{"account_type":"service_automation"}`, "account_type"},
		"change of integration":    {"PATCH", one, `{"integration":{"enabled":false}}`, "integration"},
		"group not found":          {"PATCH", one, `{"permission_groups":["none"]}`, "permission_groups"},
		"null body":                {"PATCH", one, `null`, "body"},
		"groups missing":           {"PUT", one + "/permission-groups", `{}`, "permission_groups"},
		"null groups":              {"PUT", one + "/permission-groups", `{"permission_groups":null}`, "permission_groups"},
		"timeline without account": {"GET", "/timeline", "", "account"},
		"bad timeline cursor":      {"GET", "/timeline?account=x&before=yesterday", "", "before"},
		"include that is not bool": {"GET", "/team/typeahead?include_service_accounts=perhaps", "",
			"include_service_accounts"},
	} {
		t.Run(name, func(t *testing.T) {
			got := w.callAs(w.person(admin), c.method, c.path, c.body)
			if messages, _ := got.body[c.field].([]any); got.status != 400 || len(messages) != 1 || len(got.body) != 1 {
				t.Errorf("got %d %v, want 400 with only %q", got.status, got.body, c.field)
			}
		})
	}
	integration := w.want(200, w.person(admin), "GET", one, "").body["integration"].(map[string]any)["id"].(string)
	for _, body := range []string{`{}`, `{"enabled":null}`, `{"enabled":"yes"}`} {
		if got := w.want(400, w.person(admin), "PATCH", "/integrations/"+integration, body); got.body["enabled"] == nil {
			t.Errorf("%s: %v", body, got.body)
		}
	}
}

func TestCodeAccountCannotBeDeletedOrRenamedOrGetKeys(t *testing.T) {
	w := start(t)
	w.want(200, w.headers, "GET", "/custom-objects", "")
	code := "/service-accounts/" + testAccount
	before := w.want(200, w.person(admin), "GET", code, "")
	for policy, calls := range map[string][]string{
		"guardrail.archive_provisioned_account": {"DELETE " + code},
		"guardrail.rename_provisioned_account": {
			"PATCH " + code + ` {"name":"Mine"}`, "PATCH " + code + ` {"api_name":"mine"}`,
			"PATCH " + code + ` {"description":"x","api_name":"mine"}`,
			"PATCH " + code + ` {"name":"Agentic workflow code account"}`,
		},
		"guardrail.status_by_hand": {"PATCH " + code + ` {"status":"suspended"}`,
			"PATCH " + code + ` {"status":"active","description":"x"}`},
		"guardrail.no_stored_keys": {"GET " + code + "/tokens", "POST " + code + "/tokens/rotate",
			"DELETE " + code + "/tokens/secondary"},
		"guardrail.create_provisioned_account": {
			`POST /service-accounts {"name":"x","account_type":"service_automation"}`,
			`POST /service-accounts {"name":"x","account_type":"service_plugin"}`,
		},
	} {
		for _, call := range calls {
			parts := strings.SplitN(call, " ", 3)
			w.refused(403, "guardrail", policy, w.person(admin), parts[0], parts[1], strings.Join(parts[2:], ""))
		}
	}
	after := w.want(200, w.person(admin), "GET", code, "")
	if after.header.Get("ETag") != before.header.Get("ETag") {
		t.Errorf("the account changed from %v to %v", before.body, after.body)
	}
	if got := w.want(200, w.person(editor), "PATCH", code, `{"description":"Runs the steps"}`); text(got,
		"description") != "Runs the steps" {
		t.Errorf("described %v", got.body)
	}
}

func TestStatusIsNeverSetByHand(t *testing.T) {
	w := start(t)
	id, _ := w.integrationAccount(`{"name":"x"}`)
	for _, body := range []string{`{"status":"suspended"}`, `{"status":"active"}`, `{"status":null,"name":"y"}`} {
		w.refused(403, "guardrail", "guardrail.status_by_hand", w.person(admin), "PATCH", "/service-accounts/"+id, body)
	}
	w.switchIntegration(id, false)
	if got := w.want(200, w.person(admin), "GET", "/service-accounts/"+id, ""); text(got, "status") != statusSuspended {
		t.Errorf("status %v", got.body["status"])
	}
}

func TestCodeAccountExistsFromTheFirstCallForABusiness(t *testing.T) {
	w := start(t)
	ids := map[string]minter.Identity{
		"a person": {AccountID: viewer, AccountType: policy.Employee, BusinessID: "by-person", ExecutionID: "e"},
		"a plugin": {AccountID: "plugin-1", AccountType: policy.ServicePlugin, BusinessID: "by-plugin",
			ExecutionID: "e"},
		"its own first step": {AccountID: "code-1", AccountType: policy.ServiceAutomation, BusinessID: "by-step",
			ExecutionID: "e"},
	}
	for name, id := range ids {
		mentioned := w.headersFor(w.mint(id))
		var racing sync.WaitGroup
		for range 8 {
			racing.Go(func() { w.callAs(mentioned, "GET", "/custom-objects", "") })
		}
		racing.Wait()
		reader := w.headersFor(w.mint(minter.Identity{AccountID: viewer, AccountType: policy.Employee,
			BusinessID: id.BusinessID, ExecutionID: "e"}))
		found := list(w.want(200, reader, "GET", "/service-accounts?account_type=service_automation", ""), "results")
		if len(found) != 1 || found[0]["version"] != 1.0 || name == "its own first step" && found[0]["id"] != "code-1" {
			t.Errorf("mentioned by %s: %v", name, found)
		}
	}
	second := w.headersFor(w.mint(minter.Identity{AccountID: "code-2", AccountType: policy.ServiceAutomation,
		BusinessID: "by-step", ExecutionID: "e"}))
	w.refused(401, policy.CodeUnknownAccount, "", second, "GET", "/custom-objects", "")
}

func TestAKeyOfTheWrongKindOrTypeIsRefused(t *testing.T) {
	w := start(t)
	id, _ := w.integrationAccount(`{"name":"x"}`)
	for name, c := range map[string]struct{ account, kind, code string }{
		"a signed key of an integration account": {id, policy.ServiceIntegration, policy.CodeKeyKind},
		"another type than the account's":        {id, policy.ServicePlugin, policy.CodeUnknownAccount},
		"an unknown type":                        {id, "service_robot", policy.CodeUnknownAccount},
		"an unknown person":                      {"nobody", policy.Employee, policy.CodeUnknownAccount},
		"an account by a person's type":          {id, policy.Employee, policy.CodeUnknownAccount},
	} {
		t.Run(name, func(t *testing.T) {
			w.refused(401, c.code, "", w.signed(c.account, c.kind), "GET", "/custom-objects", "")
		})
	}
}

func TestTheFieldOfAProvisionedTypeIsNotAnAccount(t *testing.T) {
	w := start(t)
	for _, id := range []string{provisionedField(policy.ServiceAutomation), "code_account"} {
		w.refused(404, "not_found", "", w.person(admin), "GET", "/service-accounts/"+url.PathEscape(id), "")
		w.refused(404, "not_found", "", w.person(admin), "DELETE", "/service-accounts/"+url.PathEscape(id), "")
	}
	w.want(200, w.signed("code_account", policy.ServicePlugin), "GET", "/custom-objects", "")
	if got := column(w.want(200, w.person(viewer), "GET", "/service-accounts?account_type=service_automation", ""), "account_type"); len(got) != 1 {
		t.Errorf("Code Accounts: %v", got)
	}
}

func TestNoAccountGrantsBeyondItsOwnLevelOrToItself(t *testing.T) {
	w := start(t)
	id, headers := w.integrationAccount(`{"name":"x","permission_groups":["service-account-editors"]}`)
	other, _ := w.integrationAccount(`{"name":"y"}`)
	beyond, own := "guardrail.grant_beyond_own", "guardrail.own_permissions"
	const admins = `["service-account-admins"]`
	w.refused(403, "guardrail", beyond, w.person(editor), "POST", "/service-accounts",
		`{"name":"z","permission_groups":`+admins+`}`)
	w.refused(403, "guardrail", beyond, w.person(editor), "PUT", "/service-accounts/"+other+"/permission-groups",
		`{"permission_groups":`+admins+`}`)
	w.refused(403, "guardrail", beyond, headers, "PUT", "/service-accounts/"+other+"/permission-groups",
		`{"permission_groups":["everyone","service-account-admins"]}`)
	w.refused(403, "guardrail", own, headers, "PUT", "/service-accounts/"+id+"/permission-groups",
		`{"permission_groups":`+admins+`}`)
	w.refused(403, "guardrail", own, headers, "PUT", "/service-accounts/"+strings.ToUpper(id)+"/permission-groups",
		`{"permission_groups":`+admins+`}`)
	granted := w.want(200, w.person(admin), "PUT", "/service-accounts/"+other+"/permission-groups",
		`{"permission_groups":["service-account-admins","everyone","everyone"]}`)
	if groups := list(granted, "permission_groups"); len(groups) != 2 || groups[1]["manage_service_accounts"] != "remove" {
		t.Errorf("granted %v", granted.body)
	}
	read := w.want(200, w.person(viewer), "GET", "/service-accounts/"+other+"/permission-groups", "")
	if len(list(read, "permission_groups")) != 2 || read.header.Get("ETag") != granted.header.Get("ETag") {
		t.Errorf("read %v", read.body)
	}
}

func TestAnOutdatedIfMatchIsAPreconditionFailed(t *testing.T) {
	w := start(t)
	id, _ := w.integrationAccount(`{"name":"x"}`)
	path := "/service-accounts/" + id
	read := w.want(200, w.person(admin), "GET", path, "")
	integration := "/integrations/" + read.body["integration"].(map[string]any)["id"].(string)
	stale := with412(w.person(admin), read.header.Get("ETag"))
	w.want(200, stale, "PATCH", path, `{"name":"first"}`)
	for _, call := range []string{
		"PATCH " + path + ` {"name":"second"}`, "DELETE " + path,
		"PUT " + path + `/permission-groups {"permission_groups":[]}`, "PATCH " + integration + ` {"enabled":false}`,
	} {
		parts := strings.SplitN(call, " ", 3)
		w.refused(412, "changed", "", stale, parts[0], parts[1], strings.Join(parts[2:], ""))
	}
	now := w.want(200, w.person(admin), "GET", path, "")
	if text(now, "name") != "first" || text(now, "status") != statusActive || now.body["version"] != 2.0 {
		t.Errorf("the account is %v", now.body)
	}
	for name, match := range map[string]struct {
		tag    string
		status int
	}{
		"any":             {"*", 200},
		"one of several":  {`"7", "3"`, 200},
		"weak":            {`W/"4"`, 412},
		"without quotes":  {"4", 412},
		"of another form": {`"x"`, 412},
		"none":            {"", 200},
		"unknown version": {`"99"`, 412},
	} {
		current := w.want(200, w.person(admin), "GET", path, "").header.Get("ETag")
		tag := strings.NewReplacer(`"3"`, current, "4", strings.Trim(current, `"`)).Replace(match.tag)
		if got := w.callAs(with412(w.person(admin), tag), "PATCH", path, `{"description":"`+name+`"}`); got.status != match.status {
			t.Errorf("%s: If-Match %s: %d %v", name, tag, got.status, got.body)
		}
	}
}

func with412(headers http.Header, tag string) http.Header {
	headers = headers.Clone()
	if tag != "" {
		headers.Set("If-Match", tag)
	}
	return headers
}
