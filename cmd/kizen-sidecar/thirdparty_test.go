package main

import (
	"bytes"
	"cmp"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/licensecheck"

	"github.com/kizen/kizen-sidecar/internal/testkit/reference"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// dependency is a third-party module in a binary.
type dependency struct {
	Path, Version, Dir string
	licence            string // SPDX expression
	text               string // of the licence, and of the notice, if it has one
}

// TestThirdPartyListsTheModulesOfTheBinaries: THIRD_PARTY.md lists the modules that the built binaries record, with
// their licences.
func TestThirdPartyListsTheModulesOfTheBinaries(t *testing.T) {
	var modules []string
	for _, name := range []string{"kizen-sidecar", "kizen-platform"} {
		info, err := buildinfo.ReadFile(sidecartest.Program(name))
		if err != nil {
			t.Fatal(err)
		}
		for _, module := range info.Deps {
			if module.Replace != nil {
				module = module.Replace
			}
			modules = append(modules, module.Path+"@"+module.Version)
		}
	}
	slices.Sort(modules)
	modules = slices.Compact(modules)
	if len(modules) < 10 {
		t.Fatalf("the binaries name %d modules", len(modules))
	}
	var all []dependency
	for _, found := range downloaded(t, append([]string{"mod", "download", "-json"}, modules...)) {
		found.read(t)
		all = append(all, found)
	}
	root := strings.TrimSpace(goOutput(t, "env", "GOROOT"))
	library := dependency{Path: "std", Dir: root} // its version is that of the toolchain
	library.read(t)
	all = append(all, library)
	reference.CheckFile(t, projectRoot+"/THIRD_PARTY.md", thirdParty(all))
}

func goOutput(t *testing.T, arguments ...string) string {
	t.Helper()
	command := exec.Command("go", arguments...)
	var refused bytes.Buffer
	command.Stderr = &refused
	output, err := command.Output()
	if err != nil {
		t.Fatalf("go %s: %v: %s", arguments[0], err, refused.String())
	}
	return string(output)
}

// downloaded returns the modules with their folders in the module cache.
func downloaded(t *testing.T, arguments []string) (all []dependency) {
	t.Helper()
	for decoder := json.NewDecoder(strings.NewReader(goOutput(t, arguments...))); ; {
		var next dependency
		switch err := decoder.Decode(&next); {
		case errors.Is(err, io.EOF):
			slices.SortFunc(all, func(a, b dependency) int { return cmp.Compare(a.Path, b.Path) })
			return all
		case err != nil:
			t.Fatal(err)
		}
		all = append(all, next)
	}
}

var (
	licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying)(\.(txt|md))?$`)
	// spdx finds the expression of a licence that has several parts.
	spdx       = regexp.MustCompile(`SPDX-License-Identifier: ([\w.+() -]*[\w.+)])`)
	noticeFile = regexp.MustCompile(`(?i)^notice(\.(txt|md))?$`)
)

// leastKnown is how much of a licence's text must match known licences, in percent.
const leastKnown = 75

// read finds the licence in the module's own folder.
func (d *dependency) read(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	var licences, notices []string
	for _, entry := range entries {
		if !licenceFile.MatchString(entry.Name()) && !noticeFile.MatchString(entry.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(d.Dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if noticeFile.MatchString(entry.Name()) {
			notices = append(notices, plain(text))
			continue
		}
		licences = append(licences, plain(text))
		coverage := licensecheck.Scan(text)
		if coverage.Percent < leastKnown {
			t.Errorf("%s: %s is %.0f%% a known licence; name the licence in this test", d.Path, entry.Name(), coverage.Percent)
		}
		for _, match := range coverage.Match {
			if !match.IsURL && !strings.Contains(d.licence, match.ID) {
				d.licence = strings.TrimPrefix(d.licence+" AND "+match.ID, " AND ")
			}
		}
	}
	d.text = strings.Join(append(licences, notices...), "\n")
	if declared := spdx.FindStringSubmatch(d.text); declared != nil {
		d.licence = declared[1]
	}
	if d.licence == "" {
		t.Errorf("%s has no licence in %s", d.Path, d.Dir)
	}
}

// plain returns text with Unix line ends and without spaces at the ends of lines.
func plain(text []byte) string {
	var lines []string
	for line := range strings.Lines(string(text)) {
		lines = append(lines, strings.TrimRight(line, " \t\r\n\f"))
	}
	return strings.Trim(strings.Join(lines, "\n"), "\n") + "\n"
}

// thirdParty returns the page: a table of modules, then each licence once.
func thirdParty(all []dependency) string {
	var page strings.Builder
	page.WriteString("# Third-party software\n\n" +
		"The binaries `kizen-sidecar` and `kizen-platform` contain these Go modules. `std` is Go's standard library. `make docs`\n" +
		"writes this page from the modules that the binaries name and from the licences in the module cache.\n\n" +
		"| module | version | licence (SPDX) |\n|---|---|---|\n")
	users := map[string][]string{}
	var texts []string
	for _, d := range all {
		fmt.Fprintf(&page, "| `%s` | %s | %s |\n", d.Path, d.Version, d.licence)
		if users[d.text] == nil {
			texts = append(texts, d.text)
		}
		users[d.text] = append(users[d.text], d.Path)
	}
	page.WriteString("\n## Texts\n")
	for _, text := range texts {
		fmt.Fprintf(&page, "\nOf `%s`:\n\n```text\n%s```\n", strings.Join(users[text], "`,\n`"), text)
	}
	return page.String()
}
