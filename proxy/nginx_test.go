package proxy

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// requireProgram skips the test with a message if a program is missing, or fails if programs are required.
func requireProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("KIZEN_TEST_REQUIRE") != "" {
			t.Fatalf("%s is not installed; run .ci/setup test", name)
		}
		t.Skipf("SKIPPED: %s is not installed; run .ci/setup test", name)
	}
	return path
}

const nginxWithTLSConfig = `
worker_processes 2;
error_log stderr error;
pid %[1]s/pid;
daemon off;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
	ssl_certificate %[1]s/certificate; ssl_certificate_key %[1]s/key;
	client_max_body_size 0;
	proxy_next_upstream off;
	upstream api { server %[2]s; keepalive 64; keepalive_requests 100000000; }
	server {
		listen %[3]s ssl%[4]s;
		%[5]s
		location / { proxy_pass http://api; proxy_http_version 1.1; proxy_set_header Connection ""; }
	}
}
`

// startNginxWithTLS starts nginx in front of api, and returns its address.
func startNginxWithTLS(t *testing.T, api string, h2 bool, settings string) (root string, ca *x509.CertPool) {
	t.Helper()
	program := requireProgram(t, "nginx")
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS()
	defer certified.Close()
	ca = x509.NewCertPool()
	ca.AddCert(certified.Certificate())
	key, err := x509.MarshalPKCS8PrivateKey(certified.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	os.Chmod(filepath.Dir(dir), 0o755) // its workers run as another user
	os.Chmod(dir, 0o777)
	l := listen(t)
	addr := l.Addr().String()
	l.Close()
	protocol := map[bool]string{true: " http2"}[h2]
	for name, content := range map[string][]byte{
		"certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certified.Certificate().Raw}),
		"key":         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"nginx.conf":  fmt.Appendf(nil, nginxWithTLSConfig, dir, api, addr, protocol, settings),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "-c", filepath.Join(dir, "nginx.conf"), "-p", dir, "-e", "stderr")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	waitFor(t, func() bool {
		_, err := os.Stat(filepath.Join(dir, "pid"))
		return err == nil
	})
	return "https://" + addr + "/api", ca
}

// Every POST through an nginx that often closes its connections is answered, and reaches the API exactly once.
func TestNoPostIsLostOrDoubledBehindNginx(t *testing.T) {
	for _, tt := range []struct {
		name     string
		h2       bool
		settings string
		posts    int
		pause    time.Duration // between two posts of a caller
	}{
		{"HTTP/2, connections of 20 requests", true, "keepalive_requests 20;", 3200, 0},
		{"HTTP/2, the default of 1000 requests", true, "", 3200, 0},
		{"HTTP/2, connections idle for a second", true, "keepalive_timeout 1s;", 320, time.Second},
		{"HTTP/1.1, connections of 20 requests", false, "keepalive_requests 20;", 3200, 0},
		{"HTTP/1.1, connections idle for a second", false, "keepalive_timeout 1s 1s;", 320, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.pause > 0 {
				t.Parallel()
			}
			var mu sync.Mutex
			got := map[string]int{} // how often the API received each post
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if want := r.Header.Get("X-Length"); err != nil || fmt.Sprint(len(body)) != want {
					t.Errorf("the api got %d bytes of %s: %v", len(body), want, err)
				}
				mu.Lock()
				defer mu.Unlock()
				got[r.Header.Get("X-Id")]++
				w.WriteHeader(http.StatusNoContent)
			}))
			t.Cleanup(api.Close)
			root, ca := startNginxWithTLS(t, strings.TrimPrefix(api.URL, "http://"), tt.h2, tt.settings)
			p := start(t, root, func(c *Config) { c.APICA = ca })
			const callers = 32
			var next, failed, retried atomic.Int64
			p.cfg.OnCall = func(call Call) {
				if call.Retried {
					retried.Add(1)
				}
			}
			var all sync.WaitGroup
			for caller := range callers {
				all.Go(func() {
					client := newClient(t)
					for round := 0; ; round++ {
						n := next.Add(1)
						if n > int64(tt.posts) {
							return
						}
						if round > 0 && tt.pause > 0 { // around the moment when nginx closes the connection
							time.Sleep(tt.pause + time.Duration(caller-callers/2)*time.Millisecond)
						}
						size := []int{0, 40, 5000, 50000}[n%4]
						req, err := http.NewRequest("POST", p.URL()+"/x", bytes.NewReader(make([]byte, size)))
						if err != nil {
							t.Error(err)
							return
						}
						req.Header.Set("X-Id", fmt.Sprint(n))
						req.Header.Set("X-Length", fmt.Sprint(size))
						resp, err := client.Do(req)
						if err != nil {
							failed.Add(1)
							t.Error(err)
							continue
						}
						body, _ := io.ReadAll(resp.Body)
						resp.Body.Close()
						if resp.StatusCode != 204 {
							failed.Add(1)
							t.Errorf("post %d of %d bytes: %d %s", n, size, resp.StatusCode, body)
						}
					}
				})
			}
			all.Wait()
			mu.Lock()
			defer mu.Unlock()
			for n := range tt.posts {
				if times := got[fmt.Sprint(n+1)]; times != 1 {
					t.Errorf("the api got post %d %d times", n+1, times)
				}
			}
			t.Logf("%d of %d failed, %d were sent again", failed.Load(), tt.posts, retried.Load())
		})
	}
}
