package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hibiken/asynq"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// This file is the only driver of the corpus. It tries every kind of attack in every way to run steps, as this user
// and as an ordinary one. Floods, and steps that stop themselves, take minutes, so make test tries only the quick
// kinds.

// attacked says as which user steps run, and with which flags in addition to those of the way.
type attacked struct {
	as    func(*exec.Cmd) *exec.Cmd
	flags []string
}

// attackedStep is the result of a step.
type attackedStep struct {
	Logs  []string
	Error *struct {
		Error, Kind, Detail string
	}
	Layers struct{ Held []string }

	document string
}

func (s *attackedStep) read(document string) error {
	s.document = document
	return json.Unmarshal([]byte(document), s)
}

// wayToRun runs steps in one way, such as a warm serve, and returns their results by name.
type wayToRun struct {
	name  string
	steps func(t *testing.T, a attacked, steps map[string]step) map[string]attackedStep
	// requests sends requests that must be refused, and then one that is valid. If nil, the way reads no requests.
	requests func(t *testing.T, a attacked, requests []attacks.Request)
}

var waysToRun = []wayToRun{
	{"run", runEach, nil},
	{"serve, cold", serveEach("0"), refuseEach("0")},
	{"serve, warm", serveEach("1"), refuseEach("1")},
	{"worker", workEach, enqueueEach},
}

func runEach(t *testing.T, a attacked, steps map[string]step) map[string]attackedStep {
	return sideBySide(t, steps, func(body step) (result attackedStep, err error) {
		arguments := append([]string{"run", "--script", "-", "--json", "--network", "host"}, a.flags...)
		if ms, ok := body["timeout_ms"]; ok {
			arguments = append(arguments, "--timeout", fmt.Sprint(ms)+"ms")
		}
		for name, code := range asMap(body["output_types"]) {
			arguments = append(arguments, "--declare-output", fmt.Sprintf("%s:%v", name, code))
		}
		for name, value := range asMap(body["inputs"]) {
			arguments = append(arguments, "--input", fmt.Sprintf("%s=%v:string", name, value.(step)["v"]))
		}
		command := sidecarCommand(t.Context(), nil, arguments...)
		command.Stdin = strings.NewReader(body["user_script"].(string))
		command = a.as(command)
		var stderr strings.Builder
		command.Stderr = &stderr
		document, err := command.Output()
		if reading := result.read(string(document)); reading != nil {
			return result, fmt.Errorf("%w, %w: %s", err, reading, stderr.String())
		}
		return result, nil
	})
}

func asMap(value any) step {
	members, _ := value.(step) // a missing value has no members
	return members
}

// sideBySide runs steps, four at a time.
func sideBySide(t *testing.T, steps map[string]step,
	run func(body step) (attackedStep, error)) map[string]attackedStep {
	t.Helper()
	var all sync.WaitGroup
	var mu sync.Mutex
	results, places := map[string]attackedStep{}, make(chan struct{}, 4)
	for name, body := range steps {
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			result, err := run(body)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			results[name] = result
		})
	}
	all.Wait()
	return results
}

func startAttacked(t *testing.T, a attacked, arguments ...string) *served {
	t.Helper()
	return &served{sidecartest.StartCommand(t,
		a.as(sidecarCommand(context.Background(), nil, append(arguments, a.flags...)...))), t}
}

func serveEach(warm string) func(*testing.T, attacked, map[string]step) map[string]attackedStep {
	return func(t *testing.T, a attacked, steps map[string]step) map[string]attackedStep {
		s := startAttacked(t, a, "serve", "--listen", "127.0.0.1:0", "--warm", warm, "--network", "host", "--queue-timeout",
			"5m")
		return sideBySide(t, steps, func(body step) (result attackedStep, err error) {
			got, err := s.try(t.Context(), "b-1", "POST", "/api/coderunner/run", body)
			if err == nil {
				err = result.read(got.body)
			}
			if err == nil && got.status != 200 && got.status != 400 {
				err = fmt.Errorf("%d %s", got.status, got.body)
			}
			return result, err
		})
	}
}

