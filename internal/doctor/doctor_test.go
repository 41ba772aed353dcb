package doctor

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/clocks"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

func TestCompareSaysByHowMuchAndWhatToDo(t *testing.T) {
	for _, row := range []struct {
		skew time.Duration
		err  error
		ok   bool
		note string
	}{
		{0, nil, true, "its clock is 0s from this machine's"},
		{-1500 * time.Millisecond, nil, true, "its clock is 1.5s from this machine's"},
		{clocks.Tolerable, nil, true, "from this machine's"},
		{clocks.Tolerable + time.Millisecond, nil, false, "ahead of this machine's; synchronise them"},
		{-time.Hour, nil, false, "its clock is 1h0m0s behind this machine's; synchronise them"},
		{0, errors.New("no Date header"), false, "its clock could not be measured: no Date header"},
	} {
		found := compare(row.skew, row.err)
		if found.OK != row.ok || !strings.Contains(found.Note, row.note) || (found.SkewMS == nil) != (row.err != nil) {
			t.Errorf("%s, %v: %+v, want %v and %q", row.skew, row.err, found, row.ok, row.note)
		}
		if found.SkewMS != nil && *found.SkewMS != row.skew.Milliseconds() {
			t.Errorf("%s: %d ms", row.skew, *found.SkewMS)
		}
	}
}

// healthy returns a diagnosis of a machine on which everything works.
func healthy() Diagnosis {
	return Diagnosis{
		Kernel: "Linux 6.1",
		Layers: sandbox.Report{{Name: "landlock", Held: true, Required: true, Means: "files are hidden"}},
		Pythons: []pythonFound{{Runtime: "python-3-12", Path: "/usr/bin/python3.12", OK: true},
			{Runtime: "python-3-13", Note: "no Python 3.13"}},
		Redis: redisFound{Configured: true, OK: true, Note: "keys can be minted"},
	}
}

func TestProblemIsTheFirstThatKeepsStepsFromRunning(t *testing.T) {
	for name, row := range map[string]struct {
		change   func(*Diagnosis)
		required bool
		want     string
	}{
		"nothing":                  {func(*Diagnosis) {}, true, ""},
		"a layer that is optional": {func(d *Diagnosis) { d.Layers[0].Held = false }, false, ""},
		"a layer that is required": {func(d *Diagnosis) { d.Layers[0].Held = false; d.Redis.OK = false }, true,
			"landlock"},
		"a layer with a substitute": {func(d *Diagnosis) { d.Layers[0].Held, d.Layers[0].Required = false, false }, true,
			""},
		"no Python": {func(d *Diagnosis) { d.Pythons[0] = pythonFound{Note: "no Python 3.12"}; d.Redis.OK = false }, false, "no Python 3.12"},
		"Redis": {func(d *Diagnosis) { d.Redis = redisFound{Configured: true, Note: "refused"} }, false,
			"refused"},
		"a clock, which only warns": {func(d *Diagnosis) {
			d.Redis.Clock, d.API = compare(time.Hour, nil),
				compare(time.Hour, nil)
		}, true, ""},
	} {
		found := healthy()
		row.change(&found)
		err := found.Problem(row.required)
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

func TestPrintMarksFailuresAndWarnings(t *testing.T) {
	found := healthy()
	found.Layers = append(found.Layers, sandbox.Layer{Name: "seccomp", Why: "not permitted",
		Means: "calls are not filtered"})
	found.Pythons[0].Note = "using Python 3.11"
	found.Redis.Clock = compare(time.Hour, nil)
	found.API = compare(0, errors.New("refused"))
	var out strings.Builder
	if err := found.Print(&out); err != nil {
		t.Fatal(err)
	}
	want := `Linux 6.1

✓  landlock  files are hidden
✗  seccomp   calls are not filtered (not permitted)

!  python-3-12  using Python 3.11
✗  python-3-13  no Python 3.13
!  redis        keys can be minted; its clock is 1h0m0s ahead of this machine's; synchronise them: keys tolerate differences of 5s
!  api          its clock could not be measured: refused
`
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

func TestDiagnoseTriesRedisAndTheClocks(t *testing.T) {
	embedded, err := redisconn.StartEmbedded()
	if err != nil {
		t.Fatal(err)
	}
	defer embedded.Close()
	client, err := redisconn.Open(redisconn.Config{Embedded: embedded})
	if err != nil {
		t.Fatal(err)
	}
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
	}))
	defer api.Close()
	root, err := url.Parse(api.URL)
	if err != nil {
		t.Fatal(err)
	}
	config := Config{Sandbox: sandbox.ModeOff, Python: "/no/such/python", Redis: client, APIRoot: root}
	found, err := Diagnose(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if !found.Redis.OK || !found.Redis.Configured || found.Redis.Clock == nil || !found.Redis.Clock.OK {
		t.Errorf("redis: %+v, clock %+v", found.Redis, found.Redis.Clock)
	}
	if found.API.OK || !strings.Contains(found.API.Note, "behind this machine's") {
		t.Errorf("api: %+v", found.API)
	}
	if len(found.Pythons) != 2 || found.Pythons[0].OK || !strings.Contains(found.Pythons[0].Note, "/no/such/python") {
		t.Errorf("pythons: %+v", found.Pythons)
	}
	if !strings.HasPrefix(found.Kernel, "Linux ") {
		t.Errorf("kernel %q", found.Kernel)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	config.APIRoot = nil
	if found, err = Diagnose(t.Context(), config); err != nil || found.Redis.OK || found.Redis.Clock != nil ||
		found.API != nil {
		t.Errorf("with a closed Redis: %+v, %v", found, err)
	}
	config.Redis = nil
	if found, err = Diagnose(t.Context(), config); err != nil || !found.Redis.OK || found.Redis.Configured {
		t.Errorf("without Redis: %+v, %v", found, err)
	}
	api.Close()
	config.APIRoot = root
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if found, err = Diagnose(cancelled, config); err != nil || found.API.OK || found.API.SkewMS != nil {
		t.Errorf("without the API: %+v, %v", found.API, err)
	}
}

// TestASubstitutePythonIsMarked creates folders that look like installed Pythons.
func TestASubstitutePythonIsMarked(t *testing.T) {
	program, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	for version, exact := range map[string][2]bool{"3.11": {false, false}, "3.12": {true, false}, "3.13": {false, true}} {
		prefix := t.TempDir()
		python := filepath.Join(prefix, "bin", "python"+version)
		requests := filepath.Join(prefix, "lib", "python"+version, "site-packages", "requests")
		for file, content := range map[string][]byte{python: text, filepath.Join(requests, "__init__.py"): nil} {
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, content, 0o755)); err != nil {
				t.Fatal(err)
			}
		}
		for i, row := range (Config{Python: python}).pythons() {
			if !row.OK || (row.Note == "") != exact[i] {
				t.Errorf("%s as %s: %+v", version, row.Runtime, row)
			}
		}
	}
}
