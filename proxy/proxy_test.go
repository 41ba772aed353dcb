package proxy

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(benchRole); role != "" {
		playBenchRole(role)
		return
	}
	goleak.VerifyTestMain(m)
}

const testKey = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ0ZXN0In0.c2lnbmF0dXJlLW9mLXRoZS10ZXN0LWtleQ"

type staticKey string

func (k staticKey) Key(context.Context) (string, error) { return string(k), nil }

// start runs a proxy to root until the test ends.
func start(t testing.TB, root string, change func(*Config)) *Proxy {
	t.Helper()
	u, err := url.Parse(root)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{APIRoot: u, BusinessID: "business-1", UserID: "user-1", Keys: staticKey(testKey)}
	if change != nil {
		change(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		p.Shutdown(ctx)
	})
	return p
}

// serveAPI runs an API until the test ends, and returns its root.
func serveAPI(t testing.TB, handler http.HandlerFunc) string {
	t.Helper()
	api := httptest.NewServer(handler)
	t.Cleanup(api.Close)
	return api.URL + "/api"
}

func newClient(t testing.TB) *http.Client {
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// do sends one request and reads the whole response.
func do(t testing.TB, client *http.Client, method, url, body string, header http.Header) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(answer)
}

func TestRequestReachesAPIRootWithCredentials(t *testing.T) {
	for _, method := range []string{"GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS"} {
		t.Run(method, func(t *testing.T) {
			var got *http.Request
			var body []byte
			root := serveAPI(t, func(w http.ResponseWriter, r *http.Request) {
				got = r
				body, _ = io.ReadAll(r.Body)
				w.WriteHeader(207)
				io.WriteString(w, "answer")
			})
			p := start(t, root, nil)
			resp, answer := do(t, newClient(t), method, p.URL()+"/a%2Fb%21//c?x=%2f&x=+&;", strings.Repeat("b", 70000),
				http.Header{
					"X_Api_Key": {"mine"}, "X-Api-Key": {"mine"}, "Authorization": {"Bearer mine"}, "Cookie": {"a=b"},
					"X-Kept": {"1", "2"},
				})
			if resp.StatusCode != 207 || method != "HEAD" && answer != "answer" {
				t.Fatalf("answer: %d %q", resp.StatusCode, answer)
			}
			if got.Method != method || got.RequestURI != "/api/a%2Fb%21//c?x=%2f&x=+&;" || len(body) != 70000 {
				t.Errorf("request: %s %s, %d bytes", got.Method, got.RequestURI, len(body))
			}
			want := map[string]string{
				"X-Api-Key": testKey, "X-Business-Id": "business-1", "X-User-Id": "user-1",
				"Authorization": "", "Cookie": "", "X_api_key": "", "X-Kept": "1,2",
			}
			for name, value := range want {
				if given := strings.Join(got.Header.Values(name), ","); given != value {
					t.Errorf("%s: %q, want %q", name, given, value)
				}
			}
		})
	}
}
