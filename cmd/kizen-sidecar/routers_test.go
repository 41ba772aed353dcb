package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

// guardedSpelling is one way to ask for a guarded call.
type guardedSpelling struct{ method, path, header string }

// guardedSpellings are tried on every router. Not every one of them is the guarded call on each.
func guardedSpellings() []guardedSpelling {
	var all []guardedSpelling
	for _, path := range []string{
		"/api-keys", "/api-keys/", "/api-keys.json", "/api-keys.json/", "/API-KEYS", "/api-keys.JSON", "/%61pi-keys", "/api%2dkeys.json",
		"/x//../api-keys", "/./api-keys", "/%2e/api-keys", "/api-keys%20", "/api-keys;v=1", "/api-keys#x/y", "/api-keys%23x", "/api-keys%3fx",
		"/team/1/api-keys", "/team/1/api-keys.json", "/team/a%2fb/api-keys", "/team/a%252fb/api-keys", "/team/a%5cb/api-keys", "/team/;x/api-keys",
		"/team/%20/api-keys", "/team/./api-keys", "/team/%2e/api-keys", "/team%2f1%2fapi-keys", "/team//1//api-keys", "/team/1;x/api-keys",
		"/team/1/%61pi-keys", "/team/%E2%82%AC/api-keys.json", "/team/a.b/api-keys", "/team/%00/api-keys", "/team/%0a/api-keys",
		"/api-keys%0a", "/api-keys%0d%0a", "/api-keys/%0a", "/api%0d-keys", "/%09api-keys", "/%0a/api-keys", "/api-keys.json%0a", "/team/1%0a2/api-keys%0a",
		"/%5capi-keys", `/team\1\api-keys`, "/team%5c1%5capi-keys", "/team/1%0a/%5capi-keys",
		"/business-config/import", "/business-config/import.json", "/business-config//import", "/business-config%2fimport", "/business-config/./import",
	} {
		for _, method := range []string{"POST", "PUT"} {
			all = append(all, guardedSpelling{method, path, ""})
		}
	}
	for _, header := range []string{
		"SCRIPT_NAME: /api/records", "Script-Name: /api/records", "script_name: /api/records", "X-Script-Name: /api/records", "PATH_INFO: /api/api-keys",
		"X-Original-URL: /api/api-keys", "X-Rewrite-URL: /api/api-keys", "X-Original-URI: /api/api-keys", "X-Envoy-Original-Path: /api/api-keys",
		"X-Forwarded-Prefix: /api/records", "X-Forwarded-Path: /api/api-keys", "REQUEST_URI: /api/api-keys", "Request-URI: /api/api-keys",
	} {
		all = append(all, guardedSpelling{"POST", "/records/api/api-keys", header})
	}
	for _, header := range []string{"X-HTTP-Method-Override: POST", "X_HTTP_Method_Override: post", "X-Method-Override: POST", "X-HTTP-Method: POST"} {
		all = append(all, guardedSpelling{"GET", "/api-keys", header})
	}
	return all
}

// router is a server on which the guarded calls answer GUARDED, and /records/{name} answers FREE.
type router struct {
	name  string
	start func(t *testing.T) (address string)
	// reads are spellings that it is known to read as the guarded call: without the proxy they have to arrive.
	reads []guardedSpelling
}

var routers = []router{
	{"Django REST framework under gunicorn", startDjango, []guardedSpelling{
		{"POST", "/api-keys.json", ""}, {"PUT", "/team/1/api-keys.json", ""}, {"POST", "/business-config/import.json", ""}, {"POST", "/team/;x/api-keys", ""},
		{"POST", "/team/%20/api-keys", ""}, {"POST", "/team/./api-keys", ""}, {"POST", "/team%2f1%2fapi-keys", ""}, {"POST", "/api-keys#x/y", ""},
		{"POST", "/records/api/api-keys", "SCRIPT_NAME: /api/records"},
	}},
	{"Express", startExpress, []guardedSpelling{
		{"POST", "/API-KEYS", ""}, {"POST", "/team/a%2fb/api-keys", ""}, {"POST", "/team/;x/api-keys", ""}, {"PUT", "/team/%20/api-keys", ""}, {"POST", "/team/./api-keys", ""},
	}},
	{"nginx", startNginxRouter, []guardedSpelling{
		{"POST", "/business-config//import", ""}, {"POST", "/team%2f1%2fapi-keys", ""}, {"POST", "/%2e/api-keys", ""}, {"POST", "/%61pi-keys", ""},
	}},
	{"gin", func(t *testing.T) string { return startGin(t, false) }, []guardedSpelling{
		{"POST", "/%61pi-keys", ""}, {"POST", "/team%2f1%2fapi-keys", ""}, {"POST", "/team/%20/api-keys", ""},
	}},
	{"gin by the raw path", func(t *testing.T) string { return startGin(t, true) }, []guardedSpelling{{"POST", "/team/a%2fb/api-keys", ""}}},
}

