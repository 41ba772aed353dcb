package runner

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Interpreter is a Python found on this machine.
type Interpreter struct {
	// Path is the executable.
	Path string
	// Version is such as "3.13"; empty if the path does not show it.
	Version string
	// Prefix is the root of its installation, Base the root of its standard library, which differs in a venv.
	Prefix, Base string
	// HasRequests reports that one of its library directories contains the requests package.
	HasRequests bool
}

// oldestMinor is the oldest 3.x the harness runs on.
const oldestMinor = 11

// FindInterpreter chooses the Python for runtime. It returns explicit if given, otherwise the runtime's own version,
// otherwise the newest Python from 3.11 on with a warning. With strict it does not replace the version. It examines
// files, and runs a Python only if they are not sufficient. It chooses an interpreter without requests only if none has
// the package. The error wraps ErrNoPython.
func FindInterpreter(runtime Runtime, explicit string, strict bool) (found Interpreter, warning string, err error) {
	if explicit != "" {
		return explicitInterpreter(explicit, runtime)
	}
	candidates := findInterpreters(searchPath())
	best := Interpreter{}
	for _, candidate := range candidates {
		if strict && candidate.Version != runtime.Version() {
			continue
		}
		if rank(candidate, runtime) > rank(best, runtime) {
			best = candidate
		}
	}
	switch {
	case best.Path == "" && strict:
		return best, "",
			fmt.Errorf("%w: python%s is not installed; install it, name an interpreter, or allow another version",
				ErrNoPython, runtime.Version())
	case best.Path == "":
		return best, "", fmt.Errorf("%w: found no python3 from 3.%d on; install one or name an interpreter", ErrNoPython,
			oldestMinor)
	}
	return best, replacementWarning(best, runtime, candidates), nil
}

func explicitInterpreter(path string, runtime Runtime) (Interpreter, string, error) {
	resolved, err := exec.LookPath(path)
	if err != nil {
		return Interpreter{}, "", fmt.Errorf("%w: %q cannot be executed; give the path of a python3", ErrNoPython, path)
	}
	if resolved, err = filepath.Abs(resolved); err != nil {
		return Interpreter{}, "", fmt.Errorf("%w: %w", ErrNoPython, err)
	}
	found := inspect(resolveShim(resolved))
	if found.Version == "" {
		if found.Version, err = askVersion(found.Path); err != nil {
			return Interpreter{}, "", fmt.Errorf("%w: %q does not answer as a python3 would", ErrNoPython, path)
		}
	}
	if minor(found.Version) < oldestMinor {
		return Interpreter{}, "", fmt.Errorf("%w: %q is python %s; steps need python 3.%d or newer", ErrNoPython, path,
			found.Version, oldestMinor)
	}
	found.HasRequests = found.HasRequests || importsRequests(found.Path)
	var warnings []string
	if found.Version != runtime.Version() {
		warnings = append(warnings, fmt.Sprintf("%s asks for python %s; running on %s (%s) as configured", runtime,
			runtime.Version(), found.Path, found.Version))
	}
	return found, joinWarnings(append(warnings, requestsWarning(found))...), nil
}

// startTimeout limits how long an executable that may be a Python may take to answer.
const startTimeout = 10 * time.Second

// askVersion starts a Python whose path does not show its version.
func askVersion(path string) (string, error) {
	answer, err := ask(path, "import sys; print('%d.%d' % sys.version_info[:2])", "-S")
	if err == nil && !pythonVersion.MatchString(answer) {
		err = fmt.Errorf("%q is not a version of python", answer)
	}
	return answer, err
}

var pythonVersion = regexp.MustCompile(`^\d+\.\d+$`)

// importsRequests runs a Python to find out whether it has the requests package, if its files do not show it.
func importsRequests(path string) bool {
	answer, err := ask(path, "import importlib.util; print(importlib.util.find_spec('requests') is not None)")
	return err == nil && answer == "True"
}

// ask runs a line of code in a Python and returns its output.
func ask(path, code string, options ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	answer, err := exec.CommandContext(ctx, path, append(append([]string{"-I"}, options...), "-c", code)...).Output()
	return strings.TrimSpace(string(answer)), err
}

// resolveShim runs the shell script of a version manager once to find the Python behind it, because the script is slow
// and does not exist inside the sandbox. If the script does not answer, resolveShim returns the path unchanged.
func resolveShim(path string) string {
	if isBinary(path) {
		return path
	}
	if real, err := ask(path, "import sys; print(sys.executable)", "-S"); err == nil && filepath.IsAbs(real) &&
		isBinary(real) {
		return real
	}
	return path
}

