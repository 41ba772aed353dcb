package proxy

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
)

func TestNeverLeavesAPIRoot(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), nil)
	paths := attacks.EscapingPaths()
	for _, path := range paths {
		answer := rawExchange(t, p.addr, request(p, "GET", path, "\r\n"))
		want := "HTTP/1.1 400 Bad Request\r\n"
		if path[0] != '/' {
			want = "HTTP/1.1 403 Forbidden\r\n" // it is part of the capability's segment
		}
		if !strings.HasPrefix(answer, want) || !strings.Contains(answer, `"detail":"`) {
			t.Errorf("%q: %q", path, answer)
		}
	}
	if seen := api.seen(); len(seen) > 0 {
		t.Errorf("the api saw %q", seen)
	}
	if n := p.Stats()[BadPath]; n != uint64(len(paths)-1) {
		t.Errorf("counted %d refused paths of %d", n, len(paths)-1)
	}
}

func TestOnlyPathsAreTargets(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), nil)
	for _, line := range attacks.Targets() {
		line = strings.NewReplacer("CAP", p.base, "HOST", p.addr).Replace(line)
		answer := rawExchange(t, p.addr, line+" HTTP/1.1\r\nHost: "+p.addr+"\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
			t.Errorf("%q: %q", line, answer)
		}
	}
	if len(api.seen()) > 0 {
		t.Errorf("the api saw %q", api.seen())
	}
}

func TestHostMustBeOurs(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), nil)
	_, port, _ := strings.Cut(p.addr, ":")
	tests := map[string]string{
		p.addr: "204", "localhost:" + port: "204", "LOCALHOST:" + port: "204", "[::1]:" + port: "204",
		"sidecar:" + port:      "400",
		"evil.example:" + port: "400", "127.0.0.1:1": "400", "127.0.0.1": "400",
		"127.0.0.1.evil.example:" + port: "400", "10.0.0.1:" + port: "400", p.addr + "@evil.example": "400",
	}
	for _, host := range attacks.Hosts() {
		tests[host] = "400"
	}
	for host, status := range tests {
		answer := rawExchange(t, p.addr, "GET "+p.base+"/x HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 "+status) {
			t.Errorf("host %q: %q", host, answer)
		}
	}
}

func TestCallersWithoutCapabilityAllGetTheSameAnswer(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), nil)
	answers := map[string]bool{}
	for _, path := range []string{
		"/", "/x", "/healthz", "/metrics", "/" + p.capability[:42], "/" + p.capability + "x",
		"/" + strings.ToLower(p.capability) + "/x",
		"/" + strings.Repeat("A", 43) + "/custom-objects", "/" + p.capability[:42] + "%41/x", "/x/" + p.capability + "/x",
		"/x?" + p.capability,
	} {
		answers[rawExchange(t, p.addr, "GET "+path+" HTTP/1.1\r\nHost: "+p.addr+"\r\nConnection: close\r\n\r\n")] = true
	}
	if len(answers) != 1 {
		t.Errorf("answers differ: %v", answers)
	}
	for answer := range answers {
		if !strings.HasPrefix(answer, "HTTP/1.1 403 Forbidden\r\n") ||
			!strings.HasSuffix(answer, "{\"detail\":\"forbidden\",\"code\":\"forbidden\"}") {
			t.Errorf("answer %q", answer)
		}
	}
	if len(api.seen()) > 0 {
		t.Errorf("the api saw %q", api.seen())
	}
}

func TestCapabilityIsValidOnlyAtItsOwnProxy(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	var proxies []*Proxy
	for _, business := range []string{"business-a", "business-b"} {
		proxies = append(proxies, start(t, api.root(), func(c *Config) { c.BusinessID = business }))
	}
	client := newClient(t)
	for i, own := range proxies {
		other := proxies[1-i]
		if resp, _ := do(t, client, "GET", own.URL()+"/x", "", nil); resp.StatusCode != 204 {
			t.Fatalf("own proxy: %d", resp.StatusCode)
		}
		stolen := "http://" + other.addr + own.base + "/x" // the other proxy's port with our own capability
		if resp, body := do(t, client, "GET", stolen, "", nil); resp.StatusCode != 403 || strings.Contains(body, "business") {
			t.Errorf("the other's proxy: %d %s", resp.StatusCode, body)
		}
	}
	if got := []string{api.seen()[0].value("X-BUSINESS-ID"), api.seen()[1].value("X-BUSINESS-ID")}; len(api.seen()) != 2 ||
		got[0] != "business-a" || got[1] != "business-b" {
		t.Errorf("the api saw %q", got)
	}
}

