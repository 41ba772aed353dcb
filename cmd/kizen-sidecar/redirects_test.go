package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/redacted"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

// redirectingStep calls each of the given paths, once through kizen.api and once with plain HTTP clients. It logs the
// URLs that the step sees, and the final responses of the others.
const redirectingStep = `
import json, os, urllib.request
import requests
for path in json.loads(inputs.paths):
    r = kizen.api.get(path)
    seen = [r.url, r.request.url, r.headers.get("Location", ""), *(h.url for h in r.history), *(h.headers["Location"] for h in r.history)]
    outputs.log(json.dumps([path, r.status_code, r.text.strip(), [h.status_code for h in r.history], seen]))
    plain = requests.get(os.environ["KIZEN_API_URL"] + path)
    with urllib.request.urlopen(os.environ["KIZEN_API_URL"] + path) as opened:
        outputs.log(json.dumps([path, plain.status_code, plain.text.strip(), opened.status, opened.read().decode().strip()]))
`

// witness records, between the sidecar and a real server, whether each request had a key.
type witness struct {
	mu      sync.Mutex
	targets []string
	without []string // requests that bypassed the proxy
}

func (w *witness) watch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.targets = append(w.targets, r.RequestURI)
		if r.Header.Get("X-API-KEY") == "" || r.Header.Get("X-Kizen-Location") != "" {
			w.without = append(w.without, r.RequestURI)
		}
		w.mu.Unlock()
		next.ServeHTTP(rw, r)
	})
}

// TestRedirectsOfRealServers runs the built binary against servers that redirect in different ways, on both networks.
func TestRedirectsOfRealServers(t *testing.T) {
	t.Parallel()
	servers := map[string]struct {
		start func(*testing.T) (root string, seen *witness)
		paths []string // each leads to the response "there"
	}{
		"net/http": {startRedirectingMux, []string{
			"/tree", "/relative/1", "/absolute", "/other-host-form", "/fragment", "/query", "/encoded", "/301", "/302", "/303",
			"/307", "/308",
		}},
		"Django": {startSlashAppender, []string{"/custom-objects", "/custom-objects?page=2", "/named"}},
		"nginx":  {startRedirectingNginx, []string{"/folder", "/moved", "/rewritten"}},
	}
	for name, server := range servers {
		for _, network := range []string{"host", "kizen-only"} {
			t.Run(name+" "+network, func(t *testing.T) {
				root, seen := server.start(t)
				paths, _ := json.Marshal(server.paths)
				got := sidecar(t, redirectingStep, nil, "run", "--script", "-", "--json", "--network", network, "--api-root", root,
					"--input", "paths="+string(paths)+":string")
				var result document
				if err := json.Unmarshal([]byte(got.stdout), &result); err != nil || got.code != exitOK {
					t.Fatalf("%v\n%s\n%s", err, got.stdout, got.stderr)
				}
				checkRedirects(t, root, server.paths, result.Logs)
				for _, request := range result.HTTPRequests.Requests {
					location := request.ResponseHeaders["Location"]
					if !strings.HasPrefix(request.URL, root) || strings.Contains(location, redacted.Mark) {
						t.Errorf("the record has the URL %q with the Location %q", request.URL, location)
					}
				}
				if seen != nil && len(seen.without) > 0 {
					t.Errorf("these requests bypassed the proxy: %q", seen.without)
				}
			})
		}
	}
}

func checkRedirects(t *testing.T, root string, paths, logs []string) {
	t.Helper()
	if len(logs) != 2*len(paths) {
		t.Fatalf("%d logs for %d paths: %q", len(logs), len(paths), logs)
	}
	host, _, _ := strings.Cut(strings.TrimPrefix(root, "http://"), "/")
	for i, path := range paths {
		var asked, text string
		var status int
		var history []int
		var seen []string
		if err := json.Unmarshal([]byte(logs[2*i]), &[]any{&asked, &status, &text, &history, &seen}); err != nil {
			t.Fatal(err)
		}
		if asked != path || status != 200 || text != "there" || len(history) == 0 {
			t.Errorf("kizen.api: %s", logs[2*i])
		}
		for _, url := range seen {
			if at, ok := strings.CutPrefix(url, "http://"); ok && !strings.HasPrefix(at, host) {
				t.Errorf("%s shows %q", path, url)
			}
		}
		if want := fmt.Sprintf(`[%q, 200, "there", 200, "there"]`, path); logs[2*i+1] != want {
			t.Errorf("plain clients: %s, want %s", logs[2*i+1], want)
		}
	}
}

