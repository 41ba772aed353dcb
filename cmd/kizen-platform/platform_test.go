package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

// TestMain lets the test binary stand in for kizen-platform, so that a test can send signals to a real process.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_AS_PLATFORM") != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

const (
	testBusiness = "00000000-0000-4000-8000-00000000b001"
	testAccount  = "00000000-0000-4000-8000-00000000c0de"
)

func TestEveryAnswerNamesTheAccountItWasDoneAs(t *testing.T) {
	w := start(t)
	created := w.call("POST", "/records/orders", `{"fields": [{"name": "total", "value": 12.50}]}`)
	id, _ := created.body["id"].(string)
	for _, call := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/custom-objects", "", 200},
		{"GET", "/team", "", 200},
		{"GET", "/team/1b4e28ba-2fa1-41d2-883f-0016d3cca427", "", 200},
		{"GET", "/team/" + testAccount, "", 200},
		{"GET", "/records/orders", "", 200},
		{"POST", "/records/orders/search", "{}", 200},
		{"GET", "/records/orders/" + id, "", 200},
		{"PATCH", "/records/orders/" + id, `{"fields": []}`, 200},
		{"DELETE", "/records/orders/" + id, "", 204},
	} {
		got := w.call(call.method, call.path, call.body)
		if got.status != call.status || got.header.Get(minter.HeaderAccount) != testAccount {
			t.Errorf("%s %s: %d as %q", call.method, call.path, got.status, got.header.Get(minter.HeaderAccount))
		}
		performer, _ := got.body["performed_by"].(map[string]any)
		if call.status != 204 && (performer["id"] != testAccount || performer["name"] != "Agentic Workflow Code Account" ||
			performer["account_type"] != "service_automation" || performer["execution_id"] != "execution-1") {
			t.Errorf("%s %s: performed_by is %v", call.method, call.path, performer)
		}
	}
}

func TestCustomObjectsAreCountedAndPaged(t *testing.T) {
	w := start(t)
	var names []string
	path := "/custom-objects?page_size=3"
	for pages := 0; path != ""; pages++ {
		if pages > 3 {
			t.Fatal("the pages do not end")
		}
		got := w.call("GET", path, "")
		if got.body["count"] != float64(7) {
			t.Fatalf("count is %v", got.body["count"])
		}
		for _, object := range got.body["results"].([]any) {
			names = append(names, object.(map[string]any)["name"].(string))
		}
		path, _ = got.body["next"].(string)
	}
	if got := strings.Join(names, " "); got != "contacts companies deals orders subscriptions support_tickets invoices" {
		t.Errorf("the pages hold %s", got)
	}
	if got := w.call("GET", "/custom-objects?page=2147483647&page_size=100", ""); got.status != 200 || len(got.body["results"].([]any)) != 0 {
		t.Errorf("a page after the last: %d %v", got.status, got.body)
	}
}

func TestRecordLivesFromCreateToDelete(t *testing.T) {
	w := start(t)
	created := w.call("POST", "/records/deals", `{"fields": [{"name": "name", "value": "Acme"}, {"name": "value", "value": 12345678901234567890}]}`)
	if created.status != 201 {
		t.Fatalf("create: %d %v", created.status, created.body)
	}
	path := "/records/deals/" + created.body["id"].(string)
	if got := w.call("PATCH", path, `{"fields": [{"name": "name", "value": "Acme Ltd"}, {"name": "won", "value": true}]}`); got.status != 200 {
		t.Fatalf("patch: %d %v", got.status, got.body)
	}
	read := w.call("GET", path, "")
	fields, _ := json.Marshal(read.body["fields"])
	want := `[{"name":"name","value":"Acme Ltd"},{"name":"value","value":12345678901234567000},{"name":"won","value":true}]`
	if string(fields) != want {
		t.Errorf("fields are %s, want %s", fields, want)
	}
	other := w.headersFor(w.mint(minter.Identity{AccountID: "a2", AccountType: "service_automation", BusinessID: "b2", ExecutionID: "e2"}))
	if got := w.callAs(other, "GET", path, ""); got.status != 404 {
		t.Errorf("another business reads the record: %d", got.status)
	}
	if got := w.call("DELETE", path, ""); got.status != 204 {
		t.Errorf("delete: %d", got.status)
	}
	for _, method := range []string{"GET", "DELETE"} {
		if got := w.call(method, path, ""); got.status != 404 {
			t.Errorf("%s after delete: %d", method, got.status)
		}
	}
}

