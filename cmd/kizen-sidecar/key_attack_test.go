package main

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// echoAPI sends the key that it is given back, in the form that the path names, and keeps it.
type echoAPI struct {
	*httptest.Server
	mu   sync.Mutex
	keys map[string]bool
}

func newEchoAPI(t *testing.T) *echoAPI {
	a := &echoAPI{keys: map[string]bool{}}
	a.Server = httptest.NewServer(http.HandlerFunc(a.answer))
	t.Cleanup(a.Close)
	return a
}

func (a *echoAPI) answer(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("X-API-KEY")
	a.mu.Lock()
	a.keys[key] = true
	a.mu.Unlock()
	headers, _ := json.Marshal(r.Header) // a map of strings always marshals
	plain := strings.Repeat("padding ", 500) + string(headers) + strings.Repeat(" padding", 500)
	switch r.URL.Path {
	case "/api/gzip": // as a server does that compresses for those who accept it
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			plain = gzipped(w, plain)
		}
	case "/api/gzip-always":
		plain = gzipped(w, plain)
	case "/api/deflate-always":
		w.Header().Set("Content-Encoding", "deflate")
		var out bytes.Buffer
		packed := zlib.NewWriter(&out)
		_, _ = io.WriteString(packed, plain) // memory takes everything
		_ = packed.Close()
		plain = out.String()
	case "/api/br-always": // the proxy cannot read it, so that what it is does not matter
		w.Header().Set("Content-Encoding", "br")
	case "/api/base64":
		plain = base64.StdEncoding.EncodeToString([]byte(plain))
	case "/api/base64url":
		plain = base64.RawURLEncoding.EncodeToString([]byte("x" + plain))
	case "/api/hex":
		plain = hex.EncodeToString([]byte(plain))
	case "/api/percent":
		plain = url.QueryEscape(plain)
	case "/api/headers":
		w.Header().Set("X-Echo", key)
		w.Header().Set("X-Basic", "Basic "+base64.StdEncoding.EncodeToString([]byte("user:"+key)))
		w.Header().Set("X-Hex", hex.EncodeToString([]byte(key)))
		w.Header().Set("X-Key-"+key, "1")
		w.Header().Set("Location", "/api/plain?k="+key)
	case "/api/drops":
		for i := range len(key) {
			_, _ = io.WriteString(w, key[i:i+1])
			w.(http.Flusher).Flush()
		}
		return
	case "/api/range":
		http.ServeContent(w, r, "x.txt", time.Time{}, strings.NewReader(key))
		return
	}
	_, _ = io.WriteString(w, plain) // the step may have gone
}

func gzipped(w http.ResponseWriter, plain string) string {
	w.Header().Set("Content-Encoding", "gzip")
	var out bytes.Buffer
	packed := gzip.NewWriter(&out)
	_, _ = io.WriteString(packed, plain) // memory takes everything
	_ = packed.Close()
	return out.String()
}

// keyStep reads what it can, and tells it in every way that a step has.
const keyStep = `
import os, requests
def read(path, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    # Past what requests would decode, too.
    r = requests.get(os.environ["KIZEN_API_URL"] + path, headers={"Accept-Encoding": "gzip, deflate, br", **headers}, stream=True, allow_redirects=False)
    raw = r.raw.read(decode_content=False)
    kizen.api.get(path, headers=headers, allow_redirects=False).content
    return raw + b"\n" + repr(r.headers).encode()
paths = ["plain", "gzip", "gzip-always", "deflate-always", "br-always", "base64", "base64url", "hex", "percent", "headers", "drops"]
found = [read("/" + path) for path in paths]
def part(first, last):
    return requests.get(os.environ["KIZEN_API_URL"] + "/range", headers={"Range": f"bytes={first}-{last}"}).content
found.append(part(0, 399) + part(400, 2000))
found.append(b"".join(part(at, at + 49) for at in range(0, 1000, 50)))
size = len(requests.get(os.environ["KIZEN_API_URL"] + "/range").content)
found.append(b"".join(part(at, at) for at in range(max(0, size - 90), size)))
found.append(part(0, 1000) + requests.get(os.environ["KIZEN_API_URL"] + "/range", headers={"Range": "bytes=0-100, 101-900"}).content)
for text in found:
    outputs.log(text.decode("latin-1"))
    print(text)
outputs.found = [text.hex() for text in found]
`

var (
	escapes     = regexp.MustCompile("%[0-9A-Fa-f]{2}")
	base64Runs  = regexp.MustCompile(`[A-Za-z0-9+/_*-]{24,}`)
	hexRuns     = regexp.MustCompile("[0-9A-Fa-f*]{24,}")
	base64Plain = strings.NewReplacer("-", "+", "_", "/", "*", "A")
)

// readings are a text, and what it says where something in it is encoded.
func readings(text string) []string {
	all := []string{text, escapes.ReplaceAllStringFunc(text, func(code string) string {
		plain, _ := url.PathUnescape(code) // it is an escape
		return plain
	})}
	for _, run := range base64Runs.FindAllString(text, -1) {
		for shift := range 4 {
			part := base64Plain.Replace(run[shift:])
			plain, _ := base64.StdEncoding.DecodeString(part[:len(part)/4*4]) // it is in the alphabet
			all = append(all, string(plain))
		}
	}
	for _, run := range hexRuns.FindAllString(text, -1) {
		for shift := range 2 {
			part := strings.ReplaceAll(run[shift:], "*", "0")
			plain, _ := hex.DecodeString(part[:len(part)/2*2]) // likewise
			all = append(all, string(plain))
		}
	}
	return all
}