// TestNoRouterGetsAGuardedCall sends every spelling through the proxy to servers that are in use, each of which reads some
// of them as a guarded call.
func TestNoRouterGetsAGuardedCall(t *testing.T) {
	t.Parallel()
	for _, r := range routers {
		t.Run(r.name, func(t *testing.T) {
			address := r.start(t)
			// gunicorn waits for the request of one connection at a time.
			p := startProxy(t, "--api-root", "http://"+address+"/api", "--prewarm", "0")
			through, err := url.Parse(p.URL)
			if err != nil {
				t.Fatal(err)
			}
			var read []guardedSpelling
			for _, s := range guardedSpellings() {
				if _, body := ask(t, address, "/api", s); body == "GUARDED" {
					read = append(read, s)
				}
				if status, body := ask(t, through.Host, through.Path, s); body == "GUARDED" {
					t.Errorf("%s %s %s reached the guarded call: %d", s.method, s.path, s.header, status)
				}
			}
			for _, s := range r.reads {
				if !slices.Contains(read, s) {
					t.Errorf("%s %s %s is no guarded call here, of which the test needs some", s.method, s.path, s.header)
				}
			}
			for _, path := range []string{"/records/api-keys.json", "/records/a%2Fapi-keys", "/records/%20", "/records/x;y", "/records/Q1%0A2024", "/records/a%5Cb"} {
				if status, body := ask(t, through.Host, through.Path, guardedSpelling{"POST", path, ""}); body != "FREE" {
					t.Errorf("POST %s, which is not guarded: %d %s", path, status, body)
				}
			}
			t.Logf("reads %d spellings of %d as the guarded call", len(read), len(guardedSpellings()))
		})
	}
}

// ask sends a request byte for byte. The body of the answer is without quotes.
func ask(t *testing.T, address, root string, s guardedSpelling) (status int, body string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil { // a hang is a failure
		t.Fatal(err)
	}
	head := fmt.Sprintf("%s %s%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: 0\r\n", s.method, root, s.path, address)
	if s.header != "" {
		head += s.header + "\r\n"
	}
	if _, err := io.WriteString(conn, head+"\r\n"); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%s %s: %v", s.method, s.path, err)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, strings.Trim(string(text), "\"\n")
}

func startDjango(t *testing.T) string {
	program := requireProgram(t, "gunicorn")
	if exec.Command("/usr/bin/python3", "-c", "import rest_framework").Run() != nil {
		missingForTest(t, "Django REST framework (python3-djangorestframework)")
	}
	socket := freeAddress(t)
	command := exec.Command(program, "--chdir", "testdata/routers", "--bind", socket, "--graceful-timeout", "1", "drf:application")
	command.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	redistest.Run(t, "Booting worker", command, syscall.SIGTERM)
	return socket
}

// startExpress needs what .ci/setup has installed into .cache.
func startExpress(t *testing.T) string {
	program := requireProgram(t, "node")
	modules, err := filepath.Abs(projectRoot + "/.cache/routers/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(modules + "/express"); err != nil {
		missingForTest(t, "Express")
	}
	command := exec.Command(program, "testdata/routers/express.js")
	command.Env = append(os.Environ(), "NODE_PATH="+modules)
	command.Stderr = os.Stderr
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait() // it was killed
	})
	var port int
	if err := json.NewDecoder(output).Decode(&port); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

func startNginxRouter(t *testing.T) string {
	dir, address := t.TempDir(), freeAddress(t)
	redistest.StartNginx(t, dir, fmt.Sprintf(`
daemon off;
worker_processes 1;
error_log stderr notice;
pid %[1]s/pid;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
	server {
		listen %[2]s;
		location ~ ^/api/(api-keys|team/[^/]+/api-keys|business-config/import)/?$ { return 201 GUARDED; }
		location /api/records/ { return 200 FREE; }
	}
}`, dir, address))
	return address
}

func startGin(t *testing.T, rawPath bool) string {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.UseRawPath = rawPath
	engine.RemoveExtraSlash = true
	for _, path := range []string{"/api/api-keys", "/api/team/:account/api-keys", "/api/business-config/import"} {
		engine.Match([]string{"POST", "PUT"}, path, func(c *gin.Context) { c.String(http.StatusCreated, "GUARDED") })
	}
	engine.POST("/api/records/*name", func(c *gin.Context) { c.String(http.StatusOK, "FREE") })
	server := httptest.NewServer(engine)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}
