package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
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

// TestPolicyExplainConnectDecidesOnEveryAddress: policy explain connect decides on each --address separately, and
// prints the rule, the reason and the code. Flags, the operator's file and the guardrails meet in the command.
func TestPolicyExplainConnectDecidesOnEveryAddress(t *testing.T) {
	rules := ruleFile(t, `@id("database") @reason("the warehouse") permit (principal in AccountType::"service_plugin", action == Action::"connect", resource)
		when { context.host == "db.example.com" && context.address.isInRange(ip("10.20.0.0/16")) && context.port == 5432 };`)
	for name, c := range map[string]struct {
		arguments []string
		want      string
	}{
		"a name": {[]string{"DB.example.com:5432", "--address", "10.20.0.1", "--address", "10.21.0.1", "--policy", rules,
			"--account-type", "service_plugin"},
			"allowed: connect DB.example.com:5432 at 10.20.0.1 over tcp\n  policy     database\n  reason     the warehouse\n" +
				"denied: connect DB.example.com:5432 at 10.21.0.1 over tcp\n  reason     the address is private, and no rule permits this connection\n  code       not_permitted\n"},
		"another account type": {[]string{"db.example.com:5432", "--address", "10.20.0.1", "--policy", rules},
			"denied: connect db.example.com:5432 at 10.20.0.1 over tcp\n  reason     the address is private, and no rule permits this connection\n  code       not_permitted\n"},
		"a guardrail": {[]string{"[::ffff:127.0.0.1]:6379", "--policy", rules},
			"denied: connect 127.0.0.1:6379 over tcp\n  policy     guardrail.loopback\n  reason     loopback addresses belong to the machine that runs the step\n  code       guardrail\n"},
		"a public address": {[]string{"8.8.8.8:53", "--transport", "udp"},
			"allowed: connect 8.8.8.8:53 over udp\n  policy     default.public_addresses\n  reason     the address is public, and no rule of the operator forbids it\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := policyRun(t, append([]string{"explain", "connect"}, c.arguments...)...)
			if err != nil || got != c.want {
				t.Errorf("got %v\n%s", err, got)
			}
		})
	}
	for _, arguments := range [][]string{{"db.example.com"}, {"db.example.com:0"}, {"db.example.com:http"},
		{"10.0.0.1:1", "--address", "x"}} {
		var usage *exit.Error
		if _, err := policyRun(t, append([]string{"explain", "connect"}, arguments...)...); !errors.As(err, &usage) {
			t.Errorf("%v: got %v", arguments, err)
		}
	}
}

// TestPolicySuggestWritesTheRulesThatAnAuditNeeds: rules suggested from an audit permit what the audit learned, and
// nothing else. The output of one command is the rule file of another.
func TestPolicySuggestWritesTheRulesThatAnAuditNeeds(t *testing.T) {
	audit := writeFile(t, t.TempDir(), "audit", `{"kind":"connection","account_type":"service_plugin","host":"db.example.com","address":"10.1.1.1","port":5432,"transport":"tcp","decision":"allow","policy":"learned"}
{"kind":"connection","account_type":"service_plugin","host":"db.example.com","address":"10.1.1.2","port":5432,"transport":"tcp","decision":"allow","policy":"learned"}
{"kind":"connection","account_type":"service_automation","address":"10.2.2.2","port":53,"transport":"udp","decision":"allow","policy":"learned"}
{"kind":"connection","account_type":"service_plugin","host":"example.com","address":"8.8.8.8","port":443,"transport":"tcp","decision":"allow","policy":"default.public_addresses"}
{"kind":"connection","account_type":"service_plugin","address":"127.0.0.1","port":1,"transport":"tcp","decision":"deny","policy":"guardrail.loopback"}
{"method":"GET","path":"/team","decision":"allow","policy":"learned"}
`)
	rules, err := policyRun(t, "suggest", audit)
	if err != nil || strings.Count(rules, "permit (") != 2 {
		t.Fatalf("got %v\n%s", err, rules)
	}
	file := ruleFile(t, rules)
	for arguments, want := range map[string]string{
		"db.example.com:5432 --address 10.9.9.9 --account-type service_plugin": "allowed",
		"10.2.2.2:53 --transport udp":                                          "allowed",
		"db.example.com:5432 --address 10.9.9.9":                               "denied", "10.2.2.2:53": "denied",
		"10.1.1.1:5432 --account-type service_plugin": "denied",
	} {
		got, err := policyRun(t, append([]string{"explain", "connect", "--policy", file}, strings.Fields(arguments)...)...)
		if err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %v, %s", arguments, err, got)
		}
	}
	if _, err := policyRun(t, "suggest", writeFile(t, t.TempDir(), "audit", "")); exit.Code(err) != exit.Nothing {
		t.Errorf("got %v", err)
	}
}

// TestNoSpellingOfADeniedCallLeavesTheProxy attacks the built proxy, whose rules permit everything, with every
// spelling of a guarded call. None may reach the API, and each is in the audit.
func TestNoSpellingOfADeniedCallLeavesTheProxy(t *testing.T) {
	api := newRecordingAPI(t)
	audit := filepath.Join(t.TempDir(), "audit")
	p := startProxy(t, "--api-root", api.root(), "--audit-file", audit, "--policy",
		ruleFile(t, `permit (principal, action, resource);`))
	through, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	denied, passed := 0, 0
	for _, s := range attacks.Spellings() {
		status, text := ask(t, through.Host, through.Path, s)
		if s.Passes {
			passed++
			name, _, _ := strings.Cut(s.Header, ":")
			calls := api.apiCalls()
			if len(calls) != passed || calls[passed-1].target != s.Path {
				t.Fatalf("%s: %d, the API got %v", s.Header, status, calls)
			}
			for field := range calls[passed-1].header {
				if strings.EqualFold(field, name) {
					t.Errorf("%s reached the API", s.Header)
				}
			}
			continue
		}
		denied++
		var body struct{ Detail, Code, Policy string }
		err := json.Unmarshal([]byte(text), &body)
		guarded := status == 403 && body.Code == "guardrail" && strings.HasPrefix(body.Policy, "guardrail.")
		malformed := status == 400 || status == 403 && body.Code == "malformed_path"
		malformed = malformed || status == 403 && body.Code == "forbidden" // it is part of the capability's segment
		if err != nil || body.Detail == "" || !guarded && !malformed {
			t.Errorf("%s %s %s %.80s: %d %s", s.Method, s.Path, s.Header, s.Body, status, text)
		}
	}
	if calls := api.apiCalls(); len(calls) != passed {
		t.Errorf("the API got %v", calls)
	}
	if code := p.Stop(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	lines, err := os.ReadFile(audit)
	if err != nil {
		t.Fatal(err)
	}
	audited := 0
	for text := range strings.Lines(string(lines)) {
		var line struct {
			Decision string
			Count    *int // of a line that stands for many refusals
		}
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatal(err)
		}
		switch {
		case line.Decision == "allow":
		case line.Count != nil:
			audited += *line.Count
		default:
			audited++
		}
	}
	if audited != denied {
		t.Errorf("%d calls were denied, %d of them are in the audit:\n%.3000s", denied, audited, lines)
	}
}

// TestALineBreakAndABackslashReachTheAPI: a name with line breaks and backslashes reaches the API unchanged, and a
// guarded call with both in its path stays guarded. Two HTTP clients of Python, the proxy and the policy meet.
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
	want := []string{"200", "200", "200", "200", "200", "guardrail", "guardrail", "guardrail", "guardrail", "guardrail",
		"guardrail"}
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
