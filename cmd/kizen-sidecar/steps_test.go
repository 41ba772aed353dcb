package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

// stepsFolder contains Code Steps like those of customers, each with a case.json: what a run gets and what it must
// return.
const stepsFolder = "../../../shared/steps"

// stepCase is a case.json.
type stepCase struct {
	Inputs  map[string]json.RawMessage `json:"inputs"`
	Secrets map[string]string          `json:"secrets"`
	API     []route                    `json:"api"`
	Expect  struct {
		Success           bool                       `json:"success"`
		Values            map[string]json.RawMessage `json:"values"`
		Logs              []string                   `json:"logs"`
		LogsContain       json.RawMessage            `json:"logs_contain"`
		ErrorContains     string                     `json:"error_contains"`
		TracebackContains string                     `json:"traceback_contains"`
		APICalls          []struct {
			Method string          `json:"method"`
			Path   string          `json:"path"`
			JSON   json.RawMessage `json:"json"`
		} `json:"api_calls"`
		HTTPCount   *int     `json:"http_count"`
		NotInResult []string `json:"not_in_result"`
	} `json:"expect"`
}

// document is the JSON document that --json prints.
type document struct {
	RequestID    string                     `json:"request_id"`
	DurationMS   float64                    `json:"duration_ms"`
	Values       map[string]json.RawMessage `json:"values"`
	Logs         []string                   `json:"logs"`
	HTTPRequests *struct {
		Count     int `json:"count"`
		NotLogged int `json:"not_logged"`
		Requests  []struct {
			Method          string            `json:"method"`
			URL             string            `json:"url"`
			Status          int               `json:"responseStatusCode"`
			ResponseHeaders map[string]string `json:"responseHeaders"`
		} `json:"requests"`
	} `json:"http_requests"`
	Error *struct {
		Error  string `json:"error"`
		Detail string `json:"detail"`
	} `json:"error"`
	Layers struct{ Held, Missing []string } `json:"layers"`
}

// TestEveryStepFolderRunsThroughTheBinary: each folder of example steps gives its expected result, with the embedded
// store and with redis-server. The folder's files, the flags, a real Python and the proxy meet.
func TestEveryStepFolderRunsThroughTheBinary(t *testing.T) {
	t.Parallel()
	cases, _ := filepath.Glob(filepath.Join(stepsFolder, "*", "case.json"))
	if len(cases) == 0 {
		t.Skipf("SKIPPED: no steps in %s", stepsFolder)
	}
	stores := map[string]func(*testing.T) string{
		"embedded redis": func(*testing.T) string { return "" },
		"redis-server":   startRedisServer,
	}
	for name, start := range stores {
		t.Run(name, func(t *testing.T) {
			redisURL := start(t)
			for _, file := range cases {
				t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) { runStepCase(t, file, redisURL) })
			}
			if redisURL != "" {
				requireNoRecords(t, redisURL)
			}
		})
	}
}

func runStepCase(t *testing.T, file, redisURL string) {
	api := newRecordingAPI(t)
	wanted := readStepCase(t, file, api)
	dir := t.TempDir()
	arguments := []string{"run", filepath.Dir(file), "--json", "--api-root", api.root(),
		"--inputs-file", writeJSON(t, dir, "inputs.json", wanted.Inputs),
		"--secrets-file", writeJSON(t, dir, "secrets.json", wanted.Secrets)}
	if redisURL != "" {
		arguments = append(arguments, "--redis-url", redisURL)
	}
	got := sidecar(t, "", nil, arguments...)

	var result document
	if err := json.Unmarshal([]byte(got.stdout), &result); err != nil {
		t.Fatalf("standard output is not one JSON document: %v\n%s\n%s", err, got.stdout, got.stderr)
	}
	wantCode := exitOK
	if !wanted.Expect.Success {
		wantCode = exitStepFailed
	}
	if got.code != wantCode {
		t.Errorf("exit code %d, want %d\n%s\n%s", got.code, wantCode, got.stdout, got.stderr)
	}
	checkResult(t, wanted, result)
	checkCalls(t, wanted, api.apiCalls())
	for _, secret := range wanted.Expect.NotInResult {
		if strings.Contains(got.stdout, secret) || strings.Contains(got.stderr, secret) {
			t.Errorf("%q appears in the result or the log", secret)
		}
	}
}

