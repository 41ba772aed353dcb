package docstest

import (
	"regexp"
	"strings"
)

// changing lists the parts of an output that differ from run to run. A page shows one example.
var changing = []struct {
	pattern *regexp.Regexp
	as      string
}{
	{regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?`), "TIME"},
	{regexp.MustCompile(`\b\d+(\.\d+)? ?(ms|µs|s)\b`), "DURATION"},
	{regexp.MustCompile(`[ \t]+`), " "},
}

// stable returns text with the changing parts replaced.
func stable(text string) string {
	for _, change := range changing {
		text = change.pattern.ReplaceAllString(text, change.as)
	}
	return strings.TrimSpace(text)
}

// shows reports whether the output got matches the one on the page. "..." matches anything within a line, and on its
// own line any number of lines.
func shows(shown, got string) bool {
	var pattern strings.Builder
	pattern.WriteString(`^`)
	for line := range strings.Lines(stable(shown) + "\n") {
		if strings.TrimSpace(line) == "..." {
			pattern.WriteString(`(?:.*\n)*`)
			continue
		}
		pattern.WriteString(strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(line)), `\.\.\.`, `.*`) + ` ?\n`)
	}
	pattern.WriteString(`$`)
	var trimmed strings.Builder
	for line := range strings.Lines(stable(got) + "\n") {
		trimmed.WriteString(strings.TrimSpace(line) + "\n")
	}
	return regexp.MustCompile(pattern.String()).MatchString(trimmed.String())
}