func refuseEach(warm string) func(*testing.T, attacked, []attacks.Request) {
	return func(t *testing.T, a attacked, requests []attacks.Request) {
		s := startAttacked(t, a, "serve", "--listen", "127.0.0.1:0", "--warm", warm)
		s.ask("POST", "/api/coderunner/run", script("pass"))
		before := sidecartest.PeakMiB(t, s.Process.Pid)
		for _, request := range requests {
			got := s.ask("POST", "/api/coderunner/run", json.RawMessage(request.Body))
			if got.status != 400 || !strings.Contains(got.body, request.Says) || len(got.body) > 64<<10 ||
				strings.Contains(got.body, "request_id") {
				t.Errorf("%s: %d, %d bytes: %.300s", request.Name, got.status, len(got.body), got.body)
			}
		}
		if after := sidecartest.PeakMiB(t, s.Process.Pid); after > before+128 {
			t.Errorf("serve grew from %.0f to %.0f MiB", before, after)
		}
		if got := s.ask("POST", "/api/coderunner/run", script("pass")); got.status != 200 {
			t.Errorf("a valid request afterwards: %d %s", got.status, got.body)
		}
	}
}

func startAttackedWorker(t *testing.T, a attacked, redisURL string) *served {
	t.Helper()
	if !slices.Contains(a.flags, "--api-root") {
		a.flags = append(slices.Clone(a.flags), "--api-root", "http://127.0.0.1:1/api")
	}
	return startAttacked(t, a, "worker", "--redis-url", redisURL, "--network", "host")
}

func workEach(t *testing.T, a attacked, steps map[string]step) map[string]attackedStep {
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	startAttackedWorker(t, a, redisURL)
	ids := map[string]string{}
	for name, body := range steps {
		ids[name] = fmt.Sprint("e-", len(ids))
		enqueue(t, store, maps.Clone(body).with("execution_id", ids[name]).with("business_id", "b-1").with("user_id", "u-1"))
	}
	results := map[string]attackedStep{}
	for name, id := range ids {
		waitFor(t, func() bool { return endings(t, store)[id] != "" })
		var result attackedStep
		text := resultIn(t, store, id)
		if err := result.read(text); err != nil {
			t.Fatalf("%s: %v %s", name, err, text)
		}
		results[name] = result
	}
	return results
}

// enqueueEach enqueues requests, all of which must end as refused or as dead letters.
func enqueueEach(t *testing.T, a attacked, requests []attacks.Request) {
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	w := startAttackedWorker(t, a, redisURL)
	before := sidecartest.PeakMiB(t, w.Process.Pid)
	client := asynq.NewClientFromRedisClient(store)
	for i, request := range requests {
		body := fmt.Sprintf(`{"execution_id": "e-%d", "business_id": "b-1", "user_id": "u-1", `, i) +
			strings.TrimPrefix(request.Body, "{")
		if _, err := client.EnqueueContext(t.Context(), asynq.NewTask("kizen:execution", []byte(body)), asynq.Queue("kizen"), asynq.TaskID(fmt.Sprint("b-1/e-", i))); err != nil {
			t.Fatal(err)
		}
	}
	inspector := asynq.NewInspectorFromRedisClient(store)
	waitFor(t, func() bool {
		archived, err := inspector.ListArchivedTasks("kizen", asynq.PageSize(len(requests)))
		return err == nil && len(archived)+len(endings(t, store)) >= len(requests)
	})
	for id, outcome := range endings(t, store) {
		if document := resultIn(t, store, id); outcome != "refused" || len(document) > 64<<10 {
			t.Errorf("%s ended as %s, with a document of %d bytes", id, outcome, len(document))
		}
	}
	if after := sidecartest.PeakMiB(t, w.Process.Pid); after > before+256 { // eight at a time
		t.Errorf("the worker grew from %.0f to %.0f MiB", before, after)
	}
	enqueue(t, store, forFleet("e-fine", "pass"))
	waitFor(t, func() bool { return endings(t, store)["e-fine"] == "ok" })
}

