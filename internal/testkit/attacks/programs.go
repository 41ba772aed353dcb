package attacks

import (
	"embed"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Program is an attack that a step runs, in Python. It tries one thing. If that succeeds, it prints a line that begins
// with BROKEN, but does no harm: it destroys only files that [NewTarget] created, and calls the kernel with invalid
// arguments.
type Program struct {
	Name string
	// Namespaced means that only a private file system or a PID namespace refuses the attack.
	Namespaced bool
	// Always means that the attack is refused without a sandbox too.
	Always bool
	// Unprivileged means that the attack is refused only to users other than root.
	Unprivileged bool
	// OwnUser means that the attack is for a step that runs as the sidecar's own user and sees its processes.
	OwnUser bool
	// Scoped means that only Landlock's scopes (Linux 6.12) refuse the attack.
	Scoped bool

	code string
}

//go:embed prelude.py programs/*.py
var files embed.FS

// A program's file begins with its name and those of these lines that apply.
const (
	namespacedLine   = "# refused only with namespaces\n"
	alwaysLine       = "# refused without a sandbox too\n"
	unprivilegedLine = "# refused only to users other than root\n"
	scopedLine       = "# refused only with Landlock's scopes\n"
	ownUserLine      = "# for a step that runs as the sidecar's own user\n"
)

// Prelude defines the names that all programs use.
func Prelude() string { return read("prelude.py") }

// Programs returns all programs.
func Programs() []Program {
	entries, err := files.ReadDir("programs")
	if err != nil {
		panic(err) // the files are embedded
	}
	var programs []Program
	for _, entry := range entries {
		name, code, _ := strings.Cut(read(path.Join("programs", entry.Name())), "\n")
		p := Program{Name: strings.TrimPrefix(name, "# ")}
		code, p.Namespaced = strings.CutPrefix(code, namespacedLine)
		code, p.Always = strings.CutPrefix(code, alwaysLine)
		code, p.Unprivileged = strings.CutPrefix(code, unprivilegedLine)
		code, p.OwnUser = strings.CutPrefix(code, ownUserLine)
		p.code, p.Scoped = strings.CutPrefix(code, scopedLine)
		programs = append(programs, p)
	}
	return programs
}

func read(name string) string {
	data, err := files.ReadFile(name)
	if err != nil {
		panic(err) // the file is embedded
	}
	return string(data)
}

// Source returns a complete program, which prints its findings.
func (p Program) Source(target Target) string { return Prelude() + target.names() + p.code }

// Step returns a step that logs the program's findings, or an empty message.
func (p Program) Step(target Target) string {
	return Prelude() + target.names() + "got = []\ndef broken(*what): got.append(' '.join(map(str, what)))\n" + p.code +
		"\noutputs.log('\\n'.join(got))\n"
}

// Target describes the environment that the programs attack.
type Target struct {
	Sidecar int // process ID
	Group   int // its process group
	// A world-writable directory: "id" in it is a copy of id(1) that runs as its owner, and "victim" is empty.
	Exposed  string
	Secret   string // a file that must stay unreadable
	Project  string // the project's folder
	Socket   string // the name of an abstract socket of the host
	Hostname string
	// Environment lists the names of the variables that the step may see.
	Environment []string
	// Descriptors are the descriptors that the step may have, in addition to the standard ones.
	Descriptors []int
	// KeepsBounding means that the machine does not let the sidecar empty the bounding set of capabilities, which is
	// harmless without new privileges.
	KeepsBounding bool
}

// NewTarget creates the files that attacks may destroy, and removes them after the test. parent is a directory that
// programs can see.
func NewTarget(t testing.TB, parent, project string) Target {
	t.Helper()
	target := Target{
		Sidecar: os.Getpid(), Group: syscall.Getpgrp(), Project: project, Secret: filepath.Join(t.TempDir(), "secret.txt"),
		Environment: []string{"PATH", "HOME", "LANG", "TMPDIR", "LC_CTYPE"},
	}
	if err := os.WriteFile(target.Secret, []byte("for the sidecar's eyes only"), 0o644); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", fmt.Sprintf("@kizen-attacks-%d-%s", os.Getpid(), filepath.Base(t.TempDir())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	target.Socket = strings.TrimPrefix(socket.Addr().String(), "@")
	if target.Hostname, err = os.Hostname(); err != nil {
		t.Fatal(err)
	}
	target.Exposed = exposedDirectory(t, parent)
	target.Renew(t)
	return target
}

// Renew creates the files again that the previous attack may have destroyed.
func (target Target) Renew(t testing.TB) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(target.Exposed, "victim"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func exposedDirectory(t testing.TB, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "kizen-exposed-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program, err := os.ReadFile("/usr/bin/id")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "id"), program, 0o600); err != nil {
		t.Fatal(err)
	}
	// WriteFile applies the umask; Chmod does not.
	for path, mode := range map[string]os.FileMode{dir: 0o777, filepath.Join(dir, "id"): 0o755 | os.ModeSetuid} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// names defines the variables that programs use.
func (target Target) names() string {
	python := func(yes bool) string {
		if yes {
			return "True"
		}
		return "False"
	}
	var lines strings.Builder
	fmt.Fprintf(&lines,
		"EXPOSED, SIDECAR, GROUP, SECRET, PROJECT, SOCKET, HOSTNAME, BOUNDING = %q, %d, %d, %q, %q, %q, %q, %s\n",
		target.Exposed, target.Sidecar, target.Group, target.Secret, target.Project, target.Socket, target.Hostname,
		python(!target.KeepsBounding))
	lines.WriteString("SETUID, VICTIM, ENVIRONMENT, DESCRIPTORS = EXPOSED + '/id', EXPOSED + '/victim', set(), {'0', '1', '2'}\n")
	for _, name := range target.Environment {
		fmt.Fprintf(&lines, "ENVIRONMENT.add(%q)\n", name)
	}
	for _, descriptor := range target.Descriptors {
		fmt.Fprintf(&lines, "DESCRIPTORS.add('%d')\n", descriptor)
	}
	return lines.String()
}
