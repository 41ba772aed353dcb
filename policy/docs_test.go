package policy

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func readDocument(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// fence matches a fenced code block and its info string.
var fence = regexp.MustCompile("(?ms)^ *```(.+?)\n(.*?)^ *```$")

func TestSnippetsOfExtendingAreInTheFilesTheyName(t *testing.T) {
	checked := 0
	for _, block := range fence.FindAllStringSubmatch(readDocument(t, "extending.md"), -1) {
		language, file, _ := strings.Cut(block[1], " ")
		if language == "sh" || language == "diff" { // the tests of kizen-platform apply those
			continue
		}
		text, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			t.Errorf("a snippet names no readable file: %v", err)
			continue
		}
		if !strings.Contains(string(text), block[2]) {
			t.Errorf("%s does not contain\n%s", file, block[2])
		}
		checked++
	}
	if checked < 6 {
		t.Errorf("%d snippets were found", checked)
	}
}

func TestPolicyDocumentNamesEveryTypeGuardrailAndCode(t *testing.T) {
	text := readDocument(t, "policy.md")
	var names []string
	engine := forCalls(t)
	for _, r := range slices.Concat(engine.rules, engine.connections) {
		if strings.HasPrefix(r.id, "guardrail.") {
			names = append(names, r.id)
		}
	}
	for _, kind := range AccountTypes() {
		names = append(names, kind.Name)
	}
	for _, name := range append(names, CodeGuardrail, CodePolicy, CodeNotPermitted, CodePath, CodeFailed) {
		if !strings.Contains(text, "| `"+name+"` |") {
			t.Errorf("policy.md has no line for %s", name)
		}
	}
}

func TestRulesOfThePolicyDocumentDoWhatTheySay(t *testing.T) {
	var rules []string
	for _, block := range fence.FindAllStringSubmatch(readDocument(t, "policy.md"), -1) {
		if strings.HasPrefix(block[1], "cedar ") {
			rules = append(rules, block[2])
		}
	}
	const business = "00000000-0000-4000-8000-00000000b001"
	engine := forCalls(t, rules...)
	for call, want := range map[string]string{
		"GET /custom-objects": "only-records", "POST /records/deals": "only-records", "DELETE /records/deals/1": "no-deletes",
		"GET /business-config/export": "no-exports", "GET /team": "", "POST /api-keys": "guardrail.own_api_key",
	} {
		method, path, _ := strings.Cut(call, " ")
		got := principal(t, engine, Account{ID: code, Type: ServicePlugin, BusinessID: business}).Authorize(t.Context(),
			method, path)
		if got.Policy != want || got.Allowed != (want == "only-records") {
			t.Errorf("%s: got %+v, want %q", call, got, want)
		}
	}
}