// requireUnknown fails where a text tells the end of a key that the API saw.
func (a *echoAPI) requireUnknown(t *testing.T, where, text string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.keys) == 0 {
		t.Fatalf("%s: the API saw no key", where)
	}
	const told = 12 // characters in a row; the end of a key has 84
	for _, reading := range readings(text) {
		for key := range a.keys {
			for at := max(0, len(key)-84); at+told <= len(key); at++ {
				if i := strings.Index(reading, key[at:at+told]); i >= 0 {
					t.Errorf("%s tells the end of the key from its character %d on: %q", where, at-len(key), reading[max(0, i-60):min(len(reading), i+100)])
					return
				}
			}
		}
	}
}

// requireSafe looks for the key in a whole result, and in what the step found.
func (a *echoAPI) requireSafe(t *testing.T, where, result string) {
	t.Helper()
	var d struct {
		Values struct{ Found struct{ V []string } }
		HTTP   *struct {
			Requests []struct{ Body, ResponseBody *string }
		} `json:"http_requests"`
		Logs []string
	}
	if err := json.Unmarshal([]byte(result), &d); err != nil || len(d.Values.Found.V) != 15 || d.HTTP == nil || len(d.Logs) == 0 {
		t.Fatalf("%s: %v: the step did not read everything: %.3000s", where, err, result)
	}
	for i, text := range d.Values.Found.V {
		raw, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		a.requireUnknown(t, fmt.Sprintf("%s, what the step read (%d)", where, i), string(raw))
	}
	a.requireUnknown(t, where, result)
}

func TestAStepCannotReadItsKeyFromAnAPIThatEchoes(t *testing.T) {
	t.Parallel()
	api := newEchoAPI(t)
	t.Run("run", func(t *testing.T) {
		script := writeFile(t, t.TempDir(), "script.py", keyStep)
		got := sidecar(t, "", nil, "run", "--json", "--script", script, "--declare-output", "found:a[s]", "--api-root", api.URL+"/api")
		api.requireSafe(t, "the document", got.stdout)
		api.requireUnknown(t, "the log", got.stderr)
	})
	t.Run("serve", func(t *testing.T) {
		s := startServe(t, "--api-root", api.URL+"/api")
		for _, what := range []string{"first", "second"} {
			body := script(keyStep).with("output_types", map[string]string{"found": "a[s]"})
			api.requireSafe(t, what+" answer", s.ask("POST", "/api/coderunner/run", body).body)
		}
		api.requireUnknown(t, "the log", s.Log.String())
	})
	t.Run("worker", func(t *testing.T) {
		redisURL, box := startRedisServer(t), newMailbox(t)
		enqueue(t, redisClient(t, redisURL), forFleet("e-1", keyStep).with("output_types", map[string]string{"found": "a[s]"}).with("callback_url", box.URL))
		startWorker(t, redisURL, api.URL+"/api")
		waitFor(t, func() bool { return len(box.of(t, "e-1")) > 1 })
		api.requireSafe(t, "the callback", string(box.of(t, "e-1")[1].message(t).Data.Result))
	})
}

func TestAStepCannotReadItsKeyThroughNginxThatCompresses(t *testing.T) {
	t.Parallel()
	api, address := newEchoAPI(t), sidecartest.FreeAddress(t)
	dir := t.TempDir()
	redistest.StartNginx(t, dir, strings.NewReplacer("DIR", dir, "ADDRESS", address, "API", api.URL).Replace(`
daemon off;
pid DIR/pid;
error_log stderr notice;
events {}
http {
    access_log off;
    client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
    gzip on; gzip_min_length 1; gzip_types *; gzip_http_version 1.0; gzip_proxied any;
    server {
        listen ADDRESS;
        location / { proxy_pass API; proxy_force_ranges on; }
    }
}`))
	waitFor(t, func() bool {
		response, err := http.Get("http://" + address + "/api/none")
		if err == nil {
			response.Body.Close()
		}
		return err == nil
	})
	script := writeFile(t, t.TempDir(), "script.py", keyStep)
	got := sidecar(t, "", nil, "run", "--json", "--script", script, "--declare-output", "found:a[s]", "--api-root", "http://"+address+"/api")
	delete(api.keys, "") // the question above
	api.requireSafe(t, "the document", got.stdout)
}

func TestAnOutputThatHoldsTheKeyFailsTheStep(t *testing.T) {
	api := newEchoAPI(t)
	// An API that spreads the key over fields, which the proxy cannot know, and a step that puts it together.
	api.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("X-API-KEY")
		api.mu.Lock()
		api.keys[key] = true
		api.mu.Unlock()
		_ = json.NewEncoder(w).Encode(strings.Split(key, "")) // the step may have gone
	})
	step := "key = ''.join(kizen.api.get('/x').json())\noutputs.log(key)\nprint(key)\noutputs.x = key"
	s := startServe(t, "--api-root", api.URL+"/api")
	got := s.ask("POST", "/api/coderunner/run", script(step).with("output_types", map[string]string{"x": "s"}))
	if got.status != 400 || !strings.Contains(got.body, `output \"x\" holds the key of this execution`) {
		t.Errorf("%d %s", got.status, got.body)
	}
	api.requireUnknown(t, "the answer", got.body)
	api.requireUnknown(t, "the log", s.Log.String())
}