func startRedirectingMux(t *testing.T) (string, *witness) {
	seen, mux := &witness{}, http.NewServeMux()
	server := httptest.NewServer(seen.watch(mux))
	t.Cleanup(server.Close)
	there := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "there") }
	for _, path := range []string{"/api/tree/", "/api/target", "/api/relative/target", "/api/a%2Fb/{$}"} {
		mux.HandleFunc(path, there) // ServeMux redirects /api/tree to /api/tree/
	}
	for path, location := range map[string]string{
		"/api/relative/1":      "target",
		"/api/absolute":        server.URL + "/api/target",
		"/api/other-host-form": strings.TrimPrefix(server.URL, "http:") + "/api/target",
		"/api/fragment":        "/api/target#there",
		"/api/query":           "/api/target?a=%2F&b=+",
		"/api/encoded":         "/api/tree/a%2Fb%21!:",
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusFound)
		})
	}
	for _, status := range []int{301, 302, 303, 307, 308} {
		mux.Handle(fmt.Sprintf("/api/%d", status), http.RedirectHandler("/api/target", status))
	}
	return server.URL + "/api", seen
}

// django is a whole site in one file: APPEND_SLASH is on by default.
const django = `
import sys
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import path
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", MIDDLEWARE=["django.middleware.common.CommonMiddleware"])
def there(request):
    return HttpResponse("there" if request.headers.get("X-Api-Key") else "no key", status=200 if request.headers.get("X-Api-Key") else 401)
urlpatterns = [path("api/custom-objects/", there), path("api/named/", lambda r: HttpResponseRedirect(r.build_absolute_uri("/api/custom-objects/")))]
execute_from_command_line(["site", "runserver", "--noreload", sys.argv[1]])
`

func startSlashAppender(t *testing.T) (string, *witness) {
	python := requireProgram(t, "/usr/bin/python3")
	if exec.Command(python, "-c", "import django").Run() != nil {
		if os.Getenv("KIZEN_TEST_REQUIRE") != "" {
			t.Fatal("python3-django is not installed; run .ci/setup test")
		}
		t.Skip("SKIPPED: python3-django is not installed; run .ci/setup test")
	}
	address := freeAddress(t)
	command := exec.Command(python, "-u", writeFile(t, t.TempDir(), "site.py", django), address)
	redistest.Run(t, "Quit the server", command, syscall.SIGTERM)
	return "http://" + address + "/api", nil
}

func startRedirectingNginx(t *testing.T) (string, *witness) {
	address, dir := freeAddress(t), t.TempDir()
	redistest.StartNginx(t, dir, strings.NewReplacer("LISTEN", address, "DIR", dir).Replace(`
daemon off;
pid DIR/pid;
error_log stderr notice;
events {}
http {
	access_log off;
	client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
	server {
		listen LISTEN;
		if ($http_x_api_key = "") { return 401; }
		location /api/folder/ { proxy_pass http://LISTEN/api/there; proxy_set_header X-API-KEY $http_x_api_key; }
		location = /api/there { return 200 there; }
		location = /api/moved { absolute_redirect off; return 308 /api/there; }
		location = /api/rewritten { rewrite ^ $scheme://$http_host/api/there? permanent; }
	}
}
`))
	return "http://" + address + "/api", nil
}

// TestARedirectElsewhereCarriesNoCredential: a redirect to another host carries neither the proxy's capability nor the
// headers that authenticate the step.
func TestARedirectElsewhereCarriesNoCredential(t *testing.T) {
	var mu sync.Mutex
	var got []http.Header
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.Header)
		fmt.Fprintln(w, r.Method, r.URL.Path)
	}))
	t.Cleanup(elsewhere.Close)
	api := newRecordingAPI(t)
	api.expect([]route{{Method: "POST", Path: "/download",
		Responses: []cannedResponse{{Status: 307, Headers: map[string]string{"Location": elsewhere.URL + "/file"}}}}})
	const script = `
r = kizen.api.post("/download", "body", headers={"Authorization": "a", "X-API-KEY": "k", "X-Note": "kept"})
outputs.log(r.text.strip())
`
	result := sidecar(t, script, nil, "run", "--script", "-", "--json", "--network", "host", "--api-root", api.root())
	var d document
	if err := json.Unmarshal([]byte(result.stdout), &d); err != nil || !slices.Equal(d.Logs, []string{"POST /file"}) {
		t.Fatalf("%v\n%s\n%s", err, result.stdout, result.stderr)
	}
	for _, name := range []string{"Authorization", "X-Api-Key", "X-Business-Id", "X-User-Id", "Cookie", "X-Kizen-Location",
		"Referer"} {
		if value := got[0].Get(name); value != "" {
			t.Errorf("%s: %q went to another host", name, value)
		}
	}
	if got[0].Get("X-Note") != "kept" {
		t.Error("X-Note was dropped")
	}
}

// TestAStepResolvesItsOwnHostName: a step finds its own host name at a loopback address in both kinds of network. The
// files of the sandbox and the C library's resolver meet.
func TestAStepResolvesItsOwnHostName(t *testing.T) {
	for _, network := range []string{"host", "kizen-only"} {
		got := sidecar(t, "import socket\noutputs.log(socket.gethostbyname(socket.gethostname()))", nil, "run", "--script",
			"-", "--json", "--network", network)
		var d document
		if err := json.Unmarshal([]byte(got.stdout), &d); err != nil || len(d.Logs) != 1 ||
			!strings.HasPrefix(d.Logs[0], "127.") {
			t.Errorf("%s: %v\n%s\n%s", network, err, got.stdout, got.stderr)
		}
	}
}