func TestSearchFiltersOrdersAndPages(t *testing.T) {
	w := start(t)
	for _, fields := range []string{
		`[{"name":"stage","value":"open"},{"name":"total","value":9}]`,
		`[{"name":"stage","value":"Won"},{"name":"total","value":10}]`,
		`[{"name":"stage","value":"won"},{"name":"total","value":100},{"name":"note","value":"rush"}]`,
	} {
		if got := w.call("POST", "/records/deals", `{"fields":`+fields+`}`); got.status != 201 {
			t.Fatalf("create: %d %v", got.status, got.body)
		}
	}
	for name, c := range map[string]struct{ query, body, totals string }{
		"everything":            {"", `{}`, "9 10 100"},
		"equal ignores case":    {"", `{"filters":[{"field":"stage","condition":"=","value":"WON"}]}`, "10 100"},
		"unequal":               {"", `{"filters":[{"field":"stage","condition":"!=","value":"won"}]}`, "9"},
		"contains":              {"", `{"filters":[{"field":"total","condition":"contains","value":"0"}]}`, "10 100"},
		"absent equals null":    {"", `{"filters":[{"field":"note","condition":"=","value":null}]}`, "9 10"},
		"text in any field":     {"", `{"search":"RUSH"}`, "100"},
		"numbers sort by size":  {"", `{"ordering":"total"}`, "9 10 100"},
		"descending, one page":  {"?page_size=1&page=2", `{"ordering":"-total"}`, "10"},
		"absent sorts first":    {"", `{"ordering":"-note"}`, "100 9 10"},
		"newest first":          {"", `{"ordering":"-created_at"}`, "100 10 9"},
		"every filter must fit": {"", `{"search":"rush","filters":[{"field":"stage","condition":"=","value":"open"}]}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := w.call("POST", "/records/deals/search"+c.query, c.body)
			if got.status != 200 {
				t.Fatalf("%d %v", got.status, got.body)
			}
			var totals []string
			for _, r := range got.body["results"].([]any) {
				total, _ := json.Marshal(r.(map[string]any)["fields"].([]any)[1].(map[string]any)["value"])
				totals = append(totals, string(total))
			}
			if strings.Join(totals, " ") != c.totals {
				t.Errorf("found %v, want %s", totals, c.totals)
			}
		})
	}
}

func TestBadInputIsRefusedByField(t *testing.T) {
	w := start(t)
	for name, c := range map[string]struct{ method, path, body, field string }{
		"page that is not a number":   {"GET", "/team?page=one", "", "page"},
		"page zero":                   {"GET", "/custom-objects?page=0", "", "page"},
		"page size over the limit":    {"GET", "/records/deals?page_size=101", "", "page_size"},
		"no body":                     {"POST", "/records/deals", "", "body"},
		"broken JSON":                 {"POST", "/records/deals", "{", "body"},
		"two bodies":                  {"POST", "/records/deals", `{"fields":[]}{}`, "body"},
		"a list for a body":           {"POST", "/records/deals", "[]", "body"},
		"no fields":                   {"POST", "/records/deals", "{}", "fields"},
		"null fields":                 {"POST", "/records/deals", `{"fields":null}`, "fields"},
		"fields of the wrong type":    {"POST", "/records/deals", `{"fields":"x"}`, "fields"},
		"field without a name":        {"POST", "/records/deals", `{"fields":[{"value":1}]}`, "fields[0].name"},
		"field with a bad name":       {"POST", "/records/deals", `{"fields":[{"name":"A b","value":1}]}`, "fields[0].name"},
		"field without a value":       {"POST", "/records/deals", `{"fields":[{"name":"a"}]}`, "fields[0].value"},
		"field given twice":           {"POST", "/records/deals", `{"fields":[{"name":"a","value":1},{"name":"a","value":2}]}`, "fields[1].name"},
		"unknown condition":           {"POST", "/records/deals/search", `{"filters":[{"field":"a","condition":"~","value":1}]}`, "filters[0].condition"},
		"filter without a field":      {"POST", "/records/deals/search", `{"filters":[{"condition":"=","value":1}]}`, "filters[0].field"},
		"ordering that is not a name": {"POST", "/records/deals/search", `{"ordering":"a b"}`, "ordering"},
	} {
		t.Run(name, func(t *testing.T) {
			got := w.call(c.method, c.path, c.body)
			if messages, _ := got.body[c.field].([]any); got.status != 400 || len(messages) != 1 {
				t.Errorf("got %d %v, want 400 with %q", got.status, got.body, c.field)
			}
		})
	}
}

func TestWhatIsNotThereIsSaidInJSON(t *testing.T) {
	w := start(t)
	for name, c := range map[string]struct {
		method, path string
		status       int
		code         string
	}{
		"unknown route":          {"GET", "/nothing", 404, "not_found"},
		"the root given twice":   {"GET", "/api/custom-objects", 404, "not_found"},
		"trailing slash":         {"GET", "/custom-objects/", 404, "not_found"},
		"unknown object":         {"GET", "/records/nothing", 404, "not_found"},
		"unknown record":         {"GET", "/records/deals/x%2Fy", 404, "not_found"},
		"unknown member":         {"GET", "/team/nobody", 404, "not_found"},
		"method of another call": {"PUT", "/custom-objects", 405, "method_not_allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			got := w.call(c.method, c.path, "")
			if got.status != c.status || got.body["code"] != c.code || got.body["detail"] == "" {
				t.Errorf("got %d %v", got.status, got.body)
			}
			if c.status == 405 && got.header.Get("Allow") != "GET, HEAD" {
				t.Errorf("Allow is %q", got.header.Get("Allow"))
			}
		})
	}
}

func TestOnlyAKeyThatIsValidNowPasses(t *testing.T) {
	w := start(t)
	good := w.mint(identity())
	revoked := w.mint(identity())
	must(t, w.minter.Revoke(t.Context(), revoked))
	change := func(name string, values ...string) http.Header {
		h := w.headersFor(good)
		h.Del(name)
		for _, v := range values {
			h.Add(name, v)
		}
		return h
	}
	token := good.Token.Reveal()
	for name, c := range map[string]struct {
		headers http.Header
		code    string
	}{
		"no key":                 {change(minter.HeaderKey), minter.CodeMissing},
		"no business":            {change(minter.HeaderBusiness), minter.CodeMissing},
		"empty user":             {change(minter.HeaderUser, ""), minter.CodeUser},
		"two keys":               {change(minter.HeaderKey, token, token), minter.CodeMalformed},
		"not a key":              {change(minter.HeaderKey, "abc"), minter.CodeMalformed},
		"signature cut off":      {change(minter.HeaderKey, token[:strings.LastIndex(token, ".")+1]), ""},
		"another business":       {change(minter.HeaderBusiness, "b2"), minter.CodeBusiness},
		"another user":           {change(minter.HeaderUser, "a2"), minter.CodeUser},
		"revoked":                {w.headersFor(revoked), minter.CodeRevoked},
		"key as a bearer token":  {http.Header{"Authorization": {"Bearer " + token}}, minter.CodeMissing},
		"key in the query alone": {change(minter.HeaderKey), minter.CodeMissing},
	} {
		t.Run(name, func(t *testing.T) {
			got := w.callAs(c.headers, "GET", "/custom-objects?x-api-key="+token, "")
			if got.status != 401 || c.code != "" && got.body["code"] != c.code || got.body["detail"] == "" {
				t.Errorf("got %d %v, want 401 %s", got.status, got.body, c.code)
			}
			if got.header.Get("WWW-Authenticate") == "" || got.header.Get(minter.HeaderAccount) != "" {
				t.Errorf("headers are %v", got.header)
			}
		})
	}
	if got := w.callAs(w.headersFor(good), "GET", "/custom-objects", ""); got.status != 200 {
		t.Errorf("the good key: %d %v", got.status, got.body)
	}
}

func TestNothingPassesWhileTheStoreIsDown(t *testing.T) {
	w := start(t)
	w.store.Close()
	if got := w.call("GET", "/custom-objects", ""); got.status != 503 || got.body["code"] != "store_unavailable" {
		t.Errorf("got %d %v", got.status, got.body)
	}
	root := w.root
	w.root = strings.TrimSuffix(root, apiRoot)
	if got := w.call("GET", "/healthz", ""); got.status != 503 {
		t.Errorf("healthz: %d %v", got.status, got.body)
	}
}

func TestHealthNeedsNoKey(t *testing.T) {
	w := start(t)
	w.root = strings.TrimSuffix(w.root, apiRoot)
	if got := w.callAs(nil, "GET", "/healthz", ""); got.status != 200 || got.body["status"] != "ok" {
		t.Errorf("got %d %v", got.status, got.body)
	}
}

func TestTeamListHoldsPeopleOnly(t *testing.T) {
	w := start(t)
	for _, m := range w.call("GET", "/team", "").body["results"].([]any) {
		if accountType := m.(map[string]any)["account_type"]; accountType != policy.Employee {
			t.Errorf("the public list holds a %v", accountType)
		}
	}
}

func TestWrongUsageEndsWithTwoAndOneLine(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = taken.Close() }()
	for name, c := range map[string]struct {
		arguments []string
		code      int
		message   string
	}{
		"unknown flag":              {[]string{"--nothing"}, exitUsage, "unknown flag --nothing"},
		"address without a port":    {[]string{"--listen", "localhost"}, exitUsage, `--listen "localhost" is not an address`},
		"redis url without scheme":  {[]string{"--redis-url", "localhost"}, exitUsage, "redis"},
		"unknown log level":         {[]string{"--log-level", "loud"}, exitUsage, `unknown log level "loud"`},
		"port taken":                {[]string{"--listen", taken.Addr().String()}, exitPlatform, "choose another --listen"},
		"ready file nowhere":        {[]string{"--listen", "127.0.0.1:0", "--ready-file", "/nowhere/ready"}, exitPlatform, `--ready-file "/nowhere/ready"`},
		"env file nowhere":          {[]string{"--listen", "127.0.0.1:0", "--env-file", "/nowhere/env"}, exitPlatform, `--env-file "/nowhere/env"`},
		"development keys":          {[]string{"--listen", "0.0.0.0:0", "--redis-url", "redis://redis.invalid:6379"}, exitUsage, "no keys are configured, and other machines can reach redis and --listen; configure keys with --keys"},
		"the same on every address": {[]string{"--listen", ":0", "--redis-url", "redis://redis.invalid:6379"}, exitUsage, "no keys are configured"},
		"secret in a bad url":       {[]string{"--redis-url", "htp://u:pa55word@h"}, exitUsage, "redis"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KIZEN_LOG", "error")
			var out, log bytes.Buffer
			code := run(t.Context(), c.arguments, &out, &log)
			if code != c.code || !strings.Contains(log.String(), c.message) || strings.Count(log.String(), "\n") != 1 || out.Len() > 0 {
				t.Errorf("exit %d, out %q, log %q", code, out.String(), log.String())
			}
			if strings.Contains(log.String(), "pa55word") {
				t.Errorf("the password is in the log: %s", log.String())
			}
		})
	}
}

func TestHelpShowsExamplesAndEveryEnvironmentVariable(t *testing.T) {
	var out, log bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, &out, &log); code != exitOK || log.Len() > 0 {
		t.Fatalf("exit %d, log %q", code, log.String())
	}
	for _, want := range []string{"kizen-platform --env-file platform.env",
		"$KIZEN_LISTEN", "$KIZEN_REDIS_URL", "$REDIS_URL", "$KIZEN_REDIS_TIMEOUT", "$KIZEN_READY_FILE", "$KIZEN_LOG", "$KIZEN_LOG_FORMAT"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the help lacks %q", want)
		}
	}
}

func TestEnvironmentSetsTheRedisURL(t *testing.T) {
	store, err := redisconn.StartEmbedded()
	must(t, err)
	defer store.Close()
	must(t, store.Share("127.0.0.1:0"))
	t.Setenv("REDIS_URL", store.URL())
	if at, _ := startPlatform(t); at.RedisURL != store.URL() {
		t.Errorf("redis_url is %s", at.RedisURL)
	}
}

func TestTheEnvFileIsWhatASidecarNeedsAndItsOwnersAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	at, _ := startPlatform(t, "--env-file", file)
	text, err := os.ReadFile(file)
	must(t, err)
	if want := "KIZEN_API_ROOT=" + at.APIRoot + "\nREDIS_URL=" + at.RedisURL + "\n"; string(text) != want || !strings.Contains(want, "@") {
		t.Errorf("%q, want %q, a password in it", text, want)
	}
	about, err := os.Stat(file)
	must(t, err)
	if about.Mode() != 0o600 {
		t.Errorf("its mode is %v", about.Mode())
	}
}

func TestSignalsEndThePlatformCleanly(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "ready.json")
			command := exec.CommandContext(t.Context(), os.Args[0], "--listen", "127.0.0.1:0", "--ready-file", file, "--log-format", "json")
			command.Env = []string{"TEST_AS_PLATFORM=1", "GORACE=atexit_sleep_ms=0"}
			log, err := command.StderrPipe()
			must(t, err)
			must(t, command.Start())
			reader := bufio.NewReader(log)
			waitForListening(t, reader)
			at := readReady(t, file)
			if !strings.HasPrefix(at.APIRoot, "http://127.0.0.1:") || !strings.HasPrefix(at.RedisURL, "redis://:") {
				t.Errorf("ready file says %+v", at)
			}
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("ready file: %v %v", info.Mode(), err)
			}
			must(t, command.Process.Signal(signal))
			_, _ = io.Copy(io.Discard, reader)
			if err := command.Wait(); err != nil {
				t.Errorf("the platform ended with %v", err)
			}
		})
	}
}
