package proxy

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// bodiesWithAMethod are bodies, by content type, in which a framework finds another method.
var bodiesWithAMethod = []struct{ content, body string }{
	{"application/x-www-form-urlencoded", "a=b&_method=DELETE&c=d"},
	{"application/x-www-form-urlencoded; charset=UTF-8", "_method=DELETE"},
	{"application/x-www-form-urlencoded", "a=b&%5fm%65thod=DELETE"},
	{"application/x-www-form-urlencoded", "a=b&.method=DELETE"},
	{"application/x-www-form-urlencoded", "X-HTTP-Method-Override=DELETE"},
	{"", "_method=DELETE"},
	{"multipart/form-data; boundary=b",
		"--b\r\nContent-Disposition: form-data; name=\"_method\"\r\n\r\nDELETE\r\n--b--\r\n"},
	{"multipart/form-data; boundary=b", "--b\r\ncontent-disposition:form-data;name=_method\r\n\r\nDELETE\r\n--b--\r\n"},
	{"application/json", `{"a": 1, "_method": "DELETE"}`},
	{"application/vnd.api+json", `{"\u005f\u006Dethod": "DELETE"}`},
	{"Application/JSON; charset=utf-16", "{}"},
}

// bodiesWithoutAMethod are bodies in which no framework finds one.
var bodiesWithoutAMethod = []struct{ content, body string }{
	{"application/x-www-form-urlencoded", "payment_method=card&x_method=1&_methods=2&user%5b_methode%5d=3&method=4"},
	{"application/json", `{"payment_method": "card", "method": "DELETE", "notes": "method-override", "x": "\"\\u005"}`},
	{"multipart/form-data; boundary=b",
		"--b\r\nContent-Disposition: form-data; name=\"file\"; filename*=utf-8''_methods.txt\r\n\r\n%5fmethod\r\n--b--\r\n"},
	{"application/octet-stream", "_method=DELETE"},
	{"text/plain", "_method=DELETE"},
}

func scannerFor(t *testing.T, content string) *nameScanner {
	t.Helper()
	req := &h1.Request{Method: []byte("POST"), Head: h1.Head{Framing: h1.Length}}
	if content != "" {
		req.Fields = []h1.Field{{Name: []byte("Content-Type"), Value: []byte(content)}}
	}
	scanner, hidden := newNameScanner(req)
	if hidden != strings.Contains(content, "utf-16") {
		t.Errorf("%q is hidden: %v", content, hidden)
	}
	return scanner
}

func TestOverriddenMethodIsFoundAtEveryCutOfABody(t *testing.T) {
	for _, c := range bodiesWithAMethod {
		if strings.Contains(c.content, "utf-16") {
			continue
		}
		for cut := range len(c.body) {
			s := scannerFor(t, c.content)
			if !s.finds([]byte(c.body[:cut])) && !s.finds([]byte(c.body[cut:]+"\r\n")) {
				t.Errorf("not found in %q, cut at %d", c.body, cut)
			}
		}
	}
	for _, c := range bodiesWithoutAMethod {
		if s := scannerFor(t, c.content); s != nil && s.finds([]byte(c.body)) {
			t.Errorf("found in %s %q", c.content, c.body)
		}
	}
}

