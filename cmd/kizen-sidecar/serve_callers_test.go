package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

// caller is a client of serve over TLS.
type caller struct {
	client   *http.Client
	token    string
	business string // of the header
}

// newCaller trusts ca. If issuer is not nil, the caller presents a certificate of that authority.
func newCaller(t *testing.T, ca, issuer *redistest.Authority, certificate, token, business string) caller {
	t.Helper()
	pem, err := os.ReadFile(ca.File("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(pem)
	if certificate != "" {
		pair, err := tls.LoadX509KeyPair(issuer.File(certificate+".crt"), issuer.File(certificate+".key"))
		if err != nil {
			t.Fatal(err)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	return caller{client, token, business}
}

// run runs a step. If no response arrives, status is 0.
func (c caller) run(t *testing.T, url string, body step) (status int, answer string) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), "POST", url+"/api/coderunner/run", strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.business != "" {
		r.Header.Set("X-BUSINESS-ID", c.business)
		r.Header.Set("X-USER-ID", "u-of-header")
	}
	response, err := c.client.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(said)
}

// TestServeKnowsItsCallersByTokenOrCertificate: over real TLS, each caller acts only for the business that its token or
// certificate permits, as the API sees it. TLS, the list of callers, the key and the API meet.
func TestServeKnowsItsCallersByTokenOrCertificate(t *testing.T) {
	const trusted, acme = "token-of-the-platform", "token-of-acme-and-only-acme"
	ours, foreign := redistest.NewAuthority(t), redistest.NewAuthority(t)
	ours.Issue(t, "server", x509.ExtKeyUsageServerAuth)
	ours.Issue(t, "orchestrator", x509.ExtKeyUsageClientAuth)
	ours.Issue(t, "stranger", x509.ExtKeyUsageClientAuth)
	foreign.Issue(t, "orchestrator", x509.ExtKeyUsageClientAuth)
	dir := t.TempDir()
	list := writeFile(t, dir, "callers.yaml", fmt.Sprintf(`
- {name: platform, token_file: %q, trusted: true}
- {name: acme, token_file: %q, business_id: b-acme, user_id: u-acme}
- {name: mesh, certificate: orchestrator, trusted: true}
`, writeFile(t, dir, "trusted", trusted), writeFile(t, dir, "acme", acme)))
	api := newKeyedGateAPI(t)
	s := startServe(t, "--warm", "0", "--api-root", api.root(), "--callers", list, "--tls-cert", ours.File("server.crt"),
		"--tls-key", ours.File("server.key"), "--client-ca", ours.File("ca.crt"))
	if !strings.HasPrefix(s.URL, "https://") {
		t.Fatalf("it serves at %s", s.URL)
	}
	calls := script("kizen.api.get('/x')")
	for _, c := range []struct {
		name           string
		by             caller
		body           step
		status         int
		business, user string // that the API was called for
	}{
		{"no token or certificate", newCaller(t, ours, nil, "", "", "b-1"), calls, 401, "", ""},
		{"a wrong token", newCaller(t, ours, nil, "", trusted+"x", "b-1"), calls, 401, "", ""},
		{"a certificate that is not listed", newCaller(t, ours, ours, "stranger", "", "b-1"), calls, 401, "", ""},
		{"a certificate of a foreign authority", newCaller(t, ours, foreign, "orchestrator", "", "b-1"), calls, 0, "", ""},
		{"a trusted token", newCaller(t, ours, nil, "", trusted, "b-1"), calls, 200, "b-1", "u-of-header"},
		{"a trusted certificate", newCaller(t, ours, ours, "orchestrator", "", "b-2"), calls, 200, "b-2", "u-of-header"},
		{"a business's token", newCaller(t, ours, nil, "", acme, ""), calls, 200, "b-acme", "u-acme"},
		{"a business's token for another", newCaller(t, ours, nil, "", acme, "b-1"), calls, 403, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := len(api.businesses())
			status, answer := c.by.run(t, s.URL, c.body)
			if status != c.status {
				t.Errorf("%d %s", status, answer)
			}
			called := api.businesses()[before:]
			if want := c.business + "/" + c.user; c.status == 200 && (len(called) != 1 || called[0] != want) ||
				c.status != 200 && len(called) != 0 {
				t.Errorf("the API was called for %q, want %q", called, want)
			}
		})
	}
	if response, err := http.Get("http" + strings.TrimPrefix(s.URL, "https") + "/openapi.json"); err == nil {
		_ = response.Body.Close()
		if response.StatusCode == 200 {
			t.Error("it answers plain HTTP too")
		}
	}
	if log := s.Log.String(); strings.Contains(log, trusted) || strings.Contains(log, acme) {
		t.Error("the log contains a token")
	}
}

// TestServeWithoutCallersListensOnlyOnLoopback: without --callers, serve refuses an address that other machines can
// reach.
func TestServeWithoutCallersListensOnlyOnLoopback(t *testing.T) {
	got := sidecar(t, "", nil, "serve", "--listen", "0.0.0.0:0")
	if got.code != exitUsage || !strings.Contains(got.stderr, "--callers") {
		t.Errorf("%d %s", got.code, got.stderr)
	}
}

// TestServeAnswersRetryAfterIfNoSlotBecomesFree: while a real step occupies the only slot, another request gets 429
// with Retry-After after --queue-timeout.
func TestServeAnswersRetryAfterIfNoSlotBecomesFree(t *testing.T) {
	api := newGateAPI(t)
	s := startServe(t, "--warm", "0", "--api-root", api.root(), "--slots", "1", "--queue-timeout", "100ms")
	s.ask("POST", "/executions", gated(newMarker()).with("execution_id", "runs"))
	waitFor(t, func() bool { return api.waiting.Load() == 1 })
	got := s.ask("POST", "/api/coderunner/run", script("pass"))
	if got.status != 429 || got.header.Get("Retry-After") == "" ||
		!strings.Contains(got.body, "no slot became free in time") {
		t.Errorf("%d %v %s", got.status, got.header, got.body)
	}
}
