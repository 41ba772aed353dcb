package observed

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/payload"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// Canaries are the secrets given to the sidecar, each with a unique text to search for.
const (
	stepSecret    = `canary-Zx81 value/ä?k=%+&"end'`
	tokenSecret   = "canaryTokenQ7mW2vR9"              // also fits where spaces are not allowed
	halfSecret    = "canaryHalfPq4Lw8Tn6BcYe3Hd"       // is sent in two halves
	hexSecret     = "deadbeefcafe4711deadbeefcafe4711" // looks like the id of a trace
	bearerToken   = "canaryBearer-2f6c8d1b7e"          // of a caller of serve
	redisPassword = "canaryRedis8h5Kx2"
	webhookSecret = "whsec_Y2FuYXJ5V2ViaG9va0J5dGVzMDEyMzQ1Njc4" // canaryWebhookBytes012345678
	clientSecret  = "canary-client-71Dk"                         // a client of proxy sends it where credentials belong
)

// leakyStep writes its secrets to every place that a step can write to.
const leakyStep = `
import base64, http.client, os, sys, requests
from urllib.parse import quote, quote_plus, urlsplit
s, token, half, trace = secrets["ACME"], secrets["TOKEN"], secrets["HALF"], secrets["HEX"]
base = os.environ["KIZEN_API_URL"]
kizen.api.post("/env", data=base)
raw = s.encode()
spellings = [quote(s, safe=""), quote(s), quote_plus(s), "".join("%%%02x" % b for b in raw), quote(quote(quote(s, safe=""), safe=""), safe="")]
for pad in (b"", b"a", b"ab"):
    spellings.append(base64.urlsafe_b64encode(pad + raw).decode())
    spellings.append(quote(base64.b64encode(pad + raw + b"tail"), safe=""))
for spelled in spellings:
    kizen.api.get("/in/the/path/" + spelled)
    kizen.api.get("/in/the/query?" + spelled + "&q=" + spelled)
kizen.api.get("/split/" + half[:13] + "?q=" + half[13:])
kizen.api.post("/business-config/import/" + quote(s, safe=""))
kizen.api.get("/x", headers={"x-acme": token, "Authorization": "Bearer " + token, "Cookie": "a=" + token, "tracestate": "acme=" + token})
kizen.api.get("/x", headers={"traceparent": "00-%s-00f067aa0ba902b7-01" % trace})
kizen.api.post("/x", data=raw)
requests.request(token, base + "/method")
parts = urlsplit(base)
connection = http.client.HTTPConnection(parts.netloc)
connection.putrequest("GET", parts.path + "/raw/" + token + "/../.." + token)
connection.endheaders()
connection.getresponse().read()
outputs.log(s); outputs.log(token); print(s); print(token, file=sys.stderr)
raise type("E" + token, (Exception,), {})(s)
`

// canaries maps descriptions to values.
type canaries map[string]string

// forms returns the texts that would reveal a value.
func (c canaries) forms() map[string]string {
	forms := map[string]string{}
	for name, value := range c {
		forms[name] = value
		quoted, _ := json.Marshal(value) // a string always marshals
		forms[name+" in JSON"] = strings.Trim(string(quoted), `"`)
		for shift := range 3 {
			padded := []byte("ab"[:min(shift, 2)] + value)
			for kind, encoding := range map[string]*base64.Encoding{"": base64.RawStdEncoding,
				" for URLs": base64.RawURLEncoding} {
				text := encoding.EncodeToString(padded)
				forms[fmt.Sprintf("%s in base64%s, shifted by %d", name, kind, shift)] = text[(shift*8+5)/6 : len(padded)*8/6]
			}
		}
	}
	return forms
}

// outputs is everything that the sidecar wrote, by place.
type outputs map[string]string

// requireNoCanary searches for canaries, in any number of layers of percent-encoding.
func (where outputs) requireNoCanary(t *testing.T, c canaries) {
	t.Helper()
	forms := c.forms()
	for place, text := range where {
		for plainer := unescaped(text); ; text, plainer = plainer, unescaped(plainer) {
			for form, value := range forms {
				if at := strings.Index(text, value); at >= 0 {
					t.Errorf("%s contains the %s: %q", place, form,
						text[max(0, at-80):min(len(text), at+len(value)+20)])
				}
			}
			if plainer == text {
				break
			}
		}
	}
}

