package flagvalue

import (
	"slices"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

func TestANegativeNumberBelongsToTheFlagBeforeIt(t *testing.T) {
	for _, c := range []struct{ given, want []string }{
		{[]string{"--n", "-1", "x"}, []string{"--n=-1", "x"}},
		{[]string{"--wait", "-1.5s"}, []string{"--wait=-1.5s"}},
		{[]string{"--wait", "-.5s"}, []string{"--wait=-.5s"}},
		{[]string{"--n=2", "-1"}, []string{"--n=2", "-1"}},
		{[]string{"--n", "-v"}, []string{"--n", "-v"}},
		{[]string{"--", "--n", "-1"}, []string{"--", "--n", "-1"}},
		{nil, nil},
	} {
		if got := Join(c.given); !slices.Equal(got, c.want) {
			t.Errorf("%q became %q, want %q", c.given, got, c.want)
		}
	}
}

func TestAValueBelowTheMinimumIsRefusedByName(t *testing.T) {
	for _, c := range []struct{ arguments, want string }{
		{"", ""}, {"--n=0", ""}, {"--wait=10ms", ""},
		{"--n=-1", "--n -1 is too small; use 0 or more"},
		{"--wait=9ms", "--wait 9ms is too small; use 10ms or more"},
		{"--wait=5", `--wait: "5" is not a duration; write it like 30s or 5m`},
	} {
		var line struct {
			N    int64         `least:"0"`
			Wait time.Duration `least:"10ms" default:"1s"`
			Any  int
		}
		parser, err := kong.New(&line, Durations())
		if err != nil {
			t.Fatal(err)
		}
		var arguments []string
		if c.arguments != "" {
			arguments = []string{c.arguments}
		}
		command, err := parser.Parse(arguments)
		if err == nil {
			err = Check(command.Flags())
		}
		if got := text(err); got != c.want {
			t.Errorf("%q: %q, want %q", c.arguments, got, c.want)
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