// prepared holds the steps of a kind of attack.
type prepared struct {
	flags []string
	steps map[string]step
	// check is called with the result of each step.
	check func(t *testing.T, name string, got attackedStep)
	// after is called when all steps have ended; it may be nil.
	after func(t *testing.T)
}

// kindOfAttack is a part of the corpus.
type kindOfAttack struct {
	name string
	// prepare returns its steps. If nil, no step makes its attacks.
	prepare func(t *testing.T, as func(*exec.Cmd) *exec.Cmd) prepared
	// requests returns its attacks, if callers make them.
	requests func() []attacks.Request
	// quick makes make test try it too.
	quick bool
	// elsewhere says why it is not tried in these ways, and names the test that tries it.
	elsewhere string
}

var kindsOfAttack = []kindOfAttack{
	{name: "programs", prepare: preparePrograms},
	{name: "stops", prepare: prepareStops},
	{name: "hostile steps", prepare: prepareHostile},
	{name: "forgeries", prepare: func(*testing.T, func(*exec.Cmd) *exec.Cmd) prepared { return prepareForgeries(false) },
		quick: true},
	{name: "forgeries that flood", prepare: func(*testing.T,
		func(*exec.Cmd) *exec.Cmd) prepared {
		return prepareForgeries(true)
	}},
	{name: "echoes", prepare: prepareEchoes, quick: true},
	{name: "answers", prepare: prepareAnswers},
	{name: "messages and spellings", prepare: prepareMessages, quick: true},
	{name: "requests", requests: attacks.Requests, quick: true},
	{name: "tokens",
		elsewhere: "a key is verified by the API, which runs no steps: TestForgedTokensAreRefused in minter, " +
			"TestThePlatformRefusesForgedKeys in internal/platform"},
	{name: "pages and hosts", elsewhere: "only serve answers a browser, before it knows who would run the step: " +
		"TestPagesOfABrowserAreRefused in internal/serve, TestOnlyOwnNamesAndAddressesAreAllowed in internal/hosts"},
	{name: "addresses",
		elsewhere: "callbacks are sent by one sender after the step has ended: TestInternalAddressesReceiveNothing in internal/webhook"},
	{name: "strangers",
		elsewhere: "only kizen-platform shares an embedded store: TestUnauthenticatedInputDoesNotCrashTheEmbeddedStore in minter"},
	{name: "texts",
		elsewhere: "they are about what a person sees: TestNoAnswerContainsTerminalControlCharacters, TestNoNameAndNoIDBecomesMarkup"},
}

// TestTortureEveryAttackInEveryWay tries the corpus in each way to run steps, as each user.
func TestTortureEveryAttackInEveryWay(t *testing.T) {
	asEachUser(t, func(t *testing.T, as func(*exec.Cmd) *exec.Cmd) {
		for _, way := range waysToRun {
			t.Run(way.name, func(t *testing.T) {
				for _, kind := range kindsOfAttack {
					tryKind(t, kind, way, as)
				}
			})
		}
	})
}

// TestQuickAttacks tries the quick kinds of attack, for make test.
func TestQuickAttacks(t *testing.T) {
	t.Parallel()
	for _, way := range []int{0, 2} {
		t.Run(waysToRun[way].name, func(t *testing.T) {
			for _, kind := range kindsOfAttack {
				if kind.quick {
					tryKind(t, kind, waysToRun[way], func(command *exec.Cmd) *exec.Cmd { return command })
				}
			}
		})
	}
}

func tryKind(t *testing.T, kind kindOfAttack, way wayToRun, as func(*exec.Cmd) *exec.Cmd) {
	t.Helper()
	switch {
	case kind.prepare != nil:
		t.Run(kind.name, func(t *testing.T) {
			p := kind.prepare(t, as)
			results := way.steps(t, attacked{as, p.flags}, p.steps)
			for name := range p.steps {
				result, ran := results[name]
				if !ran {
					t.Errorf("%s did not run", name)
				} else {
					p.check(t, name, result)
				}
			}
			if p.after != nil {
				p.after(t)
			}
		})
	case kind.requests != nil && way.requests != nil:
		t.Run(kind.name, func(t *testing.T) { way.requests(t, attacked{as: as}, kind.requests()) })
	}
}