var escape = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// unescaped percent-decodes the valid escapes of a text.
func unescaped(text string) string {
	return escape.ReplaceAllStringFunc(text, func(code string) string {
		char, _ := strconv.ParseUint(code[1:], 16, 8) // two hexadecimal digits
		return string([]byte{byte(char)})
	})
}

// requireText fails if a place does not contain an expected text, because a search of that place would then prove
// nothing.
func (where outputs) requireText(t *testing.T, place string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(where[place], text) {
			t.Errorf("%s does not contain %q: %.2000s", place, text, where[place])
		}
	}
}

// echoingAPI echoes its requests, and records the keys and capabilities that it saw.
type echoingAPI struct {
	*httptest.Server
	mu   sync.Mutex
	seen canaries
	sent int
}

func startEchoingAPI(t *testing.T) *echoingAPI {
	a := &echoingAPI{seen: canaries{}}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		key := r.Header.Get("X-API-KEY")
		a.mu.Lock()
		a.sent++
		if key != "" {
			a.seen["signed key "+strconv.Itoa(len(a.seen))] = key
		}
		if base, err := url.Parse(string(body)); err == nil && r.URL.Path == "/api/env" && len(base.Path) > 1 {
			a.seen["capability"] = strings.Trim(base.Path, "/")
		}
		a.mu.Unlock()
		w.Header().Set("X-Echo", key)
		w.Header().Set("X-Echo-Target", r.RequestURI)
		// Best effort: the caller may have disconnected.
		_, _ = fmt.Fprintf(w, "%s %s %v %s", r.Method, r.RequestURI, r.Header, body)
	}))
	t.Cleanup(a.Close)
	return a
}

// and returns the canaries together with the keys and capabilities that the API saw.
func (a *echoingAPI) and(more canaries) canaries {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen.with(more)
}

// signingKeys returns a directory of keys, and the private part of one.
func signingKeys(t *testing.T) (dir, private string) {
	t.Helper()
	out, err := sidecartest.Command(t.Context(), nil, "keys", "generate").Output()
	if err != nil {
		t.Fatal(err)
	}
	var key struct{ D string }
	if err := json.Unmarshal(out, &key); err != nil || key.D == "" {
		t.Fatalf("%v: no private key in the generated file", err)
	}
	dir = t.TempDir()
	sidecartest.WriteFile(t, dir, "key.jwk", string(out))
	return dir, key.D
}

// eachLog runs a test at every log level, in both formats.
func eachLog(t *testing.T, test func(t *testing.T, level string, environment []string)) {
	for _, level := range []string{"debug", "info", "warn", "error"} {
		for _, format := range []string{"json", "text"} {
			t.Run(level+" "+format, func(t *testing.T) {
				test(t, level, []string{"KIZEN_LOG=" + level, "KIZEN_LOG_FORMAT=" + format})
			})
		}
	}
}

func (c *collector) received() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.raw)
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func exporting(c *collector) []string {
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + c.grpc, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}
}

// requireMasked checks a call's record for the masked forms of the leaky step's targets.
func requireMasked(t *testing.T, where outputs, level string) {
	t.Helper()
	where.requireText(t, "audit", `"path":"/in/the/path/[REDACTED]"`, `"query":"[REDACTED]`, `"path":"/split/[REDACTED]"`,
		`"method":"[REDACTED]"`,
		`"path":"/business-config/import/[REDACTED]"`, `"outcome":"bad_path"`, `/raw/[REDACTED]`)
	where.requireText(t, "collector", "/in/the/path/[REDACTED]", "/split/[REDACTED]?q=REDACTED",
		"kizen.execution.duration")
	if level == "debug" {
		where.requireText(t, "log", "/in/the/path/[REDACTED]", "/split/[REDACTED]")
	}
}

var stepCanaries = canaries{"step's secret": stepSecret, "step's token": tokenSecret,
	"step's hexadecimal secret": hexSecret}

