package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/alecthomas/kong"
)

// policyRun runs kizen-sidecar policy with arguments.
func policyRun(t *testing.T, arguments ...string) (string, error) {
	t.Helper()
	var line struct {
		Policy policyCommand `cmd:""`
	}
	parser, err := kong.New(&line)
	if err != nil {
		t.Fatal(err)
	}
	command, err := parser.Parse(append([]string{"policy"}, arguments...))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	command.BindTo(t.Context(), (*context.Context)(nil))
	err = command.Run(&app{streams: streams{stdout: &out}})
	return out.String(), err
}

func ruleFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules.cedar")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const noDeletes = `@id("no-deletes") @reason("nothing is deleted here")
forbid (principal, action == Action::"DELETE", resource);`

func TestPolicyExplainSaysByWhichRuleAndWhy(t *testing.T) {
	rules := ruleFile(t, noDeletes)
	for name, c := range map[string]struct {
		arguments []string
		want      string
	}{
		"guardrail": {[]string{"POST", "//API-keys/"},
			"denied: POST /api-keys\n  policy     guardrail.own_api_key\n  reason     a service account cannot create API keys for itself\n  operation  create_api_key\n  code       guardrail\n"},
		"allowed": {[]string{"get", "/custom-objects"},
			"allowed: GET /custom-objects\n  policy     default.calls\n  reason     no rule of the operator's limits this call\n"},
		"a rule of the operator's": {[]string{"DELETE", "/records/deals/1", "--policy", rules},
			"denied: DELETE /records/deals/1\n  policy     no-deletes\n  reason     nothing is deleted here\n  code       policy\n"},
		"a path that climbs": {[]string{"GET", "/a/../b"},
			"denied: GET /a/../b\n  reason     the path has no single reading, so nothing can be decided about it\n  code       malformed_path\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := policyRun(t, append([]string{"explain"}, c.arguments...)...)
			if err != nil || got != c.want {
				t.Errorf("got %v\n%s", err, got)
			}
		})
	}
}

func TestPolicyExplainPrintsOneJSONDocument(t *testing.T) {
	got, err := policyRun(t, "explain", "POST", "/business-config/import", "--account-type", "service_integration", "--json")
	var answer explanation
	if err := errors.Join(err, json.Unmarshal([]byte(got), &answer)); err != nil {
		t.Fatal(err)
	}
	if answer.Allowed || answer.Policy != "guardrail.import_business_config" || answer.Operations[0] != "import_business_config" {
		t.Errorf("got %+v", answer)
	}
}

func TestPolicyCheckCountsRulesAndRefusesBadOnes(t *testing.T) {
	got, err := policyRun(t, "check", ruleFile(t, noDeletes+`permit (principal, action, resource);`))
	if err != nil || !strings.HasPrefix(got, "2 rules of yours and 11 built in are valid") {
		t.Errorf("got %q, %v", got, err)
	}
	bad := ruleFile(t, "\n@id(\"x\") forbid (principal, action, resource) when { resource.size > 1 };")
	var usage usageError
	if _, err = policyRun(t, "check", bad); !errors.As(err, &usage) || !strings.Contains(err.Error(), bad+`:2:1: policy "x": `) {
		t.Errorf("got %v", err)
	}
}

func TestPolicyExplainRefusesAnUnknownAccountType(t *testing.T) {
	var usage usageError
	if _, err := policyRun(t, "explain", "GET", "/team", "--account-type", "robot"); !errors.As(err, &usage) {
		t.Errorf("got %v", err)
	}
}

// TestNoSpellingOfADeniedCallLeavesTheProxy attacks the built proxy, whose rules permit everything, with every spelling of a
// guarded call. None may reach the API, and each is in the audit.
func TestNoSpellingOfADeniedCallLeavesTheProxy(t *testing.T) {
	api := newRecordingAPI(t)
	audit := filepath.Join(t.TempDir(), "audit")
	p := startProxy(t, "--api-root", api.root(), "--audit-file", audit, "--policy", ruleFile(t, `permit (principal, action, resource);`))
	type attack struct{ method, path, header string }
	var attacks []attack
	for _, path := range []string{
		"/api-keys", "/api-keys/", "//api-keys", "/./api-keys", "/API-Keys", "/%61pi-keys", "/api%2Dkeys", "/%2561pi-keys",
		"/api-keys;v=1", "/api-keys?a=b", "/x/../api-keys", "/x/%2e%2e/api-keys", "/api-keys%2f", "/team/x/api-keys", "/%5Capi-keys",
		"/api-keys%0A", "/api%0D-keys", "/team%5Cx%5Capi-keys", `/team/x\api-keys`, "/team%5Cx%0A%5C/api-keys",
	} {
		attacks = append(attacks, attack{"POST", path, ""})
	}
	for _, header := range []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"} {
		attacks = append(attacks, attack{"GET", "/api-keys", header})
	}
	for _, parameter := range []string{"_method=POST", "%5Fmethod=post", "_METHOD=POST", "a=b&_method=POST", "x-http-method-override=POST"} {
		attacks = append(attacks, attack{"GET", "/api-keys?" + parameter, ""})
	}
	for _, a := range attacks {
		request, err := http.NewRequestWithContext(t.Context(), a.method, p.URL+a.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if a.header != "" {
			request.Header.Set(a.header, "POST")
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		var body struct{ Detail, Code, Policy string }
		err = json.NewDecoder(response.Body).Decode(&body)
		_ = response.Body.Close()
		guarded := response.StatusCode == 403 && body.Code == "guardrail" && body.Policy == "guardrail.own_api_key"
		malformed := response.StatusCode == 400 || response.StatusCode == 403 && body.Code == "malformed_path"
		if err != nil || body.Detail == "" || !guarded && !malformed {
			t.Errorf("%v: %d %+v %v", a, response.StatusCode, body, err)
		}
	}
	if calls := api.apiCalls(); len(calls) > 0 {
		t.Errorf("the API got %v", calls)
	}
	if code := p.Stop(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	lines, err := os.ReadFile(audit)
	if err != nil || strings.Count(string(lines), `"decision":"deny"`) != len(attacks) {
		t.Errorf("%d attacks, audit: %v\n%s", len(attacks), err, lines)
	}
}

// Names of sheets have line breaks and backslashes in them; with both in it, a guarded call stays guarded.
func TestALineBreakAndABackslashReachTheAPI(t *testing.T) {
	api := newRecordingAPI(t)
	paths := []string{"/values/Q1%0A2024!A1", "/values/a%5Cb", "/values/a%0D%0A%09b", "/values/Q1%0A2024", `/values/a\b`}
	var routes []route
	for _, path := range paths {
		routes = append(routes, route{Method: "POST", Path: path, Responses: []cannedResponse{{Status: 200, Text: "fine"}}})
	}
	api.expect(routes)
	const script = `
