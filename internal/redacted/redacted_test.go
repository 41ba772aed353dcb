package redacted

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The harness cannot import this package, so it has its own list of names.
func TestPythonHasTheSameNames(t *testing.T) {
	source, err := os.ReadFile("../../runner/python/kizen_runtime/redact.py")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(source), "\nMARK = \""+Mark+"\"\n") {
		t.Errorf("redact.py has another mark than %s", Mark)
	}
	fields := func(how match) []string {
		return filter(func(n secretName) bool { return n.field == how })
	}
	if ends := fields(ending); ends != nil {
		t.Errorf("%q: redact.py has no list of fields that end in a name", ends)
	}
	for constant, want := range map[string][]string{
		"_SECRET_PARTS": fields(anywhere), "_SECRET_WORDS": fields(word), "_PLACES": places,
	} {
		// One string in quotes, or several in parentheses.
		list := regexp.MustCompile(`(?m)^` + constant + ` = (\([^)]*\)|"[^"]*")\.split\(","\)`).FindSubmatch(source)
		if list == nil {
			t.Errorf("redact.py has no %s", constant)
			continue
		}
		text := regexp.MustCompile(`"\s*"|^\(?\s*"|"\s*\)?$`).ReplaceAllString(string(list[1]), "")
		if got := strings.Split(text, ","); !slices.Equal(got, want) {
			t.Errorf("%s is %q, want %q", constant, got, want)
		}
	}
}

func TestEveryNameIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/telemetry.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := func(name string) bool { return strings.Contains(string(page), "`"+name+"`") }
	for _, n := range names {
		words := strings.Fields(n.words)
		missing := func(word string) bool { return !documented(word) }
		if missing(strings.Join(words, "_")) && slices.ContainsFunc(words, missing) {
			t.Errorf("docs/telemetry.md does not list %q", n.words)
		}
	}
	for _, place := range places {
		if !documented(place) {
			t.Errorf("docs/telemetry.md does not list %q", place)
		}
	}
}

func TestNamesHaveOneEntryEach(t *testing.T) {
	for i, n := range names {
		if slices.ContainsFunc(names[:i], func(other secretName) bool { return other.words == n.words }) {
			t.Errorf("%q is listed twice", n.words)
		}
	}
}
