package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// TestNoKeyIsValidAfterItsRevocation revokes keys while eight threads of their step use them.
func TestNoKeyIsValidAfterItsRevocation(t *testing.T) {
	t.Parallel()
	redisURL := startRedisServer(t)
	platform := startPlatform(t, "--redis-url", redisURL)
	var mu sync.Mutex
	used := map[string]http.Header{} // by execution, the headers of its last request
	root := inFrontOf(t, platform, func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		used[keyOf(r).ExecutionID] = r.Header.Clone()
	})
	s := startServe(t, "--redis-url", redisURL, "--api-root", root, "--slots", "2")
	const source = `
import threading
def call():
    while kizen.api.get("/custom-objects").status_code == 200: pass
threads = [threading.Thread(target=call) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
outputs.log(kizen.api.get("/custom-objects").status_code)
`
	for round := range 5 {
		id := fmt.Sprint("e-", round)
		if got := s.ask("POST", "/executions", script(source).with("execution_id", id)); got.status != 202 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		waitFor(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return used[id] != nil
		})
		if got := sidecar(t, "", nil, "keys", "revoke", "--execution", id, "--business-id", "b-1", "--redis-url", redisURL); got.code != 0 {
			t.Fatalf("%d %s", got.code, got.stderr)
		}
		mu.Lock()
		header := used[id].Clone() // of the newest key, if there were several
		mu.Unlock()
		r, err := http.NewRequestWithContext(t.Context(), "GET", platform.String()+"/custom-objects", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = header
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: a call with its revoked key got %d", id, response.StatusCode)
		}
		events := s.events(id)
		if said := events.until("log"); strings.Contains(said, `"200"`) {
			t.Errorf("%s: calls of the step still succeed: %s", id, said)
		}
		events.until("finished")
	}
}

// TestTortureResetStreamsDoNotBlockOtherCallers tries HTTP/2 rapid reset, and a flood of every kind of frame that
// requires a response.
func TestTortureResetStreamsDoNotBlockOtherCallers(t *testing.T) {
	const token = "a-token-of-the-test-and-only-of-it"
	authority := redistest.NewAuthority(t)
	authority.Issue(t, "server", x509.ExtKeyUsageServerAuth)
	list := writeFile(t, t.TempDir(), "callers.yaml",
		fmt.Sprintf("- {name: platform, token_file: %q, trusted: true}\n", writeFile(t, t.TempDir(), "token", token)))
	s := startServe(t, "--warm", "1", "--callers", list, "--tls-cert", authority.File("server.crt"), "--tls-key",
		authority.File("server.key"))
	good := newCaller(t, authority, nil, "", token, "b-good")
	if status, answer := good.run(t, s.URL, script("outputs.log(1)")); status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
	before := sidecartest.AnonymousMiB(t, s.Process.Pid)
	var head bytes.Buffer
	encoder := hpack.NewEncoder(&head)
	for _, field := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", "/api/coderunner/run"},
		{":authority", "localhost"},
		{"authorization", "Bearer " + token}, {"content-type", "application/json"}, {"x-business-id", "b-bad"},
		{"x-user-id", "u"}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1], Sensitive: true}); err != nil {
			t.Fatal(err)
		}
	}
	for name, send := range map[string]func(framer *http2.Framer, n uint32) error{
		"streams that are reset": func(framer *http2.Framer, n uint32) error {
			err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*n + 1, BlockFragment: head.Bytes(), EndHeaders: true})
			if err == nil {
				err = framer.WriteRSTStream(2*n+1, http2.ErrCodeCancel)
			}
			return err
		},
		"pings":    func(framer *http2.Framer, n uint32) error { return framer.WritePing(false, [8]byte{byte(n)}) },
		"settings": func(framer *http2.Framer, _ uint32) error { return framer.WriteSettings() },
		"a head without end": func(framer *http2.Framer, n uint32) error {
			if n == 0 {
				return framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes()})
			}
			return framer.WriteContinuation(1, false, bytes.Repeat([]byte{0x00, 0x01, 'a', 0x01, 'b'}, 200))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var all sync.WaitGroup
			for range 4 {
				connection, err := tls.Dial("tcp", strings.TrimPrefix(s.URL, "https://"),
					&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
				if err != nil {
					t.Fatal(err)
				}
				defer connection.Close()
				if _, err := io.WriteString(connection, http2.ClientPreface); err != nil {
					t.Fatal(err)
				}
				framer := http2.NewFramer(connection, nil)
				if err := framer.WriteSettings(); err != nil {
					t.Fatal(err)
				}
				all.Go(func() { _, _ = io.Copy(io.Discard, connection) }) // until the server closes it
				all.Go(func() {
					for n := range uint32(20_000) {
						if send(framer, n) != nil {
							break
						}
					}
					_ = connection.Close()
				})
			}
			for range 5 {
				if status, answer := good.run(t, s.URL, script("outputs.log(1)")); status != 200 {
					t.Errorf("another caller meanwhile: %d %s", status, answer)
				}
			}
			all.Wait()
			if status, answer := good.run(t, s.URL, script("outputs.log(1)")); status != 200 {
				t.Errorf("another caller afterwards: %d %s", status, answer)
			}
		})
	}
	waitFor(t, func() bool { return sidecartest.AnonymousMiB(t, s.Process.Pid) < before+32 })
}
