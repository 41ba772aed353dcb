package main

import (
	"fmt"
	"net/http"
	"testing"
)

// What the page and the reports show is tested in internal/e2e/page, in a browser.

// TestThePageNeedsItsFlagAndItsDataAToken: serve has a page only with --ui, data only for callers, and a strict content
// security policy. The flag, the callers and the page's handler are joined in serve.
func TestThePageNeedsItsFlagAndItsDataAToken(t *testing.T) {
	t.Parallel()
	get := func(url, token string) *http.Response {
		request, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response
	}
	if got := get(startServe(t, "--warm", "0").URL+"/ui/", "").StatusCode; got != http.StatusNotFound {
		t.Errorf("without --ui: %d", got)
	}
	dir := t.TempDir()
	token := writeFile(t, dir, "token", "a-token-of-the-tests")
	callers := writeFile(t, dir, "callers.yaml",
		fmt.Sprintf("- {name: tests, token_file: %q, business_id: b, user_id: u}\n", token))
	base := startServe(t, "--warm", "0", "--ui", "--callers", callers).URL
	if got := get(base+"/executions/x/record", "").StatusCode; got != http.StatusUnauthorized {
		t.Errorf("a record without a token: %d", got)
	}
	page := get(base+"/ui/", "") // it contains no data, and asks for a token
	policy := page.Header.Get("Content-Security-Policy")
	if want := "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'; frame-ancestors 'none'"; page.StatusCode != http.StatusOK || policy != want {
		t.Errorf("%d with the policy %q", page.StatusCode, policy)
	}
}

// TestNamesAndIDsWithMarkupAreRefused: run and serve refuse markup in each name and id that a caller supplies, before
// anything could show it.
func TestNamesAndIDsWithMarkupAreRefused(t *testing.T) {
	t.Parallel()
	for _, arguments := range [][]string{
		{"--business-id", "<img>"}, {"--user-id", "<img>"}, {"--input", "<img>=1"}, {"--declare-output", "<img>"},
	} {
		if got := sidecar(t, "pass", nil, append([]string{"run", "--script", "-"}, arguments...)...); got.code != exitUsage {
			t.Errorf("%v: exit code %d\n%s", arguments, got.code, got.stderr)
		}
	}
	s := startServe(t)
	for name, body := range map[string]step{
		"input":  script("pass").with("inputs", step{"<img>": step{"t": "s", "v": ""}}),
		"output": script("pass").with("output_types", step{"<img>": "s"}),
		"type":   script("pass").with("output_types", step{"x": "<img>"}), "id": script("pass").with("execution_id", "<img>"),
		"secret": script("pass").with("secrets", []string{"<img>"}),
	} {
		if got := s.ask("POST", "/executions", body); got.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
}