func TestBodyCannotOverrideAPOSTWithADeniedMethod(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		var mu sync.Mutex
		var whole []string
		arrived := func() []string {
			mu.Lock()
			defer mu.Unlock()
			all := whole
			whole = nil
			return all
		}
		root, ca := tlsAPI(t, h2, func(w http.ResponseWriter, r *http.Request) {
			if body, err := io.ReadAll(r.Body); err == nil {
				mu.Lock()
				whole = append(whole, fmt.Sprintf("%s %d", r.URL.Path, len(body)))
				mu.Unlock()
			}
			w.WriteHeader(http.StatusNoContent)
		})
		p := start(t, root, func(c *Config) {
			c.APICA = ca
			c.Authorizer = authorizerFunc(func(method, path string) Decision {
				if method == "DELETE" && path == "/records/1" {
					return Decision{Policy: "keep", Reason: "records are kept"}
				}
				return Decision{Allowed: true}
			})
		})
		client := newClient(t)
		post := func(path, content, body string) (status int, answer string) {
			header := http.Header{}
			if content != "" {
				header.Set("Content-Type", content)
			}
			response, answer := do(t, client, "POST", p.URL()+path, body, header)
			return response.StatusCode, answer
		}
		for _, c := range bodiesWithAMethod {
			for _, body := range []string{c.body, strings.Repeat(" ", 300_000) + c.body} {
				arrived()
				status, answer := post("/records/1", c.content, body)
				if whole := arrived(); status != 403 || !strings.Contains(answer, "records are kept; the body") || len(whole) > 0 {
					t.Errorf("h2 %v: %s %.80q of %d bytes: %d %s; the api got %q", h2, c.content, c.body, len(body), status, answer,
						whole)
				}
				if status, answer := post("/records/2", c.content, body); status != 204 {
					t.Errorf("h2 %v: %s %.80q, with every method allowed: %d %s", h2, c.content, c.body, status, answer)
				}
			}
		}
		for _, c := range bodiesWithoutAMethod {
			if status, answer := post("/records/1", c.content, c.body); status != 204 {
				t.Errorf("h2 %v: %s %q: %d %s", h2, c.content, c.body, status, answer)
			}
		}
		packed := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Content-Encoding": {"gzip"}}
		if response, _ := do(t, client, "POST", p.URL()+"/records/1", "cannot be read here", packed); response.StatusCode != 403 {
			t.Errorf("h2 %v: a compressed form: %d", h2, response.StatusCode)
		}
		if response, _ := do(t, client, "PUT", p.URL()+"/records/1", "_method=DELETE", nil); response.StatusCode != 204 {
			t.Errorf("h2 %v: a PUT, whose method no framework overrides: %d", h2, response.StatusCode)
		}
	}
}

func TestALongBodyIsSearchedOnlyWhereItsMethodMatters(t *testing.T) {
	body := strings.Repeat(" ", 3*searchedUnasked)
	for _, denied := range []bool{false, true} {
		questions := 0
		s := scanned{scanner: &nameScanner{escape: '%'}, deny: func() *refusal {
			questions++
			if denied {
				return &refusal{outcome: Denied}
			}
			return nil
		}}
		for piece := range slices.Chunk([]byte(body), 1000) {
			if r := s.check(piece); r != nil {
				t.Fatalf("refused before a method was found: %+v", r)
			}
		}
		if questions != 1 || (s.scanner != nil) != denied {
			t.Errorf("denied %v: asked %d times, searches on: %v", denied, questions, s.scanner != nil)
		}
		if r := s.check([]byte("&_method=DELETE&")); (r != nil) != denied {
			t.Errorf("denied %v: got %+v", denied, r)
		}
	}
}

func BenchmarkNameScanner(b *testing.B) {
	body := []byte(strings.Repeat(`{"name": "value", "number": 1234567, "text": "some words and some more"},`, 14000))
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if (&nameScanner{escape: '\\'}).finds(body) {
			b.Fatal("found")
		}
	}
}

func TestEveryContentTypeFieldOfARequestCounts(t *testing.T) {
	for _, head := range []string{
		"Content-Type: text/plain\r\nContent-Type: application/x-www-form-urlencoded",
		"Content-Type: application/x-www-form-urlencoded\r\nContent-Type: text/plain",
		"Content-Type: text/plain\r\nContent_Type: application/x-www-form-urlencoded",
	} {
		var fields []h1.Field
		for line := range strings.SplitSeq(head, "\r\n") {
			name, value, _ := strings.Cut(line, ": ")
			fields = append(fields, h1.Field{Name: []byte(name), Value: []byte(value)})
		}
		scanner, hidden := newNameScanner(&h1.Request{Method: []byte("POST"),
			Head: h1.Head{Framing: h1.Chunked, Fields: fields}})
		if scanner == nil || !scanner.finds([]byte("_method=DELETE")) || hidden {
			t.Errorf("the method is not found in a body with %q", head)
		}
	}
	types := []h1.Field{{Name: []byte("Content-Type"),
		Value: []byte("application/json, application/x-www-form-urlencoded")}}
	if _, hidden := newNameScanner(&h1.Request{Method: []byte("POST"), Head: h1.Head{Framing: h1.Chunked, Fields: types}}); !hidden {
		t.Error("a body that is both JSON and a form counts as searched")
	}
}
