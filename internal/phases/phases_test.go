package phases

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEveryListHasAllPhases checks the lists in JavaScript, YAML and Markdown.
func TestEveryListHasAllPhases(t *testing.T) {
	var named, milliseconds []string
	for _, phase := range all {
		named, milliseconds = append(named, string(phase)), append(milliseconds, string(phase)+"_ms")
	}
	slices.Sort(named)
	slices.Sort(milliseconds)
	for _, list := range []struct {
		file, from, name string
		also             []string // further entries of the list
		want             []string
	}{
		{"../ui/assets/waterfall.js", `(?s)const phaseTitles = \{(.*?)\};`, `(\w+): "`, []string{"running"}, named},
		{"../serve/openapi.yaml", `name: \{enum: \[(queue.*?)\]\}`, `(\w+)`, nil, named},
		{"../serve/openapi.yaml", `(?s)    Execution:.*?        phases:(.*?)        result:`, `(\w+_ms):`, nil, milliseconds},
		{"../../docs/page.md", `(?s)\n\| phase \|(.*?)\n\n`, `(?m)^\| (\w+) \|`, nil, named},
		{"../../docs/telemetry.md", `(?m)^execution ── (.*)$`, `([a-z]+)(?: ·| ──|$)`, nil, named},
	} {
		text, err := os.ReadFile(list.file)
		if err != nil {
			t.Fatal(err)
		}
		part := regexp.MustCompile(list.from).FindStringSubmatch(string(text))
		if part == nil {
			t.Errorf("%s has no %s", list.file, list.from)
			continue
		}
		var got []string
		for _, found := range regexp.MustCompile(list.name).FindAllStringSubmatch(part[1], -1) {
			if !slices.Contains(list.also, found[1]) {
				got = append(got, found[1])
			}
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, list.want) {
			t.Errorf("%s has %s, want %s", list.file, strings.Join(got, " "), strings.Join(list.want, " "))
		}
	}
}