// readable lists the directories that the interpreter needs in addition to the system's.
func (i Interpreter) readable() []string {
	var dirs []string
	for _, dir := range []string{i.Prefix, i.Base} {
		if dir != "" && dir != "/usr" && dir != "/" {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// rank orders interpreters: first by having requests, then by being the requested version, then by being newer.
func rank(i Interpreter, runtime Runtime) int {
	if i.Path == "" {
		return 0
	}
	score := 1 + minor(i.Version)
	if i.Version == runtime.Version() {
		score += 1000
	}
	if i.HasRequests {
		score += 2000
	}
	return score
}

func replacementWarning(best Interpreter, runtime Runtime, candidates []Interpreter) string {
	if best.Version == runtime.Version() {
		return requestsWarning(best)
	}
	reason := fmt.Sprintf("python%s is not installed", runtime.Version())
	for _, candidate := range candidates {
		if candidate.Version == runtime.Version() {
			reason = fmt.Sprintf("%s has no requests package", candidate.Path)
			break
		}
	}
	return joinWarnings(fmt.Sprintf("%s: running %s on %s (%s) instead", reason, runtime, best.Path, best.Version),
		requestsWarning(best))
}

// requestsWarning is empty for a Python that has the package.
func requestsWarning(i Interpreter) string {
	if i.HasRequests {
		return ""
	}
	return fmt.Sprintf("%s has no requests package: kizen.api will fail; install python3-requests", i.Path)
}

func joinWarnings(warnings ...string) string {
	return strings.Join(slices.DeleteFunc(warnings, func(warning string) bool { return warning == "" }), "; ")
}

// searchPath lists the directories to search for interpreters: a venv first, then PATH, then the usual places.
func searchPath() []string {
	var dirs []string
	if venv := os.Getenv("VIRTUAL_ENV"); venv != "" {
		dirs = append(dirs, filepath.Join(venv, "bin"))
	}
	if here, err := filepath.Abs(".venv/bin"); err == nil {
		dirs = append(dirs, here)
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		dirs = append(dirs, dir)
		// Replace a version manager's scripts by the binaries beside them.
		if filepath.Base(dir) == "shims" {
			more, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "versions/3.*/bin"))
			dirs = append(dirs, more...)
		}
	}
	dirs = append(dirs, "/usr/local/bin", "/usr/bin")
	// Container images and distributions put further versions beside the main one: /opt/python/3.13/bin,
	// /opt/python3.13/bin.
	for _, pattern := range []string{"/opt/python*/bin", "/opt/python/*/bin"} {
		more, _ := filepath.Glob(pattern)
		dirs = append(dirs, more...)
	}
	return dirs
}

func findInterpreters(dirs []string) []Interpreter {
	var found []Interpreter
	seen := map[string]bool{}
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			continue
		}
		for _, name := range interpreterNames() {
			path := filepath.Join(dir, name)
			if seen[path] || !isBinary(path) {
				continue
			}
			seen[path] = true
			if i := inspect(path); minor(i.Version) >= oldestMinor {
				found = append(found, i)
			}
		}
	}
	return found
}

func interpreterNames() []string {
	names := []string{"python3"}
	for m := oldestMinor; m <= 14; m++ {
		names = append(names, "python3."+strconv.Itoa(m))
	}
	return names
}

// isBinary distinguishes an interpreter from the shell shims of version managers, which start slowly and may start any
// version.
func isBinary(path string) bool {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return false
	}
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = file.Close() }()
	var magic [4]byte
	_, err = file.Read(magic[:])
	return err == nil && string(magic[:]) == "\x7fELF"
}

var versionedName = regexp.MustCompile(`^python(3\.\d+)$`)

func inspect(path string) Interpreter {
	i := Interpreter{Path: path}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		real = path
	}
	i.Prefix = filepath.Dir(filepath.Dir(path))
	i.Base = filepath.Dir(filepath.Dir(real))
	if m := versionedName.FindStringSubmatch(filepath.Base(real)); m != nil {
		i.Version = m[1]
	}
	venv, systemPackages := readVenv(i.Prefix)
	if !venv {
		i.Prefix = i.Base
		if !strings.HasPrefix(path, i.Base+"/") {
			i.Path = real // a link from elsewhere, which does not exist inside the sandbox
		}
	}
	i.HasRequests = hasRequests(i.Prefix, i.Version) || (!venv || systemPackages) && hasRequests(i.Base, i.Version)
	return i
}

// readVenv reads prefix's pyvenv.cfg, if it exists.
func readVenv(prefix string) (isVenv, systemPackages bool) {
	file, err := os.Open(filepath.Join(prefix, "pyvenv.cfg"))
	if err != nil {
		return false, false
	}
	defer func() { _ = file.Close() }()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), "=")
		if strings.TrimSpace(key) == "include-system-site-packages" {
			systemPackages = strings.TrimSpace(value) == "true"
		}
	}
	return true, systemPackages
}

func hasRequests(prefix, version string) bool {
	return slices.ContainsFunc(libraries(prefix, version), func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "requests/__init__.py"))
		return err == nil
	})
}

// libraries returns the directories in which packages may be installed. They need not exist.
func libraries(prefix, version string) []string {
	dirs := []string{filepath.Join(prefix, "lib/python"+version, "site-packages")}
	if prefix == "/usr" {
		dirs = append(dirs, "/usr/local/lib/python"+version+"/dist-packages", "/usr/lib/python3/dist-packages")
	}
	return dirs
}

// minor returns 13 for "3.13", and 0 for anything that is not Python 3.
func minor(version string) int {
	text, ok := strings.CutPrefix(version, "3.")
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return n
}