func readStepCase(t *testing.T, file string, api *recordingAPI) stepCase {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var wanted stepCase
	if err := json.Unmarshal([]byte(strings.ReplaceAll(string(text), "${API}", api.URL)), &wanted); err != nil {
		t.Fatal(err)
	}
	api.expect(wanted.API)
	return wanted
}

func checkResult(t *testing.T, wanted stepCase, result document) {
	t.Helper()
	if got, want := result.Error == nil, wanted.Expect.Success; got != want {
		t.Errorf("success = %v, want %v: %+v", got, want, result.Error)
	}
	if len(wanted.Expect.Values) != len(result.Values) || (wanted.Expect.Values == nil) != (result.Values == nil) {
		t.Errorf("values = %s, want %s", result.Values, wanted.Expect.Values)
	}
	for name, want := range wanted.Expect.Values {
		if !sameJSON(result.Values[name], want) {
			t.Errorf("value %s = %s, want %s", name, result.Values[name], want)
		}
	}
	if wanted.Expect.Logs != nil && !slices.Equal(result.Logs, wanted.Expect.Logs) {
		t.Errorf("logs = %q, want %q", result.Logs, wanted.Expect.Logs)
	}
	for _, line := range stringList(wanted.Expect.LogsContain) {
		if !strings.Contains(strings.Join(result.Logs, "\n"), line) {
			t.Errorf("logs %q do not contain %q", result.Logs, line)
		}
	}
	if result.Error != nil {
		if !strings.Contains(result.Error.Error, wanted.Expect.ErrorContains) {
			t.Errorf("error = %q, want %q in it", result.Error.Error, wanted.Expect.ErrorContains)
		}
		if !strings.Contains(result.Error.Detail, wanted.Expect.TracebackContains) {
			t.Errorf("traceback = %q, want %q in it", result.Error.Detail, wanted.Expect.TracebackContains)
		}
	}
	if want := wanted.Expect.HTTPCount; want != nil {
		got := 0
		if result.HTTPRequests != nil {
			got = result.HTTPRequests.Count
		}
		if got != *want {
			t.Errorf("http_requests.count = %d, want %d", got, *want)
		}
	}
}

func checkCalls(t *testing.T, wanted stepCase, calls []call) {
	t.Helper()
	if len(calls) != len(wanted.Expect.APICalls) {
		t.Fatalf("the API got %d calls, want %d: %+v", len(calls), len(wanted.Expect.APICalls), calls)
	}
	for i, want := range wanted.Expect.APICalls {
		got := calls[i]
		if got.method != want.Method || got.target != want.Path {
			t.Errorf("call %d = %s %s, want %s %s", i, got.method, got.target, want.Method, want.Path)
		}
		if want.JSON != nil && !sameJSON(got.body, want.JSON) {
			t.Errorf("call %d body = %s, want %s", i, got.body, want.JSON)
		}
		if key := got.header.Get("X-API-KEY"); strings.Count(key, ".") != 2 {
			t.Errorf("call %d has no signed key", i)
		}
		if got.header.Get("X-BUSINESS-ID") != developmentBusiness || got.header.Get("X-USER-ID") != developmentUser {
			t.Errorf("call %d has the ids %q and %q", i, got.header.Get("X-BUSINESS-ID"), got.header.Get("X-USER-ID"))
		}
		if got.header.Get("Authorization") != "" || len(got.header.Values("X-API-KEY")) != 1 {
			t.Errorf("call %d has credentials that the step sent: %v", i, got.header)
		}
	}
}

func sameJSON(a, b []byte) bool {
	var left, right any
	return json.Unmarshal(a, &left) == nil && json.Unmarshal(b, &right) == nil && reflect.DeepEqual(left, right)
}

func stringList(raw json.RawMessage) []string {
	var one string
	if json.Unmarshal(raw, &one) == nil && one != "" {
		return []string{one}
	}
	var many []string
	_ = json.Unmarshal(raw, &many) // if absent, nothing is checked
	return many
}

func writeJSON(t *testing.T, dir, name string, value any) string {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, dir, name, string(data))
}

