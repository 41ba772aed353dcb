package main

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

// TestCallsContinueAfterRedisWasEmptied runs both built commands on a real Redis that loses its content. The sidecar
// uses its own key pair, which the platform knows only from Redis.
func TestCallsContinueAfterRedisWasEmptied(t *testing.T) {
	t.Run("proxy", func(t *testing.T) {
		server := redistest.Start(t)
		root := startPlatform(t, "--redis-url", server.URL())
		p := startProxy(t, "--api-root", root.String(), "--redis-url", server.URL())
		for range 2 { // the second time soon after the first, within the pause between renewals
			if status, body := get(t, p.URL+"/custom-objects"); status != 200 {
				t.Fatalf("before: %d %s", status, body)
			}
		}
		server.Do(t, "FLUSHALL")
		answer, err := http.Post(p.URL+"/records/deals", "application/json",
			strings.NewReader(`{"fields":[{"name":"a","value":1}]}`))
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != 201 {
			t.Errorf("after FLUSHALL: %d", answer.StatusCode)
		}
		if status, body := get(t, p.URL+"/records/deals"); status != 200 || !strings.Contains(body, `"count":1,`) {
			t.Errorf("the record was not created exactly once: %d %s", status, body)
		}
	})
	t.Run("proxy, with configured keys", func(t *testing.T) {
		server := redistest.Start(t)
		keys := t.TempDir()
		for _, kind := range [][]string{nil, {"--sealing"}} {
			if done := keysCommandLine(t, append([]string{"generate", "--keys", keys}, kind...)...); done.code != exitOK {
				t.Fatalf("%+v", done)
			}
		}
		root := startPlatform(t, "--redis-url", server.URL(), "--keys", keys)
		p := startProxy(t, "--api-root", root.String(), "--redis-url", server.URL(), "--keys", keys, "--execution-id", "e-1",
			"--business-id", "b-1", "--user-id", "u-1")
		path := p.URL + "/custom-objects"
		want := func(when string, wanted int) {
			t.Helper()
			if status, body := get(t, path); status != wanted {
				t.Errorf("%s: %d %s, want %d", when, status, body, wanted)
			}
		}
		revoke := func(what ...string) {
			t.Helper()
			if done := keysCommandLine(t, append([]string{"revoke", "--redis-url", server.URL(), "--business-id", "b-1"}, what...)...); done.code != exitOK {
				t.Fatalf("%+v", done)
			}
		}
		want("before", 200)
		server.Do(t, "FLUSHALL")
		want("after FLUSHALL", 200)
		key := strings.TrimPrefix(strings.TrimSpace(server.Do(t, "--scan", "--pattern", "kizen:{b-1}:key:*")),
			"kizen:{b-1}:key:")
		revoke("--key", key)
		want("after its key was revoked", 401)
		want("once more", 401)
		server.Do(t, "DEL", "kizen:{b-1}:key:"+key) // as if Redis had lost this too
		want("in the pause between renewals", 401)
		revoke("--suspend", "u-1")
		want("after its account was suspended", 401)
		revoke("--resume", "u-1")
		want("after its account was resumed", 401)
	})
	t.Run("serve", func(t *testing.T) {
		server := redistest.Start(t)
		var calls atomic.Int64
		root := inFrontOf(t, startPlatform(t, "--redis-url", server.URL()), func(*http.Request) {
			if calls.Add(1) == 2 {
				server.Do(t, "FLUSHALL")
			}
		})
		s := startServe(t, "--api-root", root, "--redis-url", server.URL())
		got, err := s.try(t.Context(), "b-1", "POST", "/api/coderunner/run", step{
			"runtime": "python-3-13", "output_types": map[string]string{"codes": "s"},
			"user_script": "outputs.codes = str([kizen.api.get('/custom-objects').status_code for _ in range(3)])",
		})
		if err != nil || got.status != 200 || !strings.Contains(got.body, "[200, 200, 200]") {
			t.Errorf("%v %d %s", err, got.status, got.body)
		}
	})
}