// TestServeLeaksNoSecret: no answer, stream, callback, page, metric, log, audit or exported span of serve contains a
// secret, at each level and format of the log. The step itself tries to leak through all of them at once.
func TestServeLeaksNoSecret(t *testing.T) {
	redisURL := "redis://:" + redisPassword + "@" + redistest.Start(t, "--requirepass", redisPassword).Addr + "/0"
	keys, private := signingKeys(t)
	dir := t.TempDir()
	token := sidecartest.WriteFile(t, dir, "token", bearerToken)
	arguments := []string{
		"--ui", "--redis-url", redisURL, "--keys", keys, "--webhook-allow", "127.0.0.0/8",
		"--secrets-file", stepSecretsFile(t),
		"--webhook-secret-file", sidecartest.WriteFile(t, dir, "webhook", webhookSecret),
		"--callers", sidecartest.WriteFile(t, dir, "callers.yaml",
			fmt.Sprintf("- {name: c, token_file: %q, business_id: b-1, user_id: u-1}\n", token)),
	}
	executions := 0
	eachLog(t, func(t *testing.T, level string, environment []string) {
		executions++ // Redis remembers each id for a week, and refuses to run it again
		id := fmt.Sprintf("e-%d", executions)
		c, upstream := startCollector(t), startEchoingAPI(t)
		receiver, callback := startReceiver(t)
		audit := filepath.Join(t.TempDir(), "audit")
		s := serve(t, append(environment, exporting(c)...),
			append(arguments, "--audit-file", audit, "--api-root", upstream.URL+"/api")...)
		body := script(leakyStep)
		body["execution_id"], body["callback_url"], body["secrets"] = id, receiver, []string{"ACME", "TOKEN", "HALF", "HEX"}
		where := outputs{
			"submission": s.asCaller(http.MethodPost, "/executions", body),
			"stream":     s.asCaller(http.MethodGet, "/executions/"+id+"/events", nil), // to its end
			"callback":   callback(),
		}
		delete(body, "execution_id")
		delete(body, "callback_url")
		where["answer"] = s.asCaller(http.MethodPost, "/api/coderunner/run", body)
		for _, path := range []string{"/executions", "/executions/" + id, "/executions/" + id + "/record", "/ui/",
			"/openapi.json"} {
			where[path] = s.asCaller(http.MethodGet, path, nil)
		}
		where["metrics"] = s.Metrics()
		_, where["readiness"] = s.Readiness()
		s.stop()
		where["log"], where["audit"], where["collector"] = s.Log.String(), read(t, audit), c.received()

		requireMasked(t, where, level)
		where.requireText(t, "stream", "event:finished", "[REDACTED]")
		where.requireText(t, "callback", id)
		where.requireText(t, "/executions/"+id+"/record", "secrets[", "[REDACTED]")
		where.requireText(t, "answer", `"count":`, "[REDACTED]")
		where.requireText(t, "metrics", "kizen_execution_duration_seconds")
		all := upstream.and(stepCanaries).with(canaries{
			"bearer token": bearerToken, "password of redis": redisPassword,
			"webhook secret": strings.TrimPrefix(webhookSecret, "whsec_"), "signing key": private,
		})
		where.requireNoCanary(t, all)
		// The step's own record of its requests, returned to its owner, masks only whole secrets.
		outputs{"audit": where["audit"], "log": where["log"], "collector": where["collector"], "metrics": where["metrics"]}.
			requireNoCanary(t, canaries{"first half": halfSecret[:13], "second half": halfSecret[13:]})
	})
}