func preparePrograms(t *testing.T, as func(*exec.Cmd) *exec.Cmd) prepared {
	project, err := filepath.Abs(projectRoot)
	if err != nil {
		t.Fatal(err)
	}
	victim := startAttacked(t, attacked{as: as}, "serve", "--listen", "127.0.0.1:0", "--warm", "0")
	target := attacks.NewTarget(t, "/var/tmp", project)
	target.Sidecar = victim.Process.Pid
	// The harness needs these: the proxy's address, and its channels.
	target.Environment = append(target.Environment, "TZ", "KIZEN_API_URL", "TRACEPARENT")
	target.Descriptors = []int{95, 96, 97}
	target.KeepsBounding = true
	p := prepared{flags: []string{"--timeout", "55s"}, steps: map[string]step{}}
	namespaced := map[string]bool{}
	for _, program := range attacks.Programs() {
		if !program.OwnUser { // the others need a step that runs as the sidecar's own user; runner/sandbox tests them
			p.steps[program.Name] = script(program.Step(target))
			namespaced[program.Name] = program.Namespaced
		}
	}
	p.check = func(t *testing.T, name string, got attackedStep) {
		switch {
		case namespaced[name] && !slices.Contains(got.Layers.Held, "PID namespace"):
		case got.Error != nil:
			t.Errorf("%s: the attack itself failed: %+v", name, *got.Error)
		case len(got.Logs) != 1 || got.Logs[0] != "":
			t.Errorf("%s got:\n%s", name, strings.Join(got.Logs, "\n"))
		}
	}
	return p
}

func prepareStops(*testing.T, func(*exec.Cmd) *exec.Cmd) prepared {
	p := prepared{steps: map[string]step{}}
	for _, stop := range attacks.BlockingSteps() {
		p.steps[stop.Name] = script(stop.Source).with("timeout_ms", 1500)
	}
	p.check = func(t *testing.T, name string, got attackedStep) {
		if got.Error == nil || got.Error.Kind != "timeout" {
			t.Errorf("%s: unexpected end: %.2000s", name, got.document)
		}
	}
	return p
}

func prepareHostile(t *testing.T, _ func(*exec.Cmd) *exec.Cmd) prepared {
	api := newGateAPI(t)
	api.open()
	marker := newMarker()
	p := prepared{flags: []string{"--timeout", "55s", "--memory", "128MiB", "--tmp-size", "8MiB", "--api-root",
		api.root()}, steps: map[string]step{}}
	kinds := map[string]*regexp.Regexp{}
	for _, h := range attacks.HostileSteps(marker) {
		p.steps[h.Name] = script(h.Source).with("output_types", step{"x": "s"}).with("timeout_ms", h.LimitMS())
		kinds[h.Name] = regexp.MustCompile("^(" + h.Kind + ")$")
	}
	p.check = func(t *testing.T, name string, got attackedStep) {
		if got.Error == nil || !kinds[name].MatchString(got.Error.Kind) || strings.Contains(got.document, `"values":{`) ||
			len(got.document) > 1<<20 {
			t.Errorf("%s, which should end as %s: %d bytes, %.2000s", name, kinds[name], len(got.document), got.document)
		}
	}
	p.after = func(t *testing.T) { requireNoProcess(t, marker) }
	return p
}

func prepareForgeries(floods bool) prepared {
	p := prepared{steps: map[string]step{}}
	byName := map[string]attacks.Forgery{}
	for _, f := range attacks.Forgeries() {
		if f.Flood == floods {
			p.steps[f.Name] = script(f.Source()).with("output_types", step{"x": "s", "l": "l"}).with("timeout_ms", 55_000)
			byName[f.Name] = f
		}
	}
	p.check = func(t *testing.T, name string, got attackedStep) {
		f, outcome := byName[name], "ok"
		if got.Error != nil {
			outcome = got.Error.Kind
		}
		if outcome != f.Outcome || len(got.document) > f.Most {
			t.Errorf("%s ended as %s, want %s, with a document of %d bytes: %.500s", name, outcome, f.Outcome, len(got.document),
				got.document)
		}
	}
	return p
}

