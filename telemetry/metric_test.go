package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/phases"
)

// measuring returns telemetry whose metrics can be scraped.
func measuring(t *testing.T) *Telemetry {
	t.Helper()
	environment(t, nil)
	telemetry, _ := started(t, Config{Prometheus: true})
	t.Cleanup(func() {
		if err := telemetry.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return telemetry
}

// scrape returns the response of /metrics.
func scrape(t *testing.T, telemetry *Telemetry) string {
	t.Helper()
	server := httptest.NewServer(telemetry.Handler())
	defer server.Close()
	answer, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != 200 {
		t.Fatalf("/metrics answered %d, %v", answer.StatusCode, err)
	}
	return string(body)
}

// exposed returns the names of the series of a scrape, and of their labels.
func exposed(page string) (series, labels map[string]bool) {
	series, labels = map[string]bool{}, map[string]bool{}
	label := regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="`)
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name := line[:strings.IndexAny(line, "{ ")]
		series[name] = true
		for _, match := range label.FindAllStringSubmatch(line, -1) {
			labels[match[1]] = true
		}
	}
	return series, labels
}

func TestMetricsAreNamedAsPrometheusSpellsTheConventions(t *testing.T) {
	telemetry := measuring(t)
	stop := telemetry.Metrics().Watch(func() State { return State{Queue: 3, SlotsUsed: 2, SlotsTotal: 4, Ready: 1} })
	defer stop()
	execute(telemetry)
	page := scrape(t, telemetry)
	const api = `server_address="app.go.kizen.com",server_port="443"`
	for _, want := range []string{
		`kizen_execution_duration_seconds_count{kizen_execution_outcome="ok"} 1`,
		`kizen_execution_phase_duration_seconds_count{kizen_execution_phase="queue"} 1`,
		`kizen_execution_phase_duration_seconds_sum{kizen_execution_phase="step"} 0.001`,
		"kizen_execution_queue_length 3", "kizen_execution_slot_usage 2", "kizen_execution_slot_limit 4",
		"kizen_pool_ready 1",
		`http_client_request_duration_seconds_count{http_request_method="GET",http_response_status_code="200",` + api + `} 1`,
		`http_client_request_duration_seconds_count{error_type="guardrail",http_request_method="POST",http_response_status_code="403",` + api + `} 1`,
		`http_client_response_body_size_bytes_sum{http_request_method="GET",http_response_status_code="200",` + api + `} 9`,
		`kizen_policy_denials_total{kizen_policy_id="guardrail.own_token"} 1`,
		`kizen_key_operation_duration_seconds_count{kizen_key_operation="mint"} 1`,
		`kizen_key_operation_duration_seconds_count{error_type="timeout",kizen_key_operation="renew"} 1`,
		`db_client_operation_duration_seconds_count{db_operation_name="SET",db_system_name="redis"} 1`,
		`service_name="kizen-sidecar"`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	for _, id := range []string{"ex-1", "b-1", "/custom-objects", callerTrace} {
		if strings.Contains(page, id) {
			t.Errorf("/metrics names %q", id)
		}
	}
	stop()
	if strings.Contains(scrape(t, telemetry), "kizen_pool_ready 1") {
		t.Error("the state is asked for after the end of the watch")
	}
}

func TestLabelsAreBoundedWhateverIsMeasured(t *testing.T) {
	telemetry := measuring(t)
	ctx, execution := telemetry.Execution(context.Background(), info())
	metrics := telemetry.Metrics()
	for i := range 2000 {
		s := fmt.Sprintf("made.up.%d", i)
		execution.EndCall(nil, CallEnd{Method: s, Path: "/" + s, Status: 1000 + i, Denied: true, Policy: s, Error: s})
		execution.EndCall(nil, CallEnd{Method: "GET", Status: 600 + i})
		execution.EndCall(nil, CallEnd{Method: "GET", Status: 403, Denied: true, Policy: "guardrail." + s,
			Error: "guardrail"})
		execution.Phase(phases.Phase(s), at(0), at(1), nil)
		metrics.Redis(ctx, s, time.Millisecond, errors.New(s))
		metrics.Key(ctx, s, time.Millisecond, errors.New(s))
	}
	counts := map[string]int{}
	for line := range strings.Lines(scrape(t, telemetry)) {
		if name, _, found := strings.Cut(line, "{"); found && !strings.HasSuffix(name, "_bucket") {
			counts[name]++
		}
	}
	for name, series := range counts {
		if series > 160 {
			t.Errorf("%s has %d series", name, series)
		}
	}
	if counts["kizen_policy_denials_total"] < 100 {
		t.Errorf("only %d policies are distinguished", counts["kizen_policy_denials_total"])
	}
}

func TestBuiltInPoliciesKeepTheirNamesBesideAnyNumberOfOthers(t *testing.T) {
	telemetry := measuring(t)
	_, execution := telemetry.Execution(context.Background(), info())
	for i := range 500 {
		execution.EndCall(nil, CallEnd{Method: "GET", Status: 403, Denied: true, Policy: fmt.Sprintf("team.%d", i)})
	}
	execution.EndCall(nil, CallEnd{Method: "GET", Status: 403, Denied: true, Policy: "guardrail.own_token"})
	page := scrape(t, telemetry)
	for _, want := range []string{`kizen_policy_id="guardrail.own_token"} 1`, `kizen_policy_id="team.0"} 1`,
		`kizen_policy_id="_OTHER"} 436`} {
		if !strings.Contains(page, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

// promQL lists the words of PromQL, and the labels that scraping adds.
var promQL = []string{
	"sum", "max", "by", "rate", "histogram_quantile", "label_replace", "label_values", "vector", "or", "le", "job",
	"instance", "class",
}

// watched returns telemetry that has measured an execution and watches a service and a fleet.
func watched(t *testing.T) *Telemetry {
	t.Helper()
	environment(t, map[string]string{"OTEL_TRACES_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "prometheus",
		"OTEL_EXPORTER_OTLP_ENDPOINT": failing(t, 400)})
	telemetry, _ := started(t, Config{})
	t.Cleanup(func() { telemetry.Shutdown(context.Background()) })
	t.Cleanup(telemetry.Metrics().Watch(func() State { return State{} }))
	t.Cleanup(telemetry.Metrics().WatchFleet("kizen",
		func(context.Context) (executions, callbacks Backlog, err error) { return }))
	telemetry.Metrics().FleetEnded(t.Context(), "worker_died")
	telemetry.Metrics().Connection(t.Context(), "tcp", true, time.Millisecond)
	execute(telemetry)
	return telemetry
}

func TestEveryMetricOfTheDashboardExists(t *testing.T) {
	telemetry := watched(t)
	series, labels := exposed(scrape(t, telemetry))

	data, err := os.ReadFile("../examples/grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	queried := map[string]bool{}
	quoted, word := regexp.MustCompile(`"[^"]*"|\[[^\]]*\]`), regexp.MustCompile(`[a-zA-Z_][a-zA-Z0-9_]*`)
	for _, query := range queries(t, data) {
		found := false
		for _, name := range word.FindAllString(quoted.ReplaceAllString(query, ""), -1) {
			switch {
			case series[name]:
				queried[name], found = true, true
			case labels[name], slices.Contains(promQL, name):
			default:
				t.Errorf("%s: %q is neither a metric nor a label", query, name)
			}
		}
		if !found {
			t.Errorf("%s: queries no metric", query)
		}
	}
	family := regexp.MustCompile(`_(bucket|sum|count)$`)
	for name := range series {
		name = family.ReplaceAllString(name, "")
		seen := slices.ContainsFunc(slices.Collect(maps.Keys(queried)),
			func(q string) bool { return strings.HasPrefix(q, name) })
		ours := !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") && name != "target_info"
		if !seen && ours {
			t.Errorf("no panel shows %s", name)
		}
	}
}

// queries returns all expressions of a dashboard.
func queries(t *testing.T, data []byte) (all []string) {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Type, Definition string }
		}
	}
	if err := json.Unmarshal(data, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, panel := range dashboard.Panels {
		if panel.Type != "row" && len(panel.Targets) == 0 {
			t.Errorf("panel %q has no query", panel.Title)
		}
		for _, target := range panel.Targets {
			all = append(all, target.Expr)
		}
	}
	for _, variable := range dashboard.Templating.List {
		if variable.Type == "query" {
			all = append(all, variable.Definition)
		}
	}
	if len(all) < 20 {
		t.Fatalf("%d queries", len(all))
	}
	return all
}

func TestMeasuringCostsNoAllocationWhenItIsOff(t *testing.T) {
	environment(t, nil)
	telemetry, _ := started(t, Config{})
	ctx, execution := telemetry.Execution(context.Background(), info())
	end := CallEnd{Method: "GET", Path: "/custom-objects", Query: "page=2", Status: 200, Policy: "default.calls"}
	allocations := testing.AllocsPerRun(100, func() {
		execution.Phase(phases.Mint, at(0), at(1), nil)
		execution.EndCall(execution.StartCall("GET", caller, ""), end)
		telemetry.Metrics().Key(ctx, KeyMint, time.Millisecond, nil)
		telemetry.Metrics().Redis(ctx, "SET", time.Millisecond, nil)
		execution.End(Ending{Outcome: outcomes.OK})
	})
	if allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
}

func TestAnUnknownBacklogIsNotReportedAsEmpty(t *testing.T) {
	telemetry := measuring(t)
	var down error
	stop := telemetry.Metrics().WatchFleet("kizen", func(context.Context) (executions, callbacks Backlog, err error) {
		return Backlog{Depth: 7, Oldest: 1500 * time.Millisecond, DeadLetters: 2}, Backlog{Depth: 3, Oldest: time.Minute,
			DeadLetters: 1}, down
	})
	series := []string{
		`kizen_fleet_queue_depth{queue="kizen"} 7`, `kizen_fleet_queue_wait_seconds{queue="kizen"} 1.5`,
		`kizen_fleet_dead_letters{queue="kizen"} 2`,
		`kizen_fleet_callback_queue_depth{queue="kizen"} 3`, `kizen_fleet_callback_queue_wait_seconds{queue="kizen"} 60`,
		`kizen_fleet_callback_dead_letters{queue="kizen"} 1`,
	}
	for _, want := range series {
		if page := scrape(t, telemetry); !strings.Contains(page, want) {
			t.Errorf("no %s in %s", want, page)
		}
	}
	down = errors.New("redis is unavailable")
	if page := scrape(t, telemetry); strings.Contains(page, "kizen_fleet_queue_depth{") {
		t.Errorf("a queue depth is exposed: %s", page)
	}
	down = nil
	if page := scrape(t, telemetry); !strings.Contains(page, series[0]) {
		t.Error("the metric does not reappear")
	}
	stop()
	if page := scrape(t, telemetry); strings.Contains(page, "kizen_fleet_queue_depth{") {
		t.Error("the state is read after the end of the watch")
	}
}

func TestAScrapeHasProcessMetrics(t *testing.T) {
	series, _ := exposed(scrape(t, measuring(t)))
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if !series[name] {
			t.Errorf("no %s", name)
		}
	}
}