import json, os, urllib.error, urllib.request

def plain(path):
    try:
        with urllib.request.urlopen(os.environ["KIZEN_API_URL"] + path, data=b"") as response:
            return response.status
    except urllib.error.HTTPError as refused:
        return json.load(refused)["code"]

for path in ("/values/Q1\n2024!A1", "/values/a\\b", "/values/a%0D%0A%09b"):
    outputs.log(kizen.api.post(path).status_code)
for path in ("/values/Q1%0A2024", "/values/a\\b"):
    outputs.log(plain(path))
for path in ("/api-keys%0A", "/team\\x\\api-keys", "/team%5Cx%0A/api-keys"):
    outputs.log(kizen.api.post(path).json()["code"])
    outputs.log(plain(path))
`
	result := sidecar(t, script, nil, "run", "--script", "-", "--json", "--api-root", api.root())
	want := []string{"200", "200", "200", "200", "200", "guardrail", "guardrail", "guardrail", "guardrail", "guardrail", "guardrail"}
	var d document
	if err := json.Unmarshal([]byte(result.stdout), &d); err != nil || !slices.Equal(d.Logs, want) {
		t.Fatalf("%v\n%s\n%s", err, result.stdout, result.stderr)
	}
	var targets []string
	for _, c := range api.apiCalls() {
		targets = append(targets, c.target)
	}
	if !slices.Equal(targets, paths) {
		t.Errorf("the API got %q, want %q", targets, paths)
	}
}