// TestRunLeaksNoSecret: the same secrets stay out of the terminal, the report, the log, the audit and the collector of
// a run.
func TestRunLeaksNoSecret(t *testing.T) {
	redisURL := "redis://:" + redisPassword + "@" + redistest.Start(t, "--requirepass", redisPassword).Addr + "/0"
	keys, private := signingKeys(t)
	file := sidecartest.WriteFile(t, t.TempDir(), "script.py", leakyStep)
	eachLog(t, func(t *testing.T, level string, environment []string) {
		for _, flag := range []string{"-v", "--verbose", "--json"} {
			if flag != "-v" && level != "info" {
				continue // --verbose sets the level itself, and the document of --json is the same at each level
			}
			c, upstream := startCollector(t), startEchoingAPI(t)
			audit, report := filepath.Join(t.TempDir(), "audit"), filepath.Join(t.TempDir(), "out.html")
			environment := append(environment, exporting(c)...)
			environment = append(environment, "ACME="+stepSecret, "TOKEN="+tokenSecret, "HALF="+halfSecret, "HEX="+hexSecret,
				"REDIS_URL="+redisURL)
			ran := sidecartest.Command(t.Context(), environment,
				[]string{"run", flag, "--script", file, "--secret", "ACME", "--secret", "TOKEN", "--secret", "HALF",
					"--secret", "HEX", "--keys", keys, "--api-root", upstream.URL + "/api", "--audit-file", audit, "--report",
					report}...)
			var log strings.Builder
			ran.Stderr = &log
			page, err := ran.Output()
			if ran.ProcessState == nil || ran.ProcessState.ExitCode() != 1 {
				t.Fatalf("%s: %v\n%s%s", flag, err, page, &log)
			}
			where := outputs{"page": string(page), "log": log.String(), "audit": read(t, audit), "report": read(t, report),
				"collector": c.received()}
			if flag == "--verbose" {
				requireMasked(t, where, "debug")
			} else {
				requireMasked(t, where, level)
			}
			where.requireText(t, "report", "[REDACTED]", "/in/the/path/")
			where.requireText(t, "page", "[REDACTED]")
			where.requireNoCanary(t, upstream.and(stepCanaries).with(canaries{"password of redis": redisPassword,
				"signing key": private}))
			outputs{"audit": where["audit"], "log": where["log"], "collector": where["collector"]}.
				requireNoCanary(t, canaries{"first half": halfSecret[:13], "second half": halfSecret[13:]})
		}
	})
}

// TestProxyLeaksNoSecret: secrets that a client puts into URLs, headers and bodies stay out of the proxy's answers,
// log, audit and spans, and so do its own key and address.
func TestProxyLeaksNoSecret(t *testing.T) {
	server := redistest.Start(t, "--requirepass", redisPassword)
	keys, private := signingKeys(t)
	eachLog(t, func(t *testing.T, level string, environment []string) {
		c, upstream := startCollector(t), startEchoingAPI(t)
		audit := filepath.Join(t.TempDir(), "audit")
		p := sidecartest.StartProxy(t, append(environment, exporting(c)...),
			"--api-root", upstream.URL+"/api", "--audit-file", audit, "--keys", keys, "--redis-url",
			"redis://:"+redisPassword+"@"+server.Addr+"/0")
		base, err := url.Parse(p.URL)
		if err != nil {
			t.Fatal(err)
		}
		where := outputs{}
		for i, target := range []string{
			p.URL + "/x?access_token=" + clientSecret + "&q=1", p.URL + "/x?u=ghp_" + strings.Repeat("k9", 18),
			p.URL + "/x/eyJhbGciOiJFZERTQSJ9.e30.c2ln",
			p.URL + "/..%2fx", "http://" + base.Host + "/x", p.URL + "/business-config/import?password=" + clientSecret,
		} {
			method := http.MethodGet
			if strings.Contains(target, "import") {
				method = http.MethodPost
			}
			request, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader("body "+clientSecret))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"Authorization", "Cookie", "X-API-KEY", "X-Acme", "Proxy-Authorization"} {
				request.Header.Set(name, clientSecret)
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			where["answer "+strconv.Itoa(i)] = fmt.Sprint(response.Header, string(text))
		}
		if code := p.Stop(t, syscall.SIGTERM); code != 0 {
			t.Errorf("the proxy ended with %d", code)
		}
		record := outputs{"log": p.Log.String(), "audit": read(t, audit), "collector": c.received()}
		record.requireText(t, "audit", `access_token=[REDACTED]\u0026q=1`, "u=[REDACTED]", `"path":"/x/[REDACTED]"`,
			`"outcome":"bad_path"`, `"outcome":"forbidden"`, `"decision":"deny"`)
		record.requireText(t, "collector", "url.full", "kizen.policy.id")
		if level == "debug" {
			record.requireText(t, "log", "/x/[REDACTED]")
		}
		capability := strings.Trim(base.Path, "/")
		if capability == "" {
			t.Fatal("the proxy's address has no capability")
		}
		secrets := upstream.and(canaries{"password of redis": redisPassword, "signing key": private,
			"capability": capability})
		where.requireNoCanary(t, secrets)
		record.requireNoCanary(t, secrets.with(canaries{
			"client's secret": clientSecret, "token of a shape": "ghp_k9k9", "token of another": "eyJhbGciOiJFZERTQSJ9",
		}))
	})
}

