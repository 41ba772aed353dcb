package main

import (
	"bufio"
	"encoding/json"
	"errors"
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

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

// router is a server that answers GUARDED to the guarded calls and FREE to /records/{name}.
type router struct {
	name  string
	start func(t *testing.T) (address string)
	// reads are spellings that the server is known to treat as the guarded call. Without the proxy they must reach it.
	reads []attacks.Spelling
}

var routers = []router{
	{"Django REST framework under gunicorn", startDjango, []attacks.Spelling{
		{Method: "POST", Path: "/api-keys.json"}, {Method: "PUT", Path: "/team/1/api-keys.json"},
		{Method: "POST", Path: "/business-config/import.json"}, {Method: "POST", Path: "/team/;x/api-keys"},
		{Method: "POST", Path: "/team/%20/api-keys"}, {Method: "POST", Path: "/team/./api-keys"},
		{Method: "POST", Path: "/team%2f1%2fapi-keys"}, {Method: "POST", Path: "/api-keys#x/y"},
		{Method: "POST", Path: "/records/api/api-keys", Header: "SCRIPT_NAME: /api/records", Passes: true},
	}},
	{"Express", startExpress, []attacks.Spelling{
		{Method: "POST", Path: "/API-KEYS"}, {Method: "POST", Path: "/team/a%2fb/api-keys"},
		{Method: "POST", Path: "/team/;x/api-keys"}, {Method: "PUT", Path: "/team/%20/api-keys"},
		{Method: "POST", Path: "/team/./api-keys"},
		{Method: "POST", Path: "/api-keys/1", Header: "Content-Type: application/x-www-form-urlencoded",
			Body: "_method=DELETE"}, {Method: "POST", Path: "/api-keys/1", Header: "Content-Type: application/json",
			Body: `{"_method": "DELETE"}`},
	}},
	{"nginx", func(t *testing.T) string {
		return startNginxRouter(t, "~ ^/api/(api-keys|team/[^/]+/api-keys|business-config/import)/?$")
	}, []attacks.Spelling{
		{Method: "POST", Path: "/business-config//import"}, {Method: "POST", Path: "/team%2f1%2fapi-keys"},
		{Method: "POST", Path: "/%2e/api-keys"}, {Method: "POST", Path: "/%61pi-keys"},
	}},
	{"nginx by prefix", func(t *testing.T) string {
		return startNginxRouter(t, "~ ^/api/(api-keys|team/[^/]+/api-keys|business-config/import)(/|$)")
	}, []attacks.Spelling{
		{Method: "POST", Path: "/business-config/import/1/apply"}, {Method: "POST", Path: "/api-keys/1/rotate"},
		{Method: "POST", Path: "/team/1/api-keys/2"}, {Method: "PUT", Path: "/business-config%2fimport/;x/%20"},
	}},
	{"gin", func(t *testing.T) string { return startGin(t, false) }, []attacks.Spelling{
		{Method: "POST", Path: "/%61pi-keys"}, {Method: "POST", Path: "/team%2f1%2fapi-keys"},
		{Method: "POST", Path: "/team/%20/api-keys"},
	}},
	{"gin by the raw path", func(t *testing.T) string { return startGin(t, true) },
		[]attacks.Spelling{{Method: "POST", Path: "/team/a%2fb/api-keys"}}},
}

// TestNoRouterGetsAGuardedCall sends every spelling through the proxy to widely used servers, each of which treats
// some of them as a guarded call.
func TestNoRouterGetsAGuardedCall(t *testing.T) {
	t.Parallel()
	for _, r := range routers {
		t.Run(r.name, func(t *testing.T) {
			address := r.start(t)
			// gunicorn serves one connection at a time.
			p := startProxy(t, "--api-root", "http://"+address+"/api", "--prewarm", "0")
			through, err := url.Parse(p.URL)
			if err != nil {
				t.Fatal(err)
			}
			var read []attacks.Spelling
			for _, s := range attacks.Spellings() {
				if _, body := ask(t, address, "/api", s); body == "GUARDED" {
					read = append(read, s)
				}
				if status, body := ask(t, through.Host, through.Path, s); body == "GUARDED" {
					t.Errorf("%s %s %s %.80s reached the guarded call: %d", s.Method, s.Path, s.Header, s.Body, status)
				}
			}
			for _, s := range r.reads {
				if !slices.Contains(read, s) {
					t.Errorf("%s %s %s is not read as a guarded call, which the test needs", s.Method, s.Path, s.Header)
				}
			}
			for _, path := range []string{"/records/api-keys.json", "/records/a%2Fapi-keys", "/records/%20", "/records/x;y",
				"/records/Q1%0A2024", "/records/a%5Cb"} {
				if status, body := ask(t, through.Host, through.Path, attacks.Spelling{Method: "POST", Path: path}); body != "FREE" {
					t.Errorf("POST %s, which is free: %d %s", path, status, body)
				}
			}
			t.Logf("%d of %d spellings are read as the guarded call", len(read), len(attacks.Spellings()))
		})
	}
}

// ask sends a request byte for byte. It returns the body of the response without quotes.
func ask(t *testing.T, address, root string, s attacks.Spelling) (status int, body string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil { // a hang is a failure
		t.Fatal(err)
	}
	// The server may refuse before it has read everything.
	if _, err := io.WriteString(conn, s.Text(address, root)); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%s %s: %v", s.Method, s.Path, err)
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
	command := exec.Command(program, "--chdir", "testdata/routers", "--bind", socket, "--graceful-timeout", "1",
		"drf:application")
	command.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	redistest.Run(t, "Booting worker", command, syscall.SIGTERM)
	return socket
}

// startExpress needs Express, which .ci/setup installs into .cache.
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

// startNginxRouter starts nginx, which answers GUARDED at a location.
func startNginxRouter(t *testing.T, guarded string) string {
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
		location %[3]s { return 201 GUARDED; }
		location /api/records/ { return 200 FREE; }
	}
}`, dir, address, guarded))
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
