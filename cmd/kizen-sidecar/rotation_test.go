package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
	"github.com/kizen/kizen-sidecar/minter"
)

// startPlatform starts the built kizen-platform and returns its API root.
func startPlatform(t *testing.T, arguments ...string) *url.URL {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ready.json")
	command := exec.Command(sidecartest.Program("kizen-platform"),
		append([]string{"--listen", "127.0.0.1:0", "--ready-file", file}, arguments...)...)
	command.Env = []string{}
	redistest.Run(t, `"listening"`, command, syscall.SIGTERM)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var ready struct {
		APIRoot string `json:"api_root"`
	}
	if err := json.Unmarshal(data, &ready); err != nil {
		t.Fatal(err)
	}
	root, err := url.Parse(ready.APIRoot)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// inFrontOf calls see for every request before the platform gets it. It returns the API root for such requests.
func inFrontOf(t *testing.T, platform *url.URL, see func(*http.Request)) (root string) {
	t.Helper()
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: platform.Scheme, Host: platform.Host})
	server := httptest.NewServer(http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		see(request)
		forward.ServeHTTP(writer, request)
	}))
	t.Cleanup(server.Close)
	return server.URL + platform.Path
}

// signedKey contains claims of a request's key.
type signedKey struct {
	KID         string `json:"kid"`
	ExecutionID string `json:"execution_id"`
}

func keyOf(request *http.Request) (key signedKey) {
	for _, part := range strings.Split(request.Header.Get(minter.HeaderKey), ".") {
		if text, err := base64.RawURLEncoding.DecodeString(part); err == nil {
			_ = json.Unmarshal(text, &key) // the signature is not JSON
		}
	}
	return key
}

// TestNoCallFailsWhileKeysRotate rotates the signing key while a proxy and successive runs make calls without a pause.
// They share the key directory with the platform.
func TestNoCallFailsWhileKeysRotate(t *testing.T) {
	t.Parallel()
	redisURL, dir := redistest.Start(t).URL(), filepath.Join(t.TempDir(), "keys")
	kid(t, "generate", "--keys", dir)
	kid(t, "generate", "--keys", dir, "--sealing")
	var signer atomic.Value // of the last request of a proxy, not of a run
	root := inFrontOf(t, startPlatform(t, "--redis-url", redisURL, "--keys", dir), func(request *http.Request) {
		if key := keyOf(request); key.ExecutionID == "of-the-proxy" {
			signer.Store(key.KID)
		}
	})
	// The shortest lifetime of a key: the proxy renews it several times between two rotations.
	p := startProxy(t, "--api-root", root, "--redis-url", redisURL, "--keys", dir, "--key-lifetime", "1s",
		"--execution-id", "of-the-proxy")

	ctx, stop := context.WithCancel(t.Context())
	var calling sync.WaitGroup
	defer calling.Wait()
	defer stop()
	var calls, runs atomic.Int64
	calling.Go(func() {
		// Ten calls in each lifetime of a key suffice; more would only load the machine.
		for pace := time.NewTicker(10 * time.Millisecond); ctx.Err() == nil; calls.Add(1) {
			if status, body := get(t, p.URL+"/custom-objects"); status != http.StatusOK {
				t.Errorf("a call got %d %s", status, body)
				return
			}
			<-pace.C
		}
	})
	calling.Go(func() {
		for ; ctx.Err() == nil; runs.Add(1) {
			done := sidecar(t, "", nil, "run", filepath.Join(projectRoot, "examples/count_custom_objects"),
				"--api-root", root, "--redis-url", redisURL, "--keys", dir)
			if done.code != exitOK {
				t.Errorf("a run ended with %d\n%s\n%s", done.code, done.stdout, done.stderr)
				return
			}
		}
	})
	for range 4 {
		rotated := sidecar(t, "", nil, "keys", "rotate", "--keys", dir)
		if rotated.code != exitOK {
			t.Fatalf("rotate: %+v", rotated)
		}
		current, before := strings.TrimSpace(rotated.stdout), runs.Load()
		redistest.Await(t, "the new key to sign, and a run to end", func() bool {
			return t.Failed() || signer.Load() == current && runs.Load() > before
		})
	}
	stop()
	calling.Wait()
	t.Logf("%d calls and %d runs, and none failed", calls.Load(), runs.Load())
	if code := p.Stop(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("exit code %d\n%s", code, p.Log)
	}
	requireNoRecords(t, redisURL)
}

// TestARunKeepsItsKeyWhileTheFilesChange: the signing keys are rotated between the first two calls of a step, and made
// unreadable before the third.
func TestARunKeepsItsKeyWhileTheFilesChange(t *testing.T) {
	redisURL, dir := redistest.Start(t).URL(), filepath.Join(t.TempDir(), "keys")
	kid(t, "generate", "--keys", dir)
	kid(t, "generate", "--keys", dir, "--sealing")
	var calls atomic.Int64
	root := inFrontOf(t, startPlatform(t, "--redis-url", redisURL, "--keys", dir), func(*http.Request) {
		switch calls.Add(1) {
		case 2:
			kid(t, "rotate", "--keys", dir)
		case 3:
			if err := os.WriteFile(filepath.Join(dir, "broken.jwk"), []byte("{"), 0o600); err != nil {
				t.Error(err)
			}
		}
	})
	script := `for _ in range(3): kizen.api.get("/custom-objects").raise_for_status()`
	done := sidecar(t, script, nil, "run", "--script", "-", "--api-root", root, "--redis-url", redisURL, "--keys", dir)
	if done.code != exitOK || calls.Load() != 3 {
		t.Errorf("the run ended with %d after %d calls\n%s\n%s", done.code, calls.Load(), done.stdout, done.stderr)
	}
}
