package minter_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/jwx/v3/jwk"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/minter"
)

func TestJWKSIsServedForCaches(t *testing.T) {
	dir := t.TempDir()
	rotate(t, dir, time.Now())
	keys := load(t, dir)
	server := httptest.NewServer(minter.JWKSHandler(keys))
	defer server.Close()

	first := request(t, http.MethodGet, server.URL, nil)
	if got := first.Header.Get("Content-Type"); first.StatusCode != 200 || got != "application/jwk-set+json" {
		t.Errorf("GET: %d, %s", first.StatusCode, got)
	}
	if got := first.Header.Get("Cache-Control"); got != "public, max-age=300" {
		t.Errorf("Cache-Control: %s", got)
	}
	etag := http.Header{"If-None-Match": {first.Header.Get("ETag")}}
	// RFC 9110 section 13.1.2: any listed tag matches, weak or not, and so does an asterisk, but not a part of a tag.
	tag := first.Header.Get("ETag")
	for value, want := range map[string]int{
		tag: http.StatusNotModified, "W/" + tag: http.StatusNotModified, `"other", ` + tag: http.StatusNotModified,
		"*":       http.StatusNotModified,
		`"other"`: http.StatusOK, `"other` + tag[1:]: http.StatusOK,
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			if got := request(t, method, server.URL, http.Header{"If-None-Match": {value}}); got.StatusCode != want ||
				got.Header.Get("ETag") != tag {
				t.Errorf("%s with If-None-Match: %s: %d, ETag %s", method, value, got.StatusCode, got.Header.Get("ETag"))
			}
		}
	}
	rotate(t, dir, time.Now())
	if err := keys.Reload(); err != nil {
		t.Fatal(err)
	}
	if third := request(t, http.MethodGet, server.URL, etag); third.StatusCode != 200 {
		t.Errorf("GET with the ETag of before a rotation: %d", third.StatusCode)
	}
	if post := request(t, http.MethodPost, server.URL, nil); post.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", post.StatusCode)
	}
}

func TestJWKSSufficesForOtherLibraries(t *testing.T) {
	dir := t.TempDir()
	rotate(t, dir, time.Now())
	keys := load(t, dir)
	f := withKeys(t, keys, keys)
	server := httptest.NewServer(minter.JWKSHandler(keys))
	defer server.Close()
	token := f.mint(t, someone).Token.Reveal()

	t.Run("golang-jwt", func(t *testing.T) {
		set, err := jwk.Fetch(t.Context(), server.URL)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := jwt.Parse(token, func(token *jwt.Token) (any, error) {
			key, ok := set.LookupKeyID(token.Header["kid"].(string))
			if !ok {
				return nil, errors.New("no such key")
			}
			var public any
			err := jwk.Export(key, &public)
			return public, err
		})
		if err != nil || !parsed.Valid {
			t.Errorf("Parse = %v, %v", parsed, err)
		}
	})
	t.Run("PyJWT", func(t *testing.T) {
		python := redistest.RequirePython(t, "jwt", "cryptography")
		script := `
import sys, jwt
url, token = sys.argv[1:]
key = jwt.PyJWKClient(url).get_signing_key_from_jwt(token).key
print(jwt.decode(token, key, algorithms=["EdDSA"], audience="kizen-api", issuer="kizen-sidecar")["sub"])`
		output, err := exec.Command(python, "-c", script, server.URL, token).CombinedOutput()
		if err != nil || strings.TrimSpace(string(output)) != someone.AccountID {
			t.Errorf("%v: %s", err, output)
		}
	})
}

// request sends a request without a body and reads the answer whole.
func request(t testing.TB, method, url string, header http.Header) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		r.Header = header
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	response.Body = io.NopCloser(strings.NewReader(string(body)))
	return response
}

func credentials(key minter.Key) http.Header {
	return http.Header{
		http.CanonicalHeaderKey(minter.HeaderKey):      {key.Token.Reveal()},
		http.CanonicalHeaderKey(minter.HeaderBusiness): {key.Identity.BusinessID},
		http.CanonicalHeaderKey(minter.HeaderUser):     {key.Identity.AccountID},
	}
}

