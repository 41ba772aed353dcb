package platform

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// TestMain lets the test binary run as a platform, so that tests can send signals to a real process.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_AS_PLATFORM") != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		err := run(ctx, os.Args[1:], os.Stderr)
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exit.Failed)
		}
		os.Exit(exit.OK)
	}
	goleak.VerifyTestMain(m)
}

// ready is the content of the ready file.
type ready struct{ APIRoot, RedisURL string }

// run serves a platform until ctx ends, with the flags of kizen-platform that tests need.
func run(ctx context.Context, arguments []string, log io.Writer) error {
	flags := flag.NewFlagSet("platform", flag.ContinueOnError)
	var level, dir, domain, file string
	var at ready
	flags.StringVar(&level, "log-level", cmp.Or(os.Getenv("KIZEN_LOG"), "info"), "")
	flags.StringVar(&dir, "keys", "", "")
	flags.StringVar(&domain, "email-domain", "serviceaccounts.kizen.com", "")
	flags.StringVar(&file, "ready-file", "", "")
	flags.StringVar(&at.RedisURL, "redis-url", "", "")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	logger, err := telemetry.NewLogger(log, telemetry.LogConfig{Level: level, Format: "json"})
	if err != nil {
		return err
	}
	keys, err := minter.GenerateKeySet()
	if dir != "" {
		keys, err = minter.LoadKeySet(minter.KeySetConfig{Path: dir})
	}
	if err != nil {
		return err
	}
	if at.RedisURL == "" {
		embedded, err := redisconn.StartEmbedded()
		if err != nil {
			return err
		}
		defer embedded.Close()
		if err := embedded.Share("127.0.0.1:0"); err != nil {
			return err
		}
		at.RedisURL = embedded.URL()
	}
	client, err := redisconn.Open(redisconn.Config{URL: at.RedisURL})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	served, err := New(Config{Redis: client, Keys: keys, TrustPublished: dir == "", EmailDomain: domain, Log: logger})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	return served.Serve(ctx, listener, func(root string) error {
		at.APIRoot = root
		text, err := json.Marshal(at)
		if err == nil {
			err = wholefile.Write(file, text, 0o600)
		}
		logger.Info("listening", "api_root", root)
		return err
	})
}

const (
	testBusiness = "00000000-0000-4000-8000-00000000b001"
	testAccount  = "00000000-0000-4000-8000-00000000c0de"
)

func TestEveryAnswerNamesTheActingAccount(t *testing.T) {
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
		t.Errorf("the pages contain %s", got)
	}
	if got := w.call("GET", "/custom-objects?page=2147483647&page_size=100", ""); got.status != 200 ||
		len(got.body["results"].([]any)) != 0 {
		t.Errorf("a page after the last: %d %v", got.status, got.body)
	}
}

func TestRecordLivesFromCreateToDelete(t *testing.T) {
	w := start(t)
	created := w.call("POST", "/records/deals",
		`{"fields": [{"name": "name", "value": "Acme"}, {"name": "value", "value": 12345678901234567890}]}`)
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
	other := w.headersFor(w.mint(minter.Identity{AccountID: "a2", AccountType: "service_automation", BusinessID: "b2",
		ExecutionID: "e2"}))
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
		"page that is not a number": {"GET", "/team?page=one", "", "page"},
		"page zero":                 {"GET", "/custom-objects?page=0", "", "page"},
		"page size over the limit":  {"GET", "/records/deals?page_size=101", "", "page_size"},
		"no body":                   {"POST", "/records/deals", "", "body"},
		"broken JSON":               {"POST", "/records/deals", "{", "body"},
		"two bodies":                {"POST", "/records/deals", `{"fields":[]}{}`, "body"},
		"a list for a body":         {"POST", "/records/deals", "[]", "body"},
		"no fields":                 {"POST", "/records/deals", "{}", "fields"},
		"null fields":               {"POST", "/records/deals", `{"fields":null}`, "fields"},
		"fields of the wrong type":  {"POST", "/records/deals", `{"fields":"x"}`, "fields"},
		"field without a name":      {"POST", "/records/deals", `{"fields":[{"value":1}]}`, "fields[0].name"},
		"field with a bad name":     {"POST", "/records/deals", `{"fields":[{"name":"A b","value":1}]}`, "fields[0].name"},
		"field without a value":     {"POST", "/records/deals", `{"fields":[{"name":"a"}]}`, "fields[0].value"},
		"field given twice": {"POST", "/records/deals",
			`{"fields":[{"name":"a","value":1},{"name":"a","value":2}]}`, "fields[1].name"},
		"unknown condition": {"POST", "/records/deals/search",
			`{"filters":[{"field":"a","condition":"~","value":1}]}`, "filters[0].condition"},
		"filter without a field": {"POST", "/records/deals/search", `{"filters":[{"condition":"=","value":1}]}`,
			"filters[0].field"},
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

func TestUnknownPathsAndMethodsAreRefusedInJSON(t *testing.T) {
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

func TestOnlyAValidKeyIsAccepted(t *testing.T) {
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
		"no key":                {change(minter.HeaderKey), minter.CodeMissing},
		"no business":           {change(minter.HeaderBusiness), minter.CodeMissing},
		"empty user":            {change(minter.HeaderUser, ""), minter.CodeUser},
		"two keys":              {change(minter.HeaderKey, token, token), minter.CodeMalformed},
		"not a key":             {change(minter.HeaderKey, "abc"), minter.CodeMalformed},
		"signature cut off":     {change(minter.HeaderKey, token[:strings.LastIndex(token, ".")+1]), ""},
		"another business":      {change(minter.HeaderBusiness, "b2"), minter.CodeBusiness},
		"another user":          {change(minter.HeaderUser, "a2"), minter.CodeUser},
		"revoked":               {w.headersFor(revoked), minter.CodeRevoked},
		"key as a bearer token": {http.Header{"Authorization": {"Bearer " + token}}, minter.CodeMissing},
		"key only in the query": {change(minter.HeaderKey), minter.CodeMissing},
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
		t.Errorf("the valid key: %d %v", got.status, got.body)
	}
}

func TestNoKeyIsAcceptedWhileTheStoreIsDown(t *testing.T) {
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

func TestTeamListContainsOnlyPeople(t *testing.T) {
	w := start(t)
	for _, m := range w.call("GET", "/team", "").body["results"].([]any) {
		if accountType := m.(map[string]any)["account_type"]; accountType != policy.Employee {
			t.Errorf("the public list contains a %v", accountType)
		}
	}
}
