// Package imports checks which packages of this module may depend on which.
package imports

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kizen/kizen-sidecar/"

// listed is the output of `go list -json` for one package.
type listed struct {
	ImportPath string
	Deps       []string
	Module     *struct{ Path string }
}

// own returns the path of a package relative to this module, or "" for another module's.
func own(path string) string {
	name, _ := strings.CutPrefix(path, module)
	if name == path {
		return ""
	}
	return name
}

// within reports whether a package is in a folder or below it.
func within(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

// list returns the packages that match the arguments, with their dependencies.
func list(t *testing.T, arguments ...string) []listed {
	t.Helper()
	command := exec.Command("go", append([]string{"list", "-json=ImportPath,Deps,Module"}, arguments...)...)
	command.Dir = "../../.."
	var refused bytes.Buffer
	command.Stderr = &refused
	output, err := command.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, refused.String())
	}
	var packages []listed
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var next listed
		switch err := decoder.Decode(&next); {
		case errors.Is(err, io.EOF):
			return packages
		case err != nil:
			t.Fatal(err)
		}
		packages = append(packages, next)
	}
}

// parts are the packages that only internal/execution and the commands may join.
var parts = []string{"minter", "policy", "proxy", "runner"}

func TestThePartsDoNotImportEachOther(t *testing.T) {
	for _, listed := range list(t, "./minter/...", "./policy/...", "./proxy/...", "./runner/...") {
		path := own(listed.ImportPath)
		for _, dependency := range listed.Deps {
			for _, part := range parts {
				if within(own(dependency), part) && !within(path, part) {
					t.Errorf("%s depends on %s", path, own(dependency))
				}
			}
		}
	}
}

func TestNothingDependsOnACommand(t *testing.T) {
	for _, listed := range list(t, "./...") {
		for _, dependency := range listed.Deps {
			if within(own(dependency), "cmd") {
				t.Errorf("%s depends on %s", own(listed.ImportPath), own(dependency))
			}
		}
	}
}

// ofOtherModules lists the modules of the tools and of the heaviest tests. Those have their own go.mod files in
// internal/tools and internal/e2e. Otherwise, programs that import client or minter would have these modules in their
// module graph.
var ofOtherModules = []string{
	"github.com/chromedp", "github.com/tsenart/vegeta", "go.opentelemetry.io/collector", "honnef.co/go/tools", "k8s.io",
	"sigs.k8s.io",
}

func TestTheModuleRequiresNoToolsAndNoHeavyTestModules(t *testing.T) {
	command := exec.Command("go", "mod", "edit", "-json")
	command.Dir = "../../.."
	output, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Require []struct{ Path string }
		Tool    []struct{ Path string }
	}
	if err := json.Unmarshal(output, &file); err != nil || len(file.Require) < 10 {
		t.Fatalf("%d modules are required, %v", len(file.Require), err)
	}
	for _, required := range append(file.Require, file.Tool...) {
		if slices.ContainsFunc(ofOtherModules, func(folder string) bool { return within(required.Path, folder) }) {
			t.Errorf("go.mod requires %s; it belongs in internal/e2e or internal/tools", required.Path)
		}
	}
}

// onlyForTests lists modules and test helpers that only tests use. In the shipped binaries, they would cost size and
// cause needless updates.
var onlyForTests = []string{
	"testing", module + "internal/testkit", module + "internal/testkit/redistest",
	"github.com/chromedp", "github.com/creack/pty", "github.com/google/licensecheck", "github.com/pb33f",
	"github.com/rogpeppe/go-internal",
	"github.com/tsenart/vegeta", "go.opentelemetry.io/collector", "go.uber.org/goleak", "k8s.io", "mvdan.cc/sh",
	"sigs.k8s.io",
}

func TestTheBinariesContainNothingThatOnlyTestsUse(t *testing.T) {
	for _, listed := range list(t, "./cmd/kizen-sidecar", "./cmd/kizen-platform") {
		if len(listed.Deps) == 0 {
			t.Fatalf("%s has no dependencies", listed.ImportPath)
		}
		for _, dependency := range listed.Deps {
			if slices.ContainsFunc(onlyForTests, func(folder string) bool { return within(dependency, folder) }) {
				t.Errorf("%s depends on %s", own(listed.ImportPath), dependency)
			}
		}
	}
}

// ofClient lists the modules on which a program that imports client depends.
var ofClient = []string{
	"github.com/kizen/kizen-sidecar", "github.com/google/uuid", "github.com/hibiken/asynq", "github.com/redis/go-redis/v9",
	"github.com/standard-webhooks/standard-webhooks/libraries",
	// dependencies of asynq and go-redis
	"github.com/cespare/xxhash/v2", "github.com/robfig/cron/v3", "github.com/spf13/cast", "go.uber.org/atomic",
	"golang.org/x/sys", "golang.org/x/time", "google.golang.org/protobuf",
}

func TestTheClientHasFewDependencies(t *testing.T) {
	for _, listed := range list(t, "-deps", "./client") {
		if listed.Module != nil && !slices.Contains(ofClient, listed.Module.Path) {
			t.Errorf("client depends on %s", listed.ImportPath)
		}
		if path := own(listed.ImportPath); path != "" &&
			!slices.Contains([]string{"client", "internal/backoff", "internal/ids", "internal/outcomes", "internal/payload",
				"internal/tombstone", "internal/wire"}, path) {
			t.Errorf("client depends on %s", path)
		}
	}
}