func TestVerifyEndpointAnswersWithTheIdentityOrAReason(t *testing.T) {
	redis := redistest.Start(t)
	f := onRedis(t, redis.URL())
	var failures []error
	handler := minter.VerifyHandler(f.verifier, func(_ context.Context, err error) { failures = append(failures, err) })
	key := f.mint(t, someone)
	call := func(change func(http.Header)) *http.Response {
		r := httptest.NewRequest(http.MethodGet, "/verify/any/path", nil)
		r.Header = credentials(key)
		change(r.Header)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w.Result()
	}

	answer := call(func(http.Header) {})
	for name, want := range map[string]string{
		"X-Kizen-Account": "account-1", "X-Kizen-Account-Type": "service_automation",
		"X-Kizen-Business": "business-1", "X-Kizen-Execution": "execution-1", "Cache-Control": "no-store",
	} {
		if got := answer.Header.Get(name); answer.StatusCode != 200 || got != want {
			t.Errorf("%d, %s: %q, want %q", answer.StatusCode, name, got, want)
		}
	}
	for name, row := range map[string]struct {
		change func(http.Header)
		code   string
	}{
		"no key":         {func(h http.Header) { h.Del(minter.HeaderKey) }, minter.CodeMissing},
		"empty key":      {func(h http.Header) { h.Set(minter.HeaderKey, "") }, minter.CodeMissing},
		"no business":    {func(h http.Header) { h.Del(minter.HeaderBusiness) }, minter.CodeMissing},
		"no user":        {func(h http.Header) { h.Del(minter.HeaderUser) }, minter.CodeMissing},
		"two keys":       {func(h http.Header) { h.Add(minter.HeaderKey, "other") }, minter.CodeMalformed},
		"two users":      {func(h http.Header) { h.Add(minter.HeaderUser, "other") }, minter.CodeMalformed},
		"other business": {func(h http.Header) { h.Set(minter.HeaderBusiness, "business-2") }, minter.CodeBusiness},
		"other user":     {func(h http.Header) { h.Set(minter.HeaderUser, "account-2") }, minter.CodeUser},
	} {
		answer := call(row.change)
		var body struct{ Error, Reason string }
		if err := json.NewDecoder(answer.Body).Decode(&body); err != nil {
			t.Fatal(err)
		}
		if answer.StatusCode != 401 || body.Error != row.code || body.Reason == "" ||
			answer.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: %d %+v, want 401 %s", name, answer.StatusCode, body, row.code)
		}
		if got := answer.Header.Get(minter.HeaderAccount); got != "" {
			t.Errorf("%s: a refusal names the account %q", name, got)
		}
	}
	redis.Stop()
	if answer := call(func(http.Header) {}); answer.StatusCode != 503 || len(failures) != 1 {
		t.Errorf("without redis: %d, %v", answer.StatusCode, failures)
	}
}

func TestVerifyEndpointGuardsAnAPIBehindNginx(t *testing.T) {
	v := newVault(t, embedded(t).URL())
	f := v.fixture
	authority := httptest.NewServer(minter.VerifyHandler(f.verifier, nil))
	defer authority.Close()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s as", r.URL)
		for _, name := range []string{"X-Kizen-Account", "X-Kizen-Account-Type", "X-Kizen-Business", "X-Kizen-Execution",
			"X-Api-Key"} {
			fmt.Fprint(w, " ", strings.Join(r.Header.Values(name), "+"))
		}
	}))
	defer api.Close()
	front := startNginx(t, authority.URL, api.URL)
	key := f.mint(t, someone)

	stored := v.create(t)
	storedCredentials := credentials(minter.Key{Token: stored.Token, Identity: stored.Identity})
	spoofed, spoofedStored := spoof(credentials(key)), spoof(storedCredentials)
	const someones, storeds = "/things?a=b as account-1 service_automation business-1 execution-1 ",
		"/things?a=b as account-7 service_integration business-1  "
	for name, row := range map[string]struct {
		header http.Header
		status int
		body   string
	}{
		"good key":                          {credentials(key), 200, someones},
		"good key and a made-up identity":   {spoofed, 200, someones},
		"stored key":                        {storedCredentials, 200, storeds},
		"stored key and a made-up identity": {spoofedStored, 200, storeds},
		"no key":                            {http.Header{}, 401, ""},
		"only a made-up identity":           {spoof(http.Header{}), 401, ""},
	} {
		answer := request(t, http.MethodGet, front+"/things?a=b", row.header)
		body, _ := io.ReadAll(answer.Body)
		if answer.StatusCode != row.status || row.body != "" && string(body) != row.body {
			t.Errorf("%s: %d %s, want %d %s", name, answer.StatusCode, body, row.status, row.body)
		}
	}
	if err := f.minter.Revoke(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if answer := request(t, http.MethodGet, front+"/things", credentials(key)); answer.StatusCode != 401 {
		t.Errorf("a revoked key: %d", answer.StatusCode)
	}
}

