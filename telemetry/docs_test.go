package telemetry

import (
	"errors"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// measured returns the labels of every metric of a scrape, by name, without the metrics of a Go process.
func measured(page string) map[string][]string {
	metrics := map[string][]string{}
	part, label := regexp.MustCompile(`_(bucket|sum|count|total)$`), regexp.MustCompile(`([a-z_]+)="`)
	for line := range strings.Lines(page) {
		name := part.ReplaceAllString(line[:strings.IndexAny(line, "{ \n")], "")
		if name == "#" || name == "target_info" || strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		labels := metrics[name]
		for _, match := range label.FindAllStringSubmatch(line, -1) {
			if match[1] != "le" && !slices.Contains(labels, match[1]) {
				labels = append(labels, match[1])
			}
		}
		slices.Sort(labels)
		metrics[name] = labels
	}
	return metrics
}

// documented returns the labels of every metric in docs/telemetry.md, by name, as Prometheus spells both.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/telemetry.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| metric | unit | by |\n|---|---|---|\n")
	metrics, code := map[string][]string{}, regexp.MustCompile("`([a-z._]+)`")
	var labels []string
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 {
			break
		}
		if !strings.Contains(cells[3], "the same") {
			labels = nil
		}
		for _, match := range code.FindAllStringSubmatch(cells[3], -1) {
			if strings.Contains(match[1], ".") || match[1] == "queue" && strings.TrimSpace(cells[3]) == "`queue`" {
				labels = append(labels, strings.ReplaceAll(match[1], ".", "_"))
			}
		}
		slices.Sort(labels)
		suffix := map[string]string{"s": "_seconds", "By": "_bytes"}[strings.TrimSpace(cells[2])]
		for _, match := range code.FindAllStringSubmatch(cells[1], -1) {
			metrics[strings.ReplaceAll(match[1], ".", "_")+suffix] = labels
		}
	}
	return metrics
}

func TestEveryMetricIsDocumentedWithItsUnitAndLabels(t *testing.T) {
	telemetry := watched(t)
	telemetry.Metrics().Redis(t.Context(), "GET", 1, errors.New("gone"))

	got, want := measured(scrape(t, telemetry)), documented(t)
	if len(want) < 10 {
		t.Fatalf("the page has only %v", want)
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if labels, ok := want[name]; !ok || !slices.Equal(labels, got[name]) {
			t.Errorf("docs/telemetry.md has %s by %q (%v), want by %q", name, labels, ok, got[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("docs/telemetry.md lists metrics that do not exist: %v", want)
	}
}