// startReceiver starts a receiver of callbacks; callback waits for the first one.
func startReceiver(t *testing.T) (address string, callback func() string) {
	called := make(chan string, 1)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		select {
		case called <- fmt.Sprint(r.Header, string(body)):
		default: // a repetition
		}
	}))
	t.Cleanup(receiver.Close)
	return receiver.URL, func() string {
		t.Helper()
		select {
		case text := <-called:
			return text
		case <-time.After(5 * time.Minute):
			t.Fatal("no callback arrived")
			return ""
		}
	}
}

// storedIn returns everything stored in a Redis, decompressed: a secret must not hide in a compressed result.
func storedIn(t *testing.T, client *redis.Client) string {
	t.Helper()
	var all strings.Builder
	for _, key := range client.Keys(t.Context(), "*").Val() {
		var held any
		switch client.Type(t.Context(), key).Val() {
		case "string":
			held = expanded(t, client.Get(t.Context(), key).Val())
		case "hash":
			fields := client.HGetAll(t.Context(), key).Val()
			for name, value := range fields {
				fields[name] = expanded(t, value)
			}
			held = fields
		case "list":
			held = client.LRange(t.Context(), key, 0, -1).Val()
		case "set":
			held = client.SMembers(t.Context(), key).Val()
		case "zset":
			held = client.ZRange(t.Context(), key, 0, -1).Val()
		case "stream":
			held = client.XRange(t.Context(), key, "-", "+").Val()
		}
		fmt.Fprintln(&all, key, held)
	}
	return all.String()
}

