package platform

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

// operation is the expected behaviour of one operation of openapi.yaml.
type operation struct {
	needs   policy.Level
	body    string
	missing bool // the path names something that does not exist: 404 if the call is allowed
	// The guardrails that refuse the call: byPath depends only on the caller and the path, byTarget on the target,
	// byBody on the body.
	byPath, byTarget, byBody func(c, target subject) bool
}

// subject is an account of the matrix.
type subject struct {
	kind policy.AccountType
	id   string
}

func service(c, _ subject) bool  { return c.kind.Service() }
func oneself(c, t subject) bool  { return c.id == t.id }
func keyless(_, t subject) bool  { return !t.kind.StoredKeys }
func lasting(_, t subject) bool  { return !t.kind.Archivable }
func stubborn(_, t subject) bool { return !t.kind.Renamable }
func ownToken(c, t subject) bool { return c.kind.Service() && c.id == t.id }

// contract lists the permission that each operation needs and its guardrails, as the contract describes them. The
// operations are in an order in which one target can undergo all of them.
var contract = []struct {
	id string
	operation
}{
	{"list_custom_objects", operation{}},
	{"list_records", operation{}},
	{"create_record", operation{body: `{"fields":[{"name":"a","value":1}]}`}},
	{"search_records", operation{body: `{}`}},
	{"retrieve_record", operation{}},
	{"update_record", operation{body: `{"fields":[]}`}},
	{"delete_record", operation{}},
	{"list_team", operation{}},
	{"find_team", operation{}},
	{"retrieve_team_member", operation{}},
	{"list_billing_seats", operation{}},
	{"read_timeline", operation{}},
	{"export_business_config", operation{}},
	{"import_business_config", operation{body: `{"custom_objects":[]}`, byPath: service}},
	{"create_api_key", operation{byPath: service}},
	{"delete_api_key", operation{byPath: service, missing: true}},

	{"list_permission_groups", operation{needs: policy.Read}},
	{"list_service_accounts", operation{needs: policy.Read}},
	{"retrieve_service_account", operation{needs: policy.Read}},
	{"retrieve_permission_groups", operation{needs: policy.Read}},
	{"retrieve_integration", operation{needs: policy.Read}},
	{"view_tokens", operation{needs: policy.Read, byTarget: keyless}},
	{"create_service_account", operation{needs: policy.Write, body: `{"name":"New"}`}},
	{"update_service_account", operation{needs: policy.Write, body: `{"name":"Renamed"}`, byBody: stubborn}},
	{"set_permission_groups", operation{needs: policy.Write, body: `{"permission_groups":[]}`, byPath: oneself}},
	{"set_integration_enabled", operation{needs: policy.Write, body: `{"enabled":true}`}},
	{"rotate_token", operation{needs: policy.Write, byPath: ownToken, byTarget: keyless}},
	{"delete_secondary_token", operation{needs: policy.Write, byTarget: keyless}},
	{"archive_service_account", operation{needs: policy.Remove, byTarget: lasting}},
}

// TestMatrixOfTypesLevelsAndOperations calls every operation over HTTP as every account type at every level, on every
// type of service account and on the caller itself, and compares the responses with the contract.
func TestMatrixOfTypesLevelsAndOperations(t *testing.T) {
	routes := operationRoutes(t)
	codeAccount, _ := policy.FindAccountType(policy.ServiceAutomation)
	for _, kind := range policy.AccountTypes() {
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			w, calls := start(t), 0
			w.accountOf(codeAccount) // the matrix's Code Account is the first to call for the business
			for _, level := range policy.Levels() {
				for _, target := range policy.AccountTypes() {
					if target.Service() {
						calls += w.runMatrix(routes, w.callerAt(kind, level), level, w.targetOf(target))
					}
				}
				if kind.Service() {
					c := w.callerAt(kind, level)
					calls += w.runMatrix(routes, c, level, c.subject)
				}
			}
			t.Logf("%d calls", calls)
		})
	}
}

