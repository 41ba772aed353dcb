package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
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
	if err != nil || !strings.HasPrefix(got, "2 rules of yours and 10 built in are valid") {
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
