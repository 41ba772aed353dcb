package hosts

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
)

func TestOnlyOwnNamesAndAddressesAreAllowed(t *testing.T) {
	names := New("Sidecar.kizen.svc", "*.example.com")
	for host, want := range map[string]bool{
		"127.0.0.1:8378": true, "127.0.0.1": true, "[::1]:8378": true, "[::1]": true, "10.1.2.3:80": true,
		"localhost": true, "LOCALHOST:1": true, "sidecar.kizen.svc:8378": true, "SIDECAR.KIZEN.SVC": true,
		"a.example.com": true, "example.com": false, "a.b.example.com": false,
	} {
		if got := names.Allow(host); got != want {
			t.Errorf("Allow(%q) = %v", host, got)
		}
	}
	for _, host := range attacks.Hosts() {
		if names.Allow(host) {
			t.Errorf("%q is allowed", host)
		}
	}
	if (Names{}).Allow("sidecar.kizen.svc") || !(Names{}).Allow("localhost") {
		t.Error("the zero value does not allow localhost and IP addresses")
	}
}

func TestAForeignNameIsAnsweredWithoutTheHandler(t *testing.T) {
	called := 0
	handler := New().Require(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called++ }))
	for host, status := range map[string]int{"127.0.0.1:1": 200, "evil\x1b[31m.example" + strings.Repeat("x", 500): 421} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil)
		r.Host = host
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != status || strings.Contains(w.Body.String(), "\x1b") || w.Body.Len() > 300 {
			t.Errorf("%q: %d %q", host, w.Code, w.Body)
		}
	}
	if called != 1 {
		t.Errorf("the handler was called %d times", called)
	}
}

func TestLoopbackIsRecognised(t *testing.T) {
	for host, want := range map[string]bool{"127.0.0.1:80": true, "[::1]:80": true, "localhost": true,
		"10.0.0.1:80": false, "": false, ":80": false} {
		if got := IsLoopback(host); got != want {
			t.Errorf("IsLoopback(%q) = %v", host, got)
		}
	}
}