func prepareEchoes(t *testing.T, _ func(*exec.Cmd) *exec.Cmd) prepared {
	api := newEchoAPI(t)
	return prepared{
		flags: []string{"--timeout", "55s", "--api-root", api.URL + apiRootPath},
		steps: map[string]step{"echoes": script(attacks.EchoStep()).with("output_types", step{"found": "a[s]"})},
		check: func(t *testing.T, _ string, got attackedStep) { api.requireSafe(t, "the result", got.document) },
	}
}

func prepareAnswers(t *testing.T, _ func(*exec.Cmd) *exec.Cmd) prepared {
	p := prepared{flags: []string{"--timeout", "55s", "--memory", "128MiB", "--api-root", startMaliciousAPI(t)},
		steps: map[string]step{}}
	sees := map[string]*regexp.Regexp{}
	for n, a := range attacks.Answers() {
		p.steps[a.Name] = script(attacks.CallStep).with("inputs",
			step{"path": step{"t": "s", "v": fmt.Sprintf("/answers/%d", n)}})
		sees[a.Name] = regexp.MustCompile("^(" + a.Sees + ")")
	}
	p.check = func(t *testing.T, name string, got attackedStep) {
		saw := strings.Join(got.Logs, "\n")
		if got.Error != nil {
			saw = got.Error.Kind
		}
		if !sees[name].MatchString(saw) || len(got.document) > 1<<20 {
			t.Errorf("%s: the step saw %q, want %s; %d bytes", name, saw, sees[name], len(got.document))
		}
	}
	return p
}

// prepareMessages sends messages to the proxy that no HTTP client sends.
func prepareMessages(t *testing.T, _ func(*exec.Cmd) *exec.Cmd) prepared {
	api := newRecordingAPI(t)
	p := prepared{flags: []string{"--timeout", "55s", "--api-root", api.root()}, steps: map[string]step{}}
	var texts []string
	passes := 0 // calls that the API gets
	const second = "GET CAP/second HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n"
	for _, m := range attacks.Messages() {
		texts = append(texts, m.Text("HOST", "CAP")+second)
		if m.Passed != "" {
			passes += 2
		}
	}
	p.steps["messages"] = script(attacks.SendStep(texts))
	texts = nil
	for _, path := range attacks.EscapingPaths() {
		texts = append(texts, "GET CAP"+path+" HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")
	}
	for _, line := range attacks.Targets() {
		texts = append(texts, line+" HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")
	}
	p.steps["climbs and targets"] = script(attacks.SendStep(texts))
	texts = nil
	spellings := attacks.Spellings()
	free := 0
	for _, s := range spellings {
		texts = append(texts, s.Text("HOST", "CAP"))
		if s.Passes {
			free++
		}
	}
	p.steps["spellings"] = script(attacks.SendStep(texts))
	refused := regexp.MustCompile("^(4[0-9][0-9]|501) ")
	p.check = func(t *testing.T, name string, got attackedStep) {
		if got.Error != nil {
			t.Errorf("%s: the attack itself failed: %+v", name, *got.Error)
			return
		}
		for i, line := range strings.Split(strings.Join(got.Logs, "\n"), "\n") {
			switch {
			case name == "messages" && attacks.Messages()[i].Passed != "", name == "spellings" && spellings[i].Passes:
			case !refused.MatchString(line) || !strings.HasSuffix(line, " 1"):
				t.Errorf("%s, number %d: answered %q, want one refusal", name, i, line)
			}
		}
	}
	p.after = func(t *testing.T) {
		for _, got := range api.apiCalls() {
			switch {
			case got.target == "/x" || got.target == "/second":
				passes--
			case got.target == "/records/api/api-keys":
				free--
			default:
				t.Errorf("the API got %s %s %.100q", got.method, got.target, got.body)
			}
		}
		if passes != 0 || free != 0 {
			t.Errorf("the API lacks %d messages and %d spellings that may pass", passes, free)
		}
	}
	return p
}