// startRedisServer starts a real redis-server on a free loopback port, and stops it at the end of the test.
func startRedisServer(t *testing.T) string {
	t.Helper()
	return redistest.Start(t).URL()
}

// requireNoRecords checks that the keys of all finished executions have been revoked.
func requireNoRecords(t *testing.T, redisURL string) {
	t.Helper()
	for _, record := range recordsIn(t, redisURL) {
		t.Errorf("%s is left in redis", record)
	}
}

// recordsIn returns the records of signed keys.
func recordsIn(t *testing.T, redisURL string) []string {
	t.Helper()
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	keys, err := client.Keys(t.Context(), "kizen:*:key:*").Result()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// TestStepFoldersRunInServeAndWorker runs steps that depend on how their interpreter was started in warm ones: over
// HTTP, and in a fleet.
func TestStepFoldersRunInServeAndWorker(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(stepsFolder, "threads_and_forks")
	source, err := os.ReadFile(filepath.Join(folder, "script.py"))
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	body := script(string(source)).with("output_types", step{"total": "n"})
	t.Run("serve", func(t *testing.T) {
		api := newRecordingAPI(t)
		wanted := readStepCase(t, filepath.Join(folder, "case.json"), api)
		s := startServe(t, "--api-root", api.root())
		waitFor(t, func() bool { status, _ := s.Readiness(); return status == 200 })
		got := s.ask("POST", "/api/coderunner/run", body).document(t)
		checkResult(t, wanted, got)
		checkMade(t, wanted, api.apiCalls())
	})
	t.Run("worker", func(t *testing.T) {
		api := newRecordingAPI(t)
		wanted := readStepCase(t, filepath.Join(folder, "case.json"), api)
		redisURL := startRedisServer(t)
		store := redisClient(t, redisURL)
		startWorker(t, redisURL, api.root())
		enqueue(t, store, body.with("execution_id", "e-1").with("business_id", "b-1").with("user_id", "u-1"))
		waitFor(t, func() bool { return endings(t, store)["e-1"] != "" })
		var got document
		if err := json.Unmarshal([]byte(resultIn(t, store, "e-1")), &got); err != nil {
			t.Fatal(err)
		}
		checkResult(t, wanted, got)
		checkMade(t, wanted, api.apiCalls())
	})
}

// checkMade checks which calls arrived, but not for which account.
func checkMade(t *testing.T, wanted stepCase, calls []call) {
	t.Helper()
	if len(calls) != len(wanted.Expect.APICalls) {
		t.Fatalf("the API got %d calls, want %d: %+v", len(calls), len(wanted.Expect.APICalls), calls)
	}
	for i, want := range wanted.Expect.APICalls {
		if calls[i].method != want.Method || calls[i].target != want.Path || !sameJSON(calls[i].body, want.JSON) {
			t.Errorf("call %d = %s %s %s, want %+v", i, calls[i].method, calls[i].target, calls[i].body, want)
		}
	}
}

// TestTheOutputOfAFailedStepIsShown runs a step that ends its own process.
func TestTheOutputOfAFailedStepIsShown(t *testing.T) {
	const source = "import os, sys\nprint('on standard output')\nprint('on standard error', file=sys.stderr)\nos._exit(3)"
	got := sidecar(t, source, nil, "run", "--script", "-")
	for _, want := range []string{"Standard output\n  on standard output\n", "Standard error\n  on standard error\n"} {
		if got.code != exitStepFailed || !strings.Contains(got.stdout, want) {
			t.Errorf("exit code %d, want %q in\n%s", got.code, want, got.stdout)
		}
	}
	s := startServe(t)
	answer := s.ask("POST", "/api/coderunner/run", script(source))
	var body struct {
		Error struct{ Stdout, Stderr string }
	}
	if err := json.Unmarshal([]byte(answer.body), &body); err != nil || answer.status != 400 {
		t.Fatalf("%d %v %s", answer.status, err, answer.body)
	}
	if body.Error.Stdout != "on standard output\n" || body.Error.Stderr != "on standard error\n" {
		t.Errorf("%s", answer.body)
	}
	if succeeded := s.ask("POST", "/api/coderunner/run", script("print('x')")); strings.Contains(succeeded.body,
		"stdout") {
		t.Errorf("the output of a step that succeeded is in %s", succeeded.body)
	}
}
