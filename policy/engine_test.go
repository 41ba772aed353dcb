package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cedar-policy/cedar-go"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
)

const (
	code        = "00000000-0000-4000-8000-00000000c0de"
	integration = "00000000-0000-4000-8000-0000000a11ce"
)

func accountOf(accountType string) Account {
	return Account{ID: code, Type: accountType, BusinessID: "b1"}
}

// ruleFiles writes each text to a file.
func ruleFiles(t testing.TB, rules ...string) (files []string) {
	t.Helper()
	for i, text := range rules {
		file := filepath.Join(t.TempDir(), fmt.Sprintf("rules%d.cedar", i))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

func forCalls(t testing.TB, rules ...string) *Engine {
	t.Helper()
	engine, err := ForCalls(ruleFiles(t, rules...)...)
	if err != nil {
		t.Fatal(err)
	}
	return engine
}

func principal(t testing.TB, e *Engine, a Account) *Principal {
	t.Helper()
	p, err := e.For(a)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestGuardrailsStopCallsOfServiceAccounts(t *testing.T) {
	engine := forCalls(t)
	for _, accountType := range AccountTypes() {
		p := principal(t, engine, accountOf(accountType.Name))
		for call, guardrail := range map[string]string{
			"POST /api-keys": "guardrail.own_api_key",
			"POST /team/" + integration + "/api-keys":              "guardrail.own_api_key",
			"POST /business-config/import":                         "guardrail.import_business_config",
			"POST /business-config/import/1/apply":                 "guardrail.import_business_config",
			"PATCH /business-config/import/1":                      "guardrail.import_business_config",
			"GET /business-config/import/history":                  "",
			"DELETE /business-config/import/1":                     "",
			"PATCH /team/" + integration + "/api-keys/1":           "guardrail.own_api_key",
			"DELETE /team/" + integration + "/api-keys/1":          "guardrail.delete_own_api_key",
			"GET /team/" + integration + "/api-keys/1":             "",
			"GET /business-config/export":                          "",
			"GET /custom-objects":                                  "",
			"POST /records/deals":                                  "",
			"POST /service-accounts/" + code + "/tokens/rotate":    "guardrail.own_token",
			"GET /service-accounts/" + integration + "/tokens":     "",
			"DELETE /service-accounts/" + integration:              "",
			"PUT /service-accounts/" + code + "/permission-groups": "guardrail.own_permissions",
			// Paths of single groups, which the API does not have today.
			"POST /service-accounts/" + code + "/permission-groups/1":         "guardrail.own_permissions",
			"DELETE /service-accounts/" + code + "/permission-groups/1":       "guardrail.own_permissions",
			"POST /service-accounts/" + integration + "/permission-groups/1":  "",
			"POST /service-accounts/" + code + "/tokens/rotate/now":           "guardrail.own_token",
			"POST /service-accounts/" + integration + "/tokens/rotate/now":    "",
			"GET /service-accounts/" + code + "/permission-groups":            "",
			"POST /service-accounts/" + code + "/permission-groups-of-a-team": "",
		} {
			method, path, _ := strings.Cut(call, " ")
			got := p.Authorize(t.Context(), method, path)
			if !accountType.Service() {
				if guardrail != "guardrail.own_permissions" {
					guardrail = ""
				}
			}
			if got.Allowed != (guardrail == "") || guardrail != "" &&
				(got.Policy != guardrail || got.Code != CodeGuardrail || got.Reason == "") {
				t.Errorf("%s: %s: got %+v, want %q", accountType.Name, call, got, guardrail)
			}
		}
	}
}

func TestEverySpellingOfAGuardedCallIsStopped(t *testing.T) {
	p := principal(t, forCalls(t), accountOf(ServiceAutomation))
	for _, method := range []string{"POST", "post", "PUT", "PROPFIND", "POST ", ""} {
		for _, path := range attacks.GuardedPaths() {
			if got := p.Authorize(t.Context(), method, path); got.Allowed {
				t.Errorf("%s %s is allowed by %s", method, path, got.Policy)
			}
		}
	}
	if got := p.Authorize(t.Context(), "GET", "/api-keys"); !got.Allowed {
		t.Errorf("reading is denied: %+v", got)
	}
}

// TestAGuardedCallIsFoundInEveryReadingOfItsPath: the guardrail must refuse the call; an ambiguous path is no reason.
func TestAGuardedCallIsFoundInEveryReadingOfItsPath(t *testing.T) {
	p := principal(t, forCalls(t), accountOf(ServiceAutomation))
	for _, reading := range attacks.Readings() {
		for _, method := range []string{"POST", "PUT", "PURGE"} {
			if got := p.Authorize(t.Context(), method, reading.Path); got.Allowed || got.Code != CodeGuardrail {
				t.Errorf("%s %s (%s): %+v", method, reading.Path, reading.By, got)
			}
		}
	}
	for _, path := range attacks.FreePaths() {
		if got := p.Authorize(t.Context(), "POST", path); !got.Allowed {
			t.Errorf("POST %s is denied: %+v", path, got)
		}
	}
}

func TestAnAccountIsFoundInEveryReadingOfItsPath(t *testing.T) {
	account := accountOf(ServiceIntegration)
	p := principal(t, forCalls(t), account)
	id := account.ID
	for _, path := range attacks.Names(id) {
		for call, guardrail := range map[string]string{
			"PUT /service-accounts/%s/permission-groups.json": "guardrail.own_permissions",
			"POST /service-accounts/%s/tokens/rotate/":        "guardrail.own_token",
		} {
			method, template, _ := strings.Cut(call, " ")
			if got := p.Authorize(t.Context(), method, fmt.Sprintf(template, path)); got.Policy != guardrail {
				t.Errorf("%s %s: %+v", method, fmt.Sprintf(template, path), got)
			}
		}
	}
}

// Names of sheets, folders and records have line breaks and backslashes in them.
func TestAPathMayContainALineBreakOrABackslash(t *testing.T) {
	p := principal(t, forCalls(t), accountOf(ServiceAutomation))
	for _, path := range []string{
		"/proxy/sheets/values/Q1%0A2024", "/proxy/sheets/values/Q1%0D%0A2024!A1:B2", "/files/a%5Cb", `/files/a\b`,
		"/files/a%255Cb", "/files/tab%09",
		"/values/api-keys%0A2", "/values/api-keys%5C", "/%0A/values", "/values/\u2028\u0085",
	} {
		if got := p.Authorize(t.Context(), "POST", path); !got.Allowed {
			t.Errorf("%s: %+v", path, got)
		}
	}
	permits := principal(t, forCalls(t, `permit (principal, action, resource) when { resource.path == "/files/ab" };`),
		accountOf(ServiceAutomation))
	forbids := principal(t, forCalls(t, `forbid (principal, action, resource) when { resource.path == "/files/ab" };`),
		accountOf(ServiceAutomation))
	for _, path := range []string{"/files/a%0Ab", "/files%5Cab", "/files%5Ca%09b", "/files/a%250Ab", "/files/a\u0085b"} {
		if got := permits.Authorize(t.Context(), "GET", path); got.Allowed {
			t.Errorf("%s is permitted although one of its spellings is not", path)
		}
		if got := forbids.Authorize(t.Context(), "GET", path); got.Allowed {
			t.Errorf("%s is allowed although one of its spellings is forbidden", path)
		}
	}
}

func TestNoRuleOfAFileOverridesAGuardrail(t *testing.T) {
	engine := forCalls(t, `permit (principal, action, resource);
		permit (principal, action in Action::"write", resource in Operation::"create_api_key");`)
	if got := principal(t, engine, accountOf(ServiceAutomation)).Authorize(t.Context(), "POST", "/api-keys"); got.Policy != "guardrail.own_api_key" {
		t.Errorf("got %+v", got)
	}
}

func TestRulesOfAFileAddForbidsAndPermits(t *testing.T) {
	const noDeletes = `@id("no-deletes") @reason("nothing is deleted here")
		forbid (principal, action == Action::"DELETE", resource) when { resource.path like "/records/*" };`
	const recordsOnly = `@id("records") permit (principal in AccountType::"service_automation", action, resource)
		when { resource.path like "/records/*" && principal in Business::"b1" };`
	for name, c := range map[string]struct {
		rules        []string
		account      Account
		method, path string
		allowed      bool
		policy, code string
	}{
		"a forbid stops what it names": {[]string{noDeletes}, accountOf(ServiceAutomation), "DELETE",
			"/records/deals/1", false, "no-deletes", CodePolicy},
		"with only a forbid the rest is allowed": {[]string{noDeletes}, accountOf(ServiceAutomation), "GET", "/team", true,
			"default.calls", ""},
		"a permit allows what it names": {[]string{recordsOnly}, accountOf(ServiceAutomation), "GET",
			"/Records/deals", true, "records", ""},
		"a permit leaves the rest denied": {[]string{recordsOnly}, accountOf(ServiceAutomation), "GET", "/team", false,
			"", CodeNotPermitted},
		"a permit is for its account type": {[]string{recordsOnly}, accountOf(ServicePlugin), "GET", "/records/deals",
			false, "", CodeNotPermitted},
		"a permit is for its business": {[]string{recordsOnly},
			Account{ID: "a", Type: ServiceAutomation, BusinessID: "b2"}, "GET", "/records/deals", false, "", CodeNotPermitted},
		"a forbid wins over a permit": {[]string{recordsOnly, noDeletes}, accountOf(ServiceAutomation), "DELETE",
			"/records/deals/1", false, "no-deletes", CodePolicy},
		"an unknown method is a write": {[]string{`forbid (principal, action in Action::"write", resource);`},
			accountOf(ServiceAutomation), "PURGE", "/team", false, "rules0.cedar:1", CodePolicy},
	} {
		t.Run(name, func(t *testing.T) {
			got := principal(t, forCalls(t, c.rules...), c.account).Authorize(t.Context(), c.method, c.path)
			if got.Allowed != c.allowed || got.Policy != c.policy || got.Code != c.code || got.Reason == "" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestAPolicyThatCannotBeEvaluatedDenies uses an overflow, which validation cannot detect: a failing forbid must not
// allow the call.
func TestAPolicyThatCannotBeEvaluatedDenies(t *testing.T) {
	for _, effect := range []string{"permit", "forbid"} {
		engine := forCalls(t, `@id("x") `+effect+` (principal, action, resource) when { principal.level - 9223372036854775807 - 2 > 0 };
			@id("all") permit (principal, action, resource);`)
		got := principal(t, engine, accountOf(ServiceAutomation)).Authorize(t.Context(), "GET", "/team")
		if got.Allowed || got.Code != CodeFailed || got.Policy != "x" || got.Reason == "" {
			t.Errorf("%s: got %+v", effect, got)
		}
	}
}

func TestABadFileIsRefusedByFileLineAndPolicy(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"syntax": {"permit (principal, action, resource);\npermit (oops);", "rules.cedar:2:13: "},
		"empty":  {"// nothing", "rules.cedar: it contains no policy"},
		"unknown attribute": {"\n@id(\"x\")\nforbid (principal, action, resource) when { resource.size > 1 };",
			`rules.cedar:2:1: policy "x": `},
		"wrong type": {`@id("x") forbid (principal, action, resource) when { resource.path > 1 };`,
			`policy "x": `},
		"attribute without has": {`@id("x") forbid (principal, action, resource) when { context.target.service };`,
			`policy "x": `},
		"unknown operation": {`@id("x") forbid (principal, action, resource in Operation::"create_apikey");`,
			`policy "x": `},
		"unknown operation in when": {`@id("x") forbid (principal, action, resource) when { resource in Operation::"create_apikey" };`, `policy "x": `},
		"unknown account type": {`@id("x") forbid (principal in AccountType::"service_robot", action, resource);`,
			`policy "x": `},
		"unknown action":      {`@id("x") forbid (principal, action == Action::"FETCH", resource);`, `policy "x": `},
		"unknown entity type": {`@id("x") forbid (principal is Robot, action, resource);`, `policy "x": `},
		"path in upper case":  {`@id("x") forbid (principal, action, resource) when { resource.path like "/Records/*" };`, `policy "x": no path can equal "/Records/`},
		"path encoded": {`@id("x") forbid (principal, action, resource) when { resource.path == "/a%20b" };`,
			`policy "x": no path can equal "/a%20b"`},
		"path with a slash too many": {`@id("x") forbid (principal, action, resource) when { resource.path == "/a//b" };`,
			`policy "x": no path can equal "/a//b"`},

		"path that ends in a slash": {`@id("x") forbid (principal, action, resource) when { resource.path like "/records/" };`, `no path can equal "/records/"`}, "id of a guardrail": {`@id("guardrail.own_api_key") permit (principal, action, resource);`, `policy "guardrail.own_api_key": the id is taken by guardrails.cedar:`},
		"reserved id": {`@id("permission.all") permit (principal, action, resource);`,
			`ids that begin with "permission." are reserved`},
		"id given twice": {"@id(\"x\") permit (principal, action, resource);\n@id(\"x\") permit (principal, action, resource);", `rules.cedar:2:1: policy "x": the id is taken by `},
		"unknown annotation": {`@id("x") @because("y") permit (principal, action, resource);`,
			`policy "x": unknown annotation @because`},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "rules.cedar")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := ForCalls(file)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), file) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestAllErrorsAreReportedAtOnce(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a.cedar": "permit (oops);",
		"b.cedar": "permit (principal, action, resource) when { resource.nothing };"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := ForCalls(dir, filepath.Join(dir, "missing.cedar"), t.TempDir())
	for _, want := range []string{"a.cedar:1:13", "b.cedar:1:1", "missing.cedar", "contains no *.cedar file"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %s", err, want)
		}
	}
}

func TestGuardrailsHaveAnIDAndAReason(t *testing.T) {
	engine := forCalls(t)
	for _, r := range engine.rules {
		if r.policy.Annotations()["id"] == "" || r.policy.Annotations()["reason"] == "" {
			t.Errorf("%s lacks an annotation", r.id)
		}
		if forbids := r.policy.Effect() == cedar.Forbid; forbids != strings.HasPrefix(r.id, "guardrail.") || !r.builtIn {
			t.Errorf("%s: forbid is %v, built in is %v", r.id, forbids, r.builtIn)
		}
	}
	if builtIn, own := engine.Count(); builtIn < 9 || own != 0 {
		t.Errorf("%d built in, %d own", builtIn, own)
	}
}

func TestNoAccountGrantsMoreThanItHas(t *testing.T) {
	engine, err := ForPlatform()
	if err != nil {
		t.Fatal(err)
	}
	for _, own := range Levels() {
		a := accountOf(Employee)
		a.Level = own
		p := principal(t, engine, a)
		for _, granted := range Levels() {
			got := p.Decide(Call{
				Method: "PUT", Path: "/service-accounts/" + integration + "/permission-groups", Grants: granted,
				Target: &Account{ID: integration, Type: ServiceIntegration, BusinessID: "b1"},
			})
			if want := own >= Write && granted <= own; got.Allowed != want {
				t.Errorf("%s grants %s: %+v", own, granted, got)
			}
		}
	}
}

// TestPlatformDecidesByLevelTypeAndTarget walks every type and level over every managed operation.
func TestPlatformDecidesByLevelTypeAndTarget(t *testing.T) {
	engine, err := ForPlatform()
	if err != nil {
		t.Fatal(err)
	}
	operations := []struct {
		call    string
		needs   Level
		changes []string
		spared  func(AccountType) bool // the guardrail does not apply to the target
	}{
		{"GET /service-accounts/" + integration, Read, nil, nil},
		{"GET /service-accounts/" + integration + "/tokens", Read, nil, func(t AccountType) bool { return t.StoredKeys }},
		{"POST /service-accounts", Write, nil, func(t AccountType) bool { return t.Creatable }},
		{"PATCH /service-accounts/" + integration, Write, []string{"name"}, func(t AccountType) bool { return t.Renamable }},
		{"PATCH /service-accounts/" + integration, Write, []string{"api_name"},
			func(t AccountType) bool { return t.Renamable }},
		{"PATCH /service-accounts/" + integration, Write, []string{"description"}, nil},
		{"PATCH /service-accounts/" + integration, Write, []string{"description", "status"},
			func(AccountType) bool { return false }},
		{"POST /service-accounts/" + integration + "/tokens/rotate", Write, nil,
			func(t AccountType) bool { return t.StoredKeys }},
		{"DELETE /service-accounts/" + integration + "/tokens/secondary", Write, nil,
			func(t AccountType) bool { return t.StoredKeys }},
		{"PUT /service-accounts/" + integration + "/permission-groups", Write, nil, nil},
		{"DELETE /service-accounts/" + integration, Remove, nil, func(t AccountType) bool { return t.Archivable }},
		{"GET /business-config/export", None, nil, nil},
		{"GET /custom-objects", None, nil, nil},
	}
	for _, caller := range AccountTypes() {
		for _, target := range AccountTypes() {
			for _, level := range Levels() {
				a := accountOf(caller.Name)
				a.Level = level
				p := principal(t, engine, a)
				for _, o := range operations {
					method, path, _ := strings.Cut(o.call, " ")
					got := p.Decide(Call{Method: method, Path: path, Changes: o.changes,
						Target: &Account{ID: integration, Type: target.Name, BusinessID: "b1"}})
					guarded := o.spared != nil && !o.spared(target)
					if want := level >= o.needs && !guarded; got.Allowed != want {
						t.Errorf("%s at %s on %s: %s: %+v", caller.Name, level, target.Name, o.call, got)
					}
					if guarded && got.Code != CodeGuardrail || !guarded && level < o.needs && got.Code != CodeNotPermitted {
						t.Errorf("%s at %s on %s: %s: code %s", caller.Name, level, target.Name, o.call, got.Code)
					}
				}
			}
		}
	}
}

func TestForRejectsAnUnknownAccountType(t *testing.T) {
	if _, err := forCalls(t).For(accountOf("service_robot")); err == nil ||
		!strings.Contains(err.Error(), "service_automation") {
		t.Errorf("got %v", err)
	}
}

func TestServiceAccountsAreNeitherSeatsNorListed(t *testing.T) {
	for _, a := range AccountTypes() {
		if a.Service() && (a.BillingSeat || a.EmployeeList || a.Typeahead || !a.Timeline) {
			t.Errorf("%+v", a)
		}
		if a.Service() == (a.Name == Employee) || a.Title == "" || a.Provisioned == "" || !a.SignedKeys && !a.StoredKeys {
			t.Errorf("%+v", a)
		}
	}
}

func TestInvalidOperationsAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"- operation: a\n- operation: a":                       "listed twice",
		"- operation: a\n  in: [b]":                            `"b" is referenced but not listed`,
		"- operation: a\n  calls: [FETCH /x]":                  "has no method",
		"- operation: a\n  calls: [\"GET /\"]":                 "has no path",
		"- operation: a\n  calls: [\"GET /{x}\"]":              "has no path",
		"- operation: a\n  calls: [GET /X]":                    "not in lower case",
		"- operation: a\n  paths: [GET /x]":                    "paths",
		"- operation: a\n  in: [b]\n- operation: b\n  in: [a]": "",
	} {
		_, err := loadOperations([]byte(text))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

// FuzzCanonical checks the two properties that policies rely on: the result is a fixed point, and no segment of it
// climbs.
func FuzzCanonical(f *testing.F) {
	for _, seed := range []string{"/api-keys", "/%2561pi-keys", "//A/./b;c/", "/x/../y", "/a%2fb", "", "/\xff",
		"/%c0%ae%c0%ae/", "/a%0Ab", "/\x01.", "/ \x01 .", `/a\..\b`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		canonical, err := Canonical(path)
		if err != nil {
			return
		}
		again, err := Canonical(canonical)
		if err != nil || again != canonical {
			t.Errorf("%q gives %q, which gives %q, %v", path, canonical, again, err)
		}
		for segment := range strings.SplitSeq(canonical[1:], "/") {
			if segment == ".." || segment == "." || segment == "" && canonical != "/" || strings.ToLower(segment) != segment {
				t.Errorf("%q gives %q", path, canonical)
			}
		}
	})
}

// BenchmarkDecide compares decisions with 100 policies to decisions with only the guardrails, if all policies could
// apply to the caller and the method, and if one in ten could.
func BenchmarkDecide(b *testing.B) {
	const wanted = 100
	builtIn, _ := forCalls(b).Count()
	rules := func(accountType func(i int) string) string {
		var text strings.Builder
		for i := range wanted - builtIn {
			fmt.Fprintf(&text, `@id("rule-%d") forbid (principal in AccountType::%q, action == Action::"DELETE", resource)
				when { resource.path like "/records/object%d/*" };`+"\n", i, accountType(i), i)
		}
		return text.String()
	}
	for _, c := range []struct {
		name   string
		engine *Engine
	}{
		{"guardrails", forCalls(b)},
		{"100 policies/all could apply", forCalls(b, rules(func(int) string { return ServiceIntegration }))},
		{"100 policies/one in ten could", forCalls(b, rules(func(i int) string {
			if i%10 == 0 {
				return ServiceIntegration
			}
			return ServicePlugin
		}))},
	} {
		p := principal(b, c.engine, accountOf(ServiceIntegration))
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if !p.Authorize(b.Context(), "DELETE", "/records/deals/7d444840-9dc0-11d1-b245-5ffdce74fad2").Allowed {
					b.Fatal("denied")
				}
			}
			builtIn, own := c.engine.Count()
			b.ReportMetric(float64(builtIn+own), "policies")
		})
	}
}
