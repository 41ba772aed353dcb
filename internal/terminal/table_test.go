package terminal

import (
	"strings"
	"testing"
)

func TestColumnsAreAsWideAsTheirWidestCell(t *testing.T) {
	var out strings.Builder
	Table(&out, "> ", [][]string{{"a", "b", "c"}, {"long", "", "x"}, {"é", "日本", ""}, {"one"}, {}})
	if want := "> a     b     c\n> long        x\n> é     日本\n> one\n>\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	out.Reset()
	Table(&out, "", [][]string{{Mark(true), "one"}, {Warning(), "two"}, {Mark(false), "three"}})
	lines := strings.Split(out.String(), "\n")
	for i, line := range lines[:3] {
		if plain := strings.Split(line, "  "); len(plain) != 2 || plain[1] != []string{"one", "two", "three"}[i] {
			t.Errorf("styles shift a column: %q", line)
		}
	}
}