func TestConnectionFieldCannotRemoveOurHeaders(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), nil)
	rawExchange(t, p.addr, request(p, "GET", "/x",
		"Connection: X-API-KEY, x-business-id, X-USER-ID, host, X-Gone\r\nX-Gone: 1\r\nX-Kept: 1\r\n\r\n"))
	r := api.seen()[0]
	for name, want := range map[string]string{
		"X-API-KEY": testKey, "X-BUSINESS-ID": "business-1", "X-USER-ID": "user-1", "Host": api.Addr().String(),
		"X-Kept": "1", "X-Gone": "", "Connection": "",
	} {
		if got := r.value(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestAnswerCarriesNoCredential(t *testing.T) {
	api := startRawAPI(t,
		answerWith("HTTP/1.1 200 Fine\r\nSet-Cookie: a=b\r\nset-cookie2: c\r\nX-API-KEY: "+testKey+"\r\nx_user_id: u\r\n"+
			"X-Debug: key="+testKey+";\r\nX-Kept: 1\r\nConnection: X-Hop\r\nX-Hop: 1\r\nTransfer-Encoding: chunked\r\n\r\n"+
			"2\r\nok\r\n0\r\nX-Trailer: 1\r\nX-Echo: "+testKey+"\r\nSet-Cookie: t=1\r\n\r\n"))
	p := start(t, api.root(), nil)
	answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n"))
	want := "HTTP/1.1 200 Fine\r\nX-Kept: 1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n"
	if answer != want {
		t.Errorf("answer %q, want %q", answer, want)
	}
}

type authorizerFunc func(method, path string) Decision

func (f authorizerFunc) Authorize(_ context.Context, method, path string) Decision {
	return f(method, path)
}

func TestDeniedCallNeverReachesTheAPI(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), func(c *Config) {
		c.Authorizer = authorizerFunc(func(method, path string) Decision {
			if method == "DELETE" || strings.HasPrefix(path, "/api-keys/new") {
				return Decision{Policy: "no-keys", Reason: "a service account cannot do this"}
			}
			return Decision{Allowed: true}
		})
	})
	client := newClient(t)
	for _, path := range []string{
		"/api-keys/new", "/api%2dkeys/new", "/api-keys%2Fnew", "/api-keys//new", "/./api-keys/new/", "/%61pi-keys/new",
		"/%2561pi-keys/new",
		"/api-keys;x=y/new", "/api-keys/new?x", "/x?_method=delete", "/x?a=b&%5Fmethod=del%65te", "/x?a;_METHOD=+DELETE",
		"/api-keys%5cnew", "/api-keys%5Cnew", `/api-keys\new`, "/api-keys%25%35%63new", "/api-keys\uff0fnew",
		"/api-keys%c0%afnew",
	} {
		resp, body := do(t, client, "GET", p.URL()+path, "", nil)
		var answer map[string]string
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 403 || answer["code"] != "guardrail" || answer["policy"] != "no-keys" ||
			answer["detail"] == "" {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if resp, _ := do(t, client, "POST", p.URL()+"/x", "", http.Header{"X-Http-Method-Override": {"Delete"}}); resp.StatusCode != 403 {
		t.Errorf("method override: %d", resp.StatusCode)
	}
	if len(api.seen()) > 0 {
		t.Errorf("the api saw %q", api.seen())
	}
	if resp, _ := do(t, client, "GET", p.URL()+"/api-keys", "", nil); resp.StatusCode != 204 {
		t.Errorf("allowed call: %d", resp.StatusCode)
	}
}
