package flagfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

// command is a command whose flags can be in a file.
type command struct {
	Config      Path          `name:"config"`
	PrintConfig bool          `name:"print-config"`
	Slots       int           `default:"2"`
	Lease       time.Duration `default:"10s"`
	UI          bool          `name:"ui"`
	RedisURL    string        `name:"redis-url"`
	Policy      []string
	Hidden      string `env:"KIZEN_TEST_HIDDEN"`
}

// parse reads arguments into a command.
func parse(t *testing.T, arguments ...string) (command, *kong.Context, error) {
	t.Helper()
	var line command
	parser, err := kong.New(&line)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(arguments)
	return line, parsed, err
}

// write writes a file of flags and returns its name.
func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "flags.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestFlagsOverrideTheEnvironmentWhichOverridesTheFile(t *testing.T) {
	name := write(t, "slots: 3\nlease: 7s\nui: true\nhidden: file\npolicy: [a, 1, true]\n")
	line, _, err := parse(t, "--config", name, "--lease", "8s")
	if err != nil {
		t.Fatal(err)
	}
	if line.Slots != 3 || line.Lease != 8*time.Second || !line.UI || line.Hidden != "file" ||
		strings.Join(line.Policy, " ") != "a 1 true" {
		t.Errorf("%+v", line)
	}
	t.Setenv("KIZEN_TEST_HIDDEN", "environment")
	if line, _, err = parse(t, "--config", name); err != nil || line.Hidden != "environment" ||
		line.Lease != 7*time.Second {
		t.Errorf("%+v, %v", line, err)
	}
	if line, _, err = parse(t, "--config", write(t, "policy: only\n")); err != nil ||
		strings.Join(line.Policy, " ") != "only" || line.Slots != 2 {
		t.Errorf("%+v, %v", line, err)
	}
}

func TestAWrongFileIsRejectedWithAllErrorsAndNoSecret(t *testing.T) {
	for text, want := range map[string][]string{
		"slotz: 3\nleese: 1s\n":           {`unknown keys: "leese", "slotz"; use the names of the command's flags`},
		"- a\n":                           {"it is not YAML of names and values"},
		"slots: 4\nslots: 5\n":            {"already defined"},
		"print-config: true\nconfig: x\n": {`unknown keys: "config", "print-config"`},
		"slots:\n":                        {`"slots" has an invalid value`},
		"slots: [1]\nui: {a: b}\npolicy: [{a: b}]\n": {`"slots" has an invalid value`, `"ui" has an invalid value`,
			`"policy" has an invalid value`},
		"slots: [1]\nslotz: 1\n":                       {`"slots" has an invalid value`, `unknown keys: "slotz"`},
		"redis-url: {x: hunter2hunter2}\n":             {`"redis-url" has an invalid value`},
		"redis-url: redis://:hunter2hunter2@h\n  x: y": {"it is not YAML of names and values"},
		"slots: many\n":                                {"slots"},
		"lease: 30\n":                                  {"lease"},
	} {
		_, _, err := parse(t, "--config", write(t, text))
		if err == nil {
			t.Errorf("%q was accepted", text)
			continue
		}
		for _, part := range want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q: %v, want %q", text, err, part)
			}
		}
		if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: a secret, or more than a line: %v", text, err)
		}
	}
	if _, _, err := parse(t, "--config", "/no/such/file"); err == nil ||
		!strings.Contains(err.Error(), `--config: no such file "/no/such/file"`) {
		t.Errorf("%v", err)
	}
}

func TestAPrintedConfigurationCanBeReadBack(t *testing.T) {
	arguments := []string{"--slots", "5", "--ui", "--policy", "a b", "--policy", "true", "--hidden", "x: [y", "--lease",
		"90s"}
	line, parsed, err := parse(t, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	var printed strings.Builder
	if err := Print(&printed, parsed); err != nil {
		t.Fatal(err)
	}
	for _, flag := range unlisted {
		if strings.Contains(printed.String(), flag+":") {
			t.Errorf("%s is printed:\n%s", flag, printed.String())
		}
	}
	name := write(t, printed.String())
	again, _, err := parse(t, "--config", name)
	line.Config = Path(name)
	if err != nil || again.Slots != line.Slots || again.Lease != line.Lease || again.UI != line.UI ||
		again.Hidden != line.Hidden ||
		strings.Join(again.Policy, "|") != strings.Join(line.Policy, "|") {
		t.Errorf("%+v, %v; want %+v\n%s", again, err, line, printed.String())
	}
}

// TestNoPasswordIsPrinted: a password may contain any characters.
func TestNoPasswordIsPrinted(t *testing.T) {
	for url, want := range map[string]string{
		"redis://:hunter2@h:1/0":                                    "redis://:[REDACTED]@h:1/0",
		"redis://u:hun@hunter2@h:1":                                 "redis://u:[REDACTED]@h:1",
		"redis://hunter2@h":                                         "redis://[REDACTED]@h",
		"redis://:x'hunter2@h":                                      "redis://:[REDACTED]@h",
		`redis://:x"hunter2@h`:                                      "redis://:[REDACTED]@h",
		"redis://:x hunter2@h":                                      "redis://:[REDACTED]@h",
		"redis://:x/#?hunter2@h":                                    "redis://:[REDACTED]@h",
		"redis://h/0?password=hunter2":                              "redis://h/0?password=[REDACTED]",
		"redis://h:6379/0":                                          "redis://h:6379/0",
		"not a url, and mail@example.test":                          "not a url, and mail@example.test",
		"redis+sentinel://:hunter2@a,b/0?sentinel_password=hunter2": "redis+sentinel://:[REDACTED]@a,b/0?sentinel_password=[REDACTED]",
	} {
		_, parsed, err := parse(t, "--redis-url", url)
		if err != nil {
			t.Fatal(err)
		}
		var printed strings.Builder
		if err := Print(&printed, parsed); err != nil || strings.Contains(printed.String(), "hunter2") ||
			!strings.Contains(printed.String(), want) {
			t.Errorf("%s: no %s in\n%s%v", url, want, printed.String(), err)
		}
	}
}