// spoof adds headers that only the verifier may set, and returns the header.
func spoof(header http.Header) http.Header {
	for _, name := range []string{minter.HeaderAccount, minter.HeaderAccountType, minter.HeaderVerifiedBusiness,
		minter.HeaderExecution} {
		header.Set(name, "root")
	}
	return header
}

// envoy asks authority about a request as Envoy's ext_authz filter does over HTTP with the path prefix /verify: with
// its method, its path after the prefix and no body. It returns the header of the forwarded request, or nil if the
// request is refused.
func envoy(t *testing.T, authority, method, path string, header http.Header) http.Header {
	t.Helper()
	check := header.Clone()
	check.Set("Content-Length", "0")
	verdict := request(t, method, authority+"/verify"+path, check)
	if verdict.StatusCode != http.StatusOK {
		return nil
	}
	onward := header.Clone()
	for name, values := range verdict.Header {
		if strings.HasPrefix(name, "X-Kizen-") { // allowed_upstream_headers: these replace
			onward[name] = values
		}
	}
	return onward
}

func TestVerifyEndpointGuardsAnAPIBehindEnvoy(t *testing.T) {
	v := newVault(t, embedded(t).URL())
	authority := httptest.NewServer(minter.VerifyHandler(v.verifier, nil))
	defer authority.Close()
	key, stored := v.mint(t, someone), v.create(t)
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} {
		for _, path := range []string{"", "/", "/api/things?a=b", "/a%2Fb//c/../d", "/.well-known/jwks.json"} {
			for name, row := range map[string]struct {
				header http.Header
				want   []string // the identity that is forwarded; nil: the request is refused
			}{
				"signed key": {spoof(credentials(key)), []string{"account-1", "service_automation", "business-1", "execution-1"}},
				"stored key": {spoof(credentials(minter.Key{Token: stored.Token, Identity: integration})),
					[]string{"account-7", "service_integration", "business-1", ""}},
				"no key":  {spoof(http.Header{}), nil},
				"cut key": {credentials(minter.Key{Token: minter.NewToken(key.Token.Reveal()[:40]), Identity: someone}), nil},
			} {
				onward := envoy(t, authority.URL, method, path, row.header)
				var got []string
				for _, header := range []string{minter.HeaderAccount, minter.HeaderAccountType, minter.HeaderVerifiedBusiness,
					minter.HeaderExecution} {
					if onward != nil {
						got = append(got, strings.Join(onward.Values(header), "+"))
					}
				}
				if fmt.Sprint(got) != fmt.Sprint(row.want) {
					t.Errorf("%s %q, %s: is forwarded as %v, want %v", method, path, name, got, row.want)
				}
			}
		}
	}
}

// startNginx starts an nginx as docs/keys.md configures it, in front of api and with authority for /verify, and returns
// its address.
func startNginx(t *testing.T, authority, api string) string {
	t.Helper()
	port := strconv.Itoa(redistest.FreePort(t))
	dir := t.TempDir()
	text, err := os.ReadFile("../docs/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	_, documented, found := strings.Cut(string(text), "```nginx\n")
	documented, _, _ = strings.Cut(documented, "```")
	documented = strings.NewReplacer("http://api:8000", api, "http://platform:8080/verify", authority).Replace(documented)
	if !found || !strings.Contains(documented, api) || !strings.Contains(documented, authority) {
		t.Fatalf("docs/keys.md shows no nginx configuration: %s", documented)
	}
	config := strings.NewReplacer("DIR", dir, "PORT", port).Replace(`
daemon off;
pid DIR/pid;
error_log stderr notice;
worker_processes 1;
events {}
http {
    access_log off;
    client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
    server {
        listen 127.0.0.1:PORT;
`) + documented + "}}"
	redistest.StartNginx(t, dir, config)
	return "http://127.0.0.1:" + port
}