// operationRoutes returns "METHOD /path" by operation. The test fails if the matrix and openapi.yaml list different
// operations.
func operationRoutes(t *testing.T) map[string]string {
	t.Helper()
	routes := map[string]string{}
	for route, id := range describe(t).routes() {
		if method, path, _ := strings.Cut(route, " "); strings.HasPrefix(path, apiRoot+"/") {
			routes[id] = method + " " + strings.TrimPrefix(path, apiRoot)
		}
	}
	var listed []string
	for _, o := range contract {
		listed = append(listed, o.id)
	}
	if described := slices.Sorted(maps.Keys(routes)); !slices.Equal(described, slices.Sorted(slices.Values(listed))) {
		t.Fatalf("openapi.yaml has the operations %v, the matrix %v", described, listed)
	}
	return routes
}

// actor is a subject that makes calls.
type actor struct {
	subject
	call func(method, path, body string) answer
}

// callerAt returns an account of the given type and level.
func (w *world) callerAt(kind policy.AccountType, level policy.Level) actor {
	w.t.Helper()
	if !kind.Service() {
		id := []string{unprivileged, viewer, editor, admin}[level]
		return actor{subject{kind, id}, func(method, path,
			body string) answer {
			return w.callAs(w.person(id), method, path, body)
		}}
	}
	c, headers := w.accountOf(kind)
	group := permissionGroups[slices.IndexFunc(permissionGroups,
		func(g permissionGroup) bool { return g.Level == level })].ID
	w.want(200, w.person(admin), "PUT", "/service-accounts/"+c.id+"/permission-groups",
		`{"permission_groups":["`+group+`"]}`)
	return actor{c, func(method, path, body string) answer { return w.callAs(headers, method, path, body) }}
}

// targetOf returns a new account of a type, or the existing one if a business has only one.
func (w *world) targetOf(kind policy.AccountType) subject {
	w.t.Helper()
	target, _ := w.accountOf(kind)
	return target
}

// accountOf creates an account of a type, in the way that its type requires, and returns the headers of its key.
func (w *world) accountOf(kind policy.AccountType) (subject, map[string][]string) {
	w.t.Helper()
	switch kind.Provisioned {
	case policy.ProvisionedByHand:
		id, _ := w.integrationAccount(`{"name":"By hand","account_type":"` + kind.Name + `"}`)
		w.want(201, w.person(admin), "POST", "/service-accounts/"+id+"/tokens/rotate", "") // so that a secondary exists
		return subject{kind, id}, stored(id, w.tokens(id)["primary"])
	case policy.ProvisionedByBusiness:
		w.want(200, w.headers, "GET", "/custom-objects", "") // the Code Account makes the first call
		id := column(w.want(200, w.person(admin), "GET", "/service-accounts?account_type="+kind.Name, ""), "id")[0]
		return subject{kind, id}, w.signed(id, kind.Name)
	}
	w.accounts++
	id := "plugin-" + strings.Repeat("x", w.accounts)
	headers := w.signed(id, kind.Name)
	w.want(200, headers, "GET", "/custom-objects", "") // its first call provisions it
	for range 2 {
		if kind.StoredKeys {
			w.want(201, w.person(admin), "POST", "/service-accounts/"+id+"/tokens/rotate", "")
		}
	}
	return subject{kind, id}, headers
}

// runMatrix makes all calls of one caller on one target and returns their number.
func (w *world) runMatrix(routes map[string]string, c actor, level policy.Level, target subject) (calls int) {
	w.t.Helper()
	account, err := accountStore{redis: w.redis}.find(w.t.Context(), testBusiness, target.id)
	must(w.t, err)
	record := text(w.want(201, w.person(unprivileged), "POST", "/records/deals", `{"fields":[]}`), "id")
	for _, o := range contract {
		method, path, _ := strings.Cut(routes[o.id], " ")
		switch {
		case account.Integration != nil:
			path = strings.ReplaceAll(path, "{integration}", account.Integration.ID)
		case strings.Contains(path, "{integration}"):
			continue // accounts of this type have none
		}
		if c.id == target.id && o.id == "archive_service_account" && target.kind.Archivable && level == policy.Remove {
			continue // it would archive the caller; archiving is tested on other targets
		}
		id := record
		if strings.HasPrefix(path, "/team") {
			id = target.id
		}
		path = strings.NewReplacer("{account}", target.id, "{object}", "deals", "{id}", id, "{key}", "AAAA").Replace(path)
		if path == "/timeline" {
			path += "?account=" + target.id
		}
		got := c.call(method, path, o.body)
		calls++
		status, code := 200, ""
		if o.missing {
			status = 404
		}
		switch {
		case o.byPath != nil && o.byPath(c.subject, target):
			status, code = 403, policy.CodeGuardrail
		case c.id == target.id && o.byTarget != nil && o.byTarget(c.subject, target): // known by the path
			status, code = 403, policy.CodeGuardrail
		case level < o.needs:
			status, code = 403, policy.CodeNotPermitted
		case o.byTarget != nil && o.byTarget(c.subject, target), o.byBody != nil && o.byBody(c.subject, target):
			status, code = 403, policy.CodeGuardrail
		}
		if got.status/100*100 != status/100*100 || status == 403 &&
			(got.status != 403 || got.body["code"] != code || text(got, "detail") == "") {
			w.t.Errorf("%s with %s, %s on %s: got %d %v, want %d %s", c.kind.Name, level, o.id, target.kind.Name, got.status,
				got.body, status, code)
		}
	}
	return calls
}

