package reference

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

type storeFlags struct {
	Store string `help:"Where things are." default:"here" placeholder:"A|B" group:"Store"`
}

type program struct {
	Quiet bool `help:"Say nothing." short:"q"`
	Look  struct {
		storeFlags
		Place string `arg:"" help:"A *place*." optional:""`
		Name  string `help:"Whose. Default: yours." env:"LOOK_NAME,NAME"`
		Never bool   `hidden:""`
	} `cmd:"" help:"Look at <things>."`
	Drop struct {
		storeFlags
		All bool   `help:"All of them." required:"" xor:"what"`
		One string `help:"This one." required:"" xor:"what"`
	} `cmd:"" help:"Drop things."`
}

func model(t *testing.T) *kong.Application {
	t.Helper()
	parser, err := kong.New(new(program), kong.Name("things"),
		kong.Description("About things.\n\nExamples:\n  things look\n      Look around."), kong.DefaultEnvars("THINGS"))
	if err != nil {
		t.Fatal(err)
	}
	return parser.Model
}

func TestReferenceHasEveryCommandFlagAndVariableOnce(t *testing.T) {
	text := Markdown(model(t), []Variable{{"OTHER", "Something *else*."}})
	for _, line := range []string{
		"| [`look`](#things-look) | Look at \\<things>. |",
		"| `--quiet` `-q` | `THINGS_QUIET` |  | Say nothing. |",
		"| `[<place>]` |  | A \\*place\\*. |",
		"| `--name=STRING` | `LOOK_NAME` `NAME` | yours | Whose. |",
		"| `--store=A\\|B` | `THINGS_STORE` | `here` | Where things are. |",
		"Of [`look`](#things-look), [`drop`](#things-drop).",
		"| `--all` | `THINGS_ALL` | one of these is required | All of them. |",
		"| `OTHER` | Something \\*else\\*. |",
		"```sh norun=example\n# Look around.\nthings look\n```",
	} {
		if strings.Count(text, line+"\n") != 1 {
			t.Errorf("this does not occur exactly once:\n%s\nin\n%s", line, text)
		}
	}
	if strings.Contains(text, "never") || strings.Contains(text, "--help") {
		t.Errorf("it contains a hidden flag or command:\n%s", text)
	}
}

func TestVariablesAreFoundHoweverTheyAreLookedUp(t *testing.T) {
	dir := t.TempDir()
	source := "package p\nconst name = \"OF_A_CONSTANT\"\nvar a, b = os.Getenv(name)\nfunc f() { os.LookupEnv(\"WRITTEN_OUT\"); getenv(\"HANDED_IN\") }\n"
	if err := os.WriteFile(dir+"/p.go", []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	for documented, want := range map[string][]string{
		"OF_A_CONSTANT WRITTEN_OUT HANDED_IN": nil,
		"HANDED_IN":                           {"OF_A_CONSTANT", "WRITTEN_OUT"},
		"":                                    {"OF_A_CONSTANT", "WRITTEN_OUT", "HANDED_IN"},
	} {
		if got, err := Undocumented([]Variable{{Name: documented}}, dir); err != nil || !slices.Equal(got, want) {
			t.Errorf("with %q documented, the undocumented ones are %q (%v), want %q", documented, got, err, want)
		}
	}
}
