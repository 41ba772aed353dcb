package proxy

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
)

// TestALocationInsideTheRootStaysInside uses a table that the tests of the kizen module read too. The redirected
// request is GET https://app.example.com/api/records/1?q=/.. .
func TestALocationInsideTheRootStaysInside(t *testing.T) {
	text, err := os.ReadFile("testdata/locations.json")
	if err != nil {
		t.Fatal(err)
	}
	var table []struct{ Location, Local string }
	if err := json.Unmarshal(text, &table); err != nil || len(table) < 20 {
		t.Fatal(len(table), err)
	}
	p := start(t, "https://app.example.com/api", nil)
	x := exchange{c: &conn{p: p}, path: []byte("/records/1"), query: []byte("?q=/..")}
	x.c.req.Host = []byte("localhost:1234")
	for _, row := range table {
		want := strings.NewReplacer("{here}", "http://localhost:1234", "{base}", p.base).Replace(row.Local)
		if got := string(x.localLocation([]byte(row.Location))); got != want {
			t.Errorf("%q: %q, want %q", row.Location, got, want)
		}
	}
}

// A root without a path and a listener without a capability give the shortest possible paths.
func TestALocationBelowARootWithoutPath(t *testing.T) {
	p := &Proxy{origin: "https://app.example.com", addr: "127.0.0.1:1"}
	x := exchange{c: &conn{p: p}}
	here := "http://" + p.addr
	for given, want := range map[string]string{
		"/x":                         "/x",
		"x":                          "x",
		"https://app.example.com":    here + "/",
		"https://app.example.com?x":  here + "/?x",
		"https://app.example.com//x": here + "//x", // which the proxy refuses
		"/../..//x":                  "/../..//x",
	} {
		if got := string(x.localLocation([]byte(given))); got != want {
			t.Errorf("%q: %q, want %q", given, got, want)
		}
	}
}

// The kizen module shows the API's URLs. It asks for them with a header field that the API does not receive.
func TestClientCanRequestTheOriginalLocation(t *testing.T) {
	for _, location := range []string{"/api/x", "https://app.example.com/api/x", "//app.example.com/api/x", "x"} {
		api := startRawAPI(t, answerWith("HTTP/1.1 201 Created\r\nLocation: "+location+"\r\nContent-Length: 0\r\n\r\n"))
		p := start(t, api.root(), nil)
		resp, _ := do(t, newClient(t), "POST", p.URL()+"/jobs", "", http.Header{"X-Kizen-Location": {"as-is"}})
		if got := resp.Header.Get("Location"); got != location {
			t.Errorf("Location: %q, want %q", got, location)
		}
		if got := api.seen()[0].value("X-Kizen-Location"); got != "" {
			t.Errorf("the API got X-Kizen-Location: %q", got)
		}
	}
}

// No Location from an API may make a client send to another host a request that is meant for the API.
func FuzzLocation(f *testing.F) {
	for _, seed := range []string{"/api/x", "//h/api", "..//x", "https:/api", "/\\evil", "https://app.example.com/api//x",
		":", "?#", "\xff"} {
		f.Add(seed)
	}
	p := &Proxy{origin: "https://app.example.com", prefix: "/api", base: "/capability", addr: "127.0.0.1:1"}
	x := exchange{c: &conn{p: p}, path: []byte("/records/1")}
	f.Fuzz(func(t *testing.T, given string) {
		if given == "" || strings.ContainsAny(given, "\r\n") {
			return
		}
		if splitURL(given).String() != given {
			t.Fatalf("%q is not the sum of its parts", given)
		}
		got := string(x.localLocation([]byte(given)))
		wanted, inside := p.insideRoot(splitURL("https://app.example.com/api/records/1").resolve(splitURL(given)))
		reached := splitURL("http://127.0.0.1:1/capability/records/1").resolve(splitURL(got))
		local := reached.scheme == "http:" && reached.authority == "//127.0.0.1:1"
		if inside && (!local || reached.path != "/capability"+wanted) {
			t.Errorf("%q became %q, want %q behind the proxy", given, got, wanted)
		}
		if !inside && local {
			t.Errorf("%q became %q, which is the proxy's", given, got)
		}
	})
}