func expanded(t *testing.T, stored string) string {
	t.Helper()
	text, err := payload.Expand([]byte(stored))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestAWorkerLeaksNoSecretAndLeavesNoneInRedis: besides its outputs, everything that a worker and its queue store in a
// real Redis contains no secret.
func TestAWorkerLeaksNoSecretAndLeavesNoneInRedis(t *testing.T) {
	server := redistest.Start(t, "--requirepass", redisPassword)
	client := redis.NewClient(&redis.Options{Addr: server.Addr, Password: redisPassword})
	defer func() { _ = client.Close() }()
	keys, private := signingKeys(t)
	c, upstream := startCollector(t), startEchoingAPI(t)
	receiver, callback := startReceiver(t)
	payload, err := json.Marshal(map[string]any{
		"runtime": "python-3-13", "user_script": leakyStep, "execution_id": "e-1", "business_id": "b-1", "user_id": "u-1",
		"callback_url": receiver,
		"secrets":      []string{"ACME", "TOKEN", "HALF", "HEX"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := asynq.NewClientFromRedisClient(client).EnqueueContext(t.Context(), asynq.NewTask(wire.ExecutionTask, payload), asynq.Queue("kizen")); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	audit := filepath.Join(dir, "audit")
	w := sidecartest.StartService(t, append(exporting(c), "KIZEN_LOG=debug"), "worker", "--redis-url",
		"redis://:"+redisPassword+"@"+server.Addr+"/0", "--keys", keys,
		"--api-root", upstream.URL+"/api", "--audit-file", audit, "--webhook-allow", "127.0.0.0/8", "--webhook-secret-file",
		sidecartest.WriteFile(t, dir, "webhook", webhookSecret),
		"--secrets-file", stepSecretsFile(t))
	where := outputs{"callback": callback(), "metrics": w.Metrics()}
	where["redis"] = storedIn(t, client)
	if code := w.Stop(); code != 0 {
		t.Errorf("the worker ended with %d", code)
	}
	where["log"], where["audit"], where["collector"] = w.Log.String(), read(t, audit), c.received()
	requireMasked(t, where, "debug")
	where.requireText(t, "callback", "e-1")
	where.requireText(t, "redis", "e-1", "/in/the/path/")
	where.requireNoCanary(t, upstream.and(stepCanaries).with(canaries{
		"password of redis": redisPassword, "webhook secret": strings.TrimPrefix(webhookSecret, "whsec_"),
		"signing key": private,
	}))
}

// stepSecretsFile writes the file of the secrets granted to the leaky step.
func stepSecretsFile(t *testing.T) string {
	t.Helper()
	secrets, err := json.Marshal(map[string]any{"b-1": map[string]string{"ACME": stepSecret, "TOKEN": tokenSecret,
		"HALF": halfSecret, "HEX": hexSecret}})
	if err != nil {
		t.Fatal(err)
	}
	return sidecartest.WriteFile(t, t.TempDir(), "secrets.json", string(secrets))
}

// TestARedisThatRefusesIsReportedWithoutItsPassword: a wrong URL, a wrong password or a missing server is reported
// without the password, by run, proxy and serve. Errors of the URL parser and the client library can contain it.
func TestARedisThatRefusesIsReportedWithoutItsPassword(t *testing.T) {
	refusing := []string{
		"redis://:" + redisPassword + "@" + redistest.Start(t, "--requirepass", "another").Addr + "/0",
		"redis://:" + redisPassword + "@" + sidecartest.FreeAddress(t) + "/0",
	}
	wrong := []string{"redis://:" + redisPassword + "@127.0.0.1:port/0", "redis://" + redisPassword + "@127.0.0.1:1/none"}
	for _, redisURL := range append(wrong, refusing...) {
		for _, command := range []string{"run", "proxy"} {
			arguments := map[string][]string{"run": {"--script", os.DevNull}}[command]
			arguments = append([]string{command, "--redis-timeout", "1s"}, arguments...)
			failed := sidecartest.Command(t.Context(), []string{"KIZEN_LOG=debug", "REDIS_URL=" + redisURL}, arguments...)
			output, err := failed.CombinedOutput()
			if err == nil || !strings.Contains(string(output), "redis") {
				t.Errorf("%s: %v: %s", command, err, output)
			}
			outputs{command: string(output)}.requireNoCanary(t, canaries{"password of redis": redisPassword})
		}
	}
	for _, redisURL := range refusing { // serve waits for its Redis, and reports that
		s := serve(t, []string{"KIZEN_LOG=debug"}, "--redis-timeout", "1s", "--redis-url", redisURL)
		status, readiness := s.Readiness()
		if status != http.StatusServiceUnavailable || !strings.Contains(readiness, "redis") {
			t.Errorf("readiness is %d %s", status, readiness)
		}
		_, answer := s.run("", script("pass"))
		s.stop()
		outputs{"readiness": readiness, "answer": answer, "log": s.Log.String()}.requireNoCanary(t,
			canaries{"password of redis": redisPassword})
	}
}

// TestTheOperatorsProxyIsReportedWithoutItsPassword: if the operator's proxy refuses, the answer, the log, the audit
// and the spans say so without its password.
func TestTheOperatorsProxyIsReportedWithoutItsPassword(t *testing.T) {
	c, audit := startCollector(t), filepath.Join(t.TempDir(), "audit")
	way := "http://user:" + clientSecret + "@" + sidecartest.FreeAddress(t)
	p := sidecartest.StartProxy(t, append(exporting(c), "KIZEN_LOG=debug", "HTTP_PROXY="+way, "NO_PROXY=127.0.0.1"),
		"--api-root", "http://api.example/api", "--insecure-api", "--prewarm", "1", "--audit-file", audit)
	response, err := http.Get(p.URL + "/custom-objects")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusBadGateway {
		t.Fatalf("%d, %v: %s", response.StatusCode, err, answer)
	}
	if code := p.Stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("the proxy ended with %d", code)
	}
	where := outputs{"answer": string(answer), "log": p.Log.String(), "audit": read(t, audit), "collector": c.received()}
	where.requireText(t, "audit", "api_unreachable", "refused")
	where.requireText(t, "log", "ahead of time", `"msg":"call"`)
	where.requireNoCanary(t, canaries{"password of the operator's proxy": clientSecret})
}

// with returns the canaries together with more.
func (c canaries) with(more canaries) canaries {
	all := maps.Clone(c)
	maps.Copy(all, more)
	return all
}

// asCaller calls serve with the caller's token, and returns the headers and body of the response.
func (s *served) asCaller(method, path string, body any) string {
	s.t.Helper()
	var sent io.Reader = http.NoBody
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			s.t.Fatal(err)
		}
		sent = strings.NewReader(string(text))
	}
	request, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, sent)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+bearerToken)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode >= 500 {
		s.t.Fatalf("%s %s: %d %v\n%s", method, path, response.StatusCode, err, text)
	}
	return fmt.Sprint(response.Header, string(text))
}
