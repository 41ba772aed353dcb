package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// renewable is a key source with a second key for a renewal.
type renewable struct {
	mu    sync.Mutex
	key   string
	asked int
	next  string // the key that the first renewal returns; empty if none
}

func (k *renewable) Key(context.Context) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.key, nil
}

func (k *renewable) Renew(_ context.Context, stale string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if k.next == "" || stale != k.key {
		return "", errors.New("there is no other key")
	}
	k.key, k.next = k.next, ""
	return k.key, nil
}

// TestARequestWithAnUnknownKeyIsSentAgainWithANewOne uses an API that knows the key "new" and refuses others as the
// row says.
func TestARequestWithAnUnknownKeyIsSentAgainWithANewOne(t *testing.T) {
	const unknown = `ApiKey header="X-API-KEY", error="unknown_key"`
	for name, row := range map[string]struct {
		challenge string
		next      string // the key that a renewal returns
		method    string
		body      string
		streamed  bool // the body ends only after the response
		status    int
		asked     int
		requests  int
	}{
		"GET": {unknown, "new", "GET", "", false, 200, 1, 2},
		"a lost record": {`ApiKey header="X-API-KEY", error="revoked", record="lost"`, "new", "GET", "", false,
			200, 1, 2},
		"POST":                       {unknown, "new", "POST", `{"a":1}`, false, 200, 1, 2},
		"a body that cannot be kept": {unknown, "new", "POST", strings.Repeat("x", maxReplay+1), false, 401, 1, 1},
		"a body that has not ended":  {unknown, "new", "POST", "begin", true, 401, 1, 1},
		"no other key":               {unknown, "", "GET", "", false, 401, 1, 1},
		"another one unknown too":    {unknown, "other", "GET", "", false, 401, 1, 2},
		"revoked":                    {`ApiKey header="X-API-KEY", error="revoked"`, "new", "GET", "", false, 401, 0, 1},
		"no challenge":               {"", "new", "GET", "", false, 401, 0, 1},
	} {
		for _, h2 := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " over HTTP/2", false: ""}[h2], func(t *testing.T) {
				var mu sync.Mutex
				requests, bodies := 0, []string{}
				root, ca := tlsAPI(t, h2, func(w http.ResponseWriter, r *http.Request) {
					if row.streamed && !h2 { // net/http would read the whole body before it answers
						if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
							t.Error(err)
						}
					}
					known := r.Header.Get("X-API-KEY") == "new"
					body := ""
					if known || !row.streamed {
						data, _ := io.ReadAll(r.Body) // a truncated body is not the expected one
						body = string(data)
					}
					mu.Lock()
					defer mu.Unlock()
					requests++
					if known {
						bodies = append(bodies, body)
						return
					}
					w.Header().Set("WWW-Authenticate", row.challenge)
					w.WriteHeader(http.StatusUnauthorized)
					_, _ = io.WriteString(w, `{"code":"unknown_key"}`)
				})
				keys := &renewable{key: "old", next: row.next}
				p := start(t, root, func(c *Config) { c.APICA, c.Keys = ca, keys })
				var body io.Reader = strings.NewReader(row.body)
				if row.streamed {
					reader, writer := io.Pipe()
					defer writer.Close()
					go func() { _, _ = io.WriteString(writer, row.body) }() // the test ends it
					body = reader
				}
				request, err := http.NewRequestWithContext(t.Context(), row.method, p.URL()+"/x", body)
				if err != nil {
					t.Fatal(err)
				}
				answer, err := newClient(t).Do(request)
				if err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(answer.Body)
				_ = answer.Body.Close()
				if answer.StatusCode != row.status || err != nil || row.status == 401 && string(text) != `{"code":"unknown_key"}` {
					t.Errorf("answered %d %q, %v; want %d", answer.StatusCode, text, err, row.status)
				}
				mu.Lock()
				defer mu.Unlock()
				if keys.asked != row.asked || requests != row.requests {
					t.Errorf("%d renewals and %d requests, want %d and %d", keys.asked, requests, row.asked, row.requests)
				}
				if row.status == 200 && (len(bodies) != 1 || bodies[0] != row.body) {
					t.Errorf("the API acted on %q, want %q once", bodies, row.body)
				}
			})
		}
	}
}