// TestNoSpellingOfAPathBypassesAGuardrail sends guarded calls in other spellings, as an account without
// permissions.
func TestNoSpellingOfAPathBypassesAGuardrail(t *testing.T) {
	w := start(t)
	id, _ := w.integrationAccount(`{"name":"Target"}`)
	for _, path := range []string{
		"/service-accounts/" + id, "/service-accounts/" + strings.ToUpper(id), "/Service-Accounts/" + id,
		"/%73ervice-accounts/" + id,
		"/service-accounts//" + id, "/service-accounts/./" + id, "/service-accounts/" + id + "/",
		"/service-accounts/" + id + "%2F",
		"/service-accounts%2F" + id, "/x/../service-accounts/" + id, "/service-accounts/x/..%2f" + id,
		"/service-accounts/" + id + ";v=1",
		"/service-accounts/" + id + "%3Fx", "/service-accounts/%20" + id, "//service-accounts/" + id,
		"/service-accounts/" + id + "%00",
		"/service-accounts/" + strings.Replace(id, "-", "%2d", 1),
		"/service-accounts/" + strings.Replace(id, "-", "%252d", 1),
	} {
		for _, method := range []string{"GET", "DELETE", "PATCH", "POST"} {
			got := w.callAs(w.person(unprivileged), method, path, `{"name":"x"}`)
			if got.status < 400 || strings.Contains(text(got, "email"), "@") {
				t.Errorf("%s %s: %d %v", method, path, got.status, got.body)
			}
		}
	}
	headers := w.person(unprivileged)
	for _, name := range []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"} {
		headers.Set(name, "DELETE")
	}
	w.callAs(headers, "POST", "/service-accounts/"+id+"?_method=DELETE", "_method=DELETE")
	headers.Set("X-Original-URL", "/api/service-accounts/"+id)
	w.callAs(headers, "GET", "/custom-objects", "")
	if got := w.want(200, w.person(admin), "GET", "/service-accounts/"+id, ""); got.body["archived_at"] != nil ||
		text(got, "name") != "Target" {
		t.Errorf("the account is %v", got.body)
	}
}

// TestACallerSeesOnlyItsOwnBusiness tries to read an account, its keys and its timeline from another business.
func TestACallerSeesOnlyItsOwnBusiness(t *testing.T) {
	w := start(t)
	id, headers := w.integrationAccount(`{"name":"Mine"}`)
	other := w.headersFor(w.mint(minter.Identity{AccountID: admin, AccountType: policy.Employee, BusinessID: "b2",
		ExecutionID: "e"}))
	for _, call := range []string{
		"GET /service-accounts/" + id, "PATCH /service-accounts/" + id, "DELETE /service-accounts/" + id,
		"GET /service-accounts/" + id + "/tokens",
		"POST /service-accounts/" + id + "/tokens/rotate", "GET /timeline?account=" + id, "GET /team/" + id,
	} {
		method, path, _ := strings.Cut(call, " ")
		w.refused(404, "not_found", "", other, method, path, `{"name":"x"}`)
	}
	headers.Set(minter.HeaderBusiness, "b2")
	w.refused(401, minter.CodeRevoked, "", headers, "GET", "/custom-objects", "")
	for _, row := range list(w.want(200, other, "GET", "/service-accounts", ""), "results") {
		if row["id"] == id {
			t.Error("another business can list the account")
		}
	}
}
