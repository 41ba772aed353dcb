package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// projectRoot is the folder of Dockerfile and compose.yaml.
const projectRoot = "../.."

// TestContainerFilesNameOnlyWhatExists checks the container files without an engine: every copied path must exist, and
// the built binaries must know every command and flag.
func TestContainerFilesNameOnlyWhatExists(t *testing.T) {
	dockerfile := readText(t, "Dockerfile")
	t.Run("copied paths", func(t *testing.T) {
		copied := 0
		for _, match := range regexp.MustCompile(`(?m)^COPY ([^-\n].*) \S+$`).FindAllStringSubmatch(dockerfile, -1) {
			for _, path := range strings.Fields(match[1]) {
				copied++
				if _, err := os.Stat(filepath.Join(projectRoot, path)); err != nil {
					t.Errorf("Dockerfile copies %s: %v", path, err)
				}
			}
		}
		if copied == 0 {
			t.Error("found no COPY in the Dockerfile")
		}
	})
	t.Run("every Go folder is copied", func(t *testing.T) {
		const module = "github.com/kizen/kizen-sidecar/"
		list := exec.CommandContext(t.Context(), "go", "list", "-deps", module+"cmd/...")
		list.Dir = projectRoot
		packages, err := list.Output()
		if err != nil {
			t.Fatal(err)
		}
		for path := range strings.Lines(string(packages)) {
			path, ours := strings.CutPrefix(strings.TrimSpace(path), module)
			folder, _, _ := strings.Cut(path, "/")
			if ours && !strings.Contains(dockerfile, "COPY "+folder+" "+folder+"\n") {
				t.Errorf("Dockerfile does not copy %s", folder)
			}
		}
	})
	t.Run("stages", func(t *testing.T) {
		for _, match := range regexp.MustCompile(`--from=(\S+)`).FindAllStringSubmatch(dockerfile, -1) {
			if !strings.Contains(dockerfile, " AS "+match[1]+"\n") {
				t.Errorf("no stage is named %s", match[1])
			}
		}
	})
	t.Run("health check", func(t *testing.T) {
		match := regexp.MustCompile(`HEALTHCHECK .*CMD (\[.*\])`).FindStringSubmatch(dockerfile)
		if match == nil {
			t.Fatal("the Dockerfile has no HEALTHCHECK")
		}
		sidecartest.RequireFlags(t, jsonList(t, match[1]))
	})
	t.Run("not root", func(t *testing.T) {
		if !regexp.MustCompile(`(?m)^USER \d{4,}$`).MatchString(dockerfile) {
			t.Error("the image runs as root")
		}
	})
	t.Run("step packages", func(t *testing.T) {
		lists := regexp.MustCompile(`STEP_PACKAGES="([^"]*)"`).FindAllStringSubmatch(dockerfile, -1)
		if len(lists) != 2 || lists[0][1] != lists[1][1] {
			t.Errorf("both Pythons must get the same packages: %v", lists)
		}
	})
	t.Run("default command", func(t *testing.T) {
		match := regexp.MustCompile(`(?m)^CMD (\[.*\])$`).FindStringSubmatch(dockerfile)
		sidecartest.RequireFlags(t, append([]string{"kizen-sidecar"}, jsonList(t, match[1])...))
	})
	t.Run("compose", func(t *testing.T) { checkCompose(t, readText(t, "compose.yaml"), dockerfile) })
}

// composeFile is the part of compose.yaml that the test checks.
type composeFile struct {
	Services map[string]struct {
		Build      string              `yaml:"build"`
		Entrypoint []string            `yaml:"entrypoint"`
		Command    []string            `yaml:"command"`
		DependsOn  map[string]struct{} `yaml:"depends_on"`
	} `yaml:"services"`
}

func checkCompose(t *testing.T, text, dockerfile string) {
	var compose composeFile
	if err := yaml.Unmarshal([]byte(text), &compose); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"redis", "platform", "demo"} {
		if _, ok := compose.Services[name]; !ok {
			t.Errorf("compose.yaml has no service %s", name)
		}
	}
	for name, service := range compose.Services {
		if service.Build == "" {
			continue
		}
		command := []string{"kizen-sidecar"}
		if len(service.Entrypoint) > 0 {
			command = service.Entrypoint
		}
		if command[0] == "sh" {
			for _, words := range regexp.MustCompile(`kizen-sidecar \w+`).FindAllString(strings.Join(service.Command, " "), -1) {
				sidecartest.RequireFlags(t, strings.Fields(words))
			}
			continue
		}
		sidecartest.RequireFlags(t, append(slices.Clone(command), service.Command...))
		for _, argument := range service.Command {
			if path, ok := strings.CutPrefix(argument, "/usr/share/kizen/"); ok {
				if _, err := os.Stat(filepath.Join(projectRoot, path)); err != nil ||
					!strings.Contains(dockerfile, "COPY examples /usr/share/kizen/examples") {
					t.Errorf("service %s runs %s, which the image does not have", name, argument)
				}
			}
		}
		for other := range service.DependsOn {
			if _, ok := compose.Services[other]; !ok {
				t.Errorf("service %s depends on %s, which does not exist", name, other)
			}
		}
	}
}

func jsonList(t *testing.T, text string) []string {
	t.Helper()
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return list
}

func readText(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(projectRoot, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
