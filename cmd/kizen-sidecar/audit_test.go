package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// What logrotate does: the file is moved, SIGHUP is sent, and what follows is in a new file of the old name.
func TestTheAuditFileIsReopenedOnSIGHUP(t *testing.T) {
	api := newRecordingAPI(t)
	api.expect([]route{
		{Method: "GET", Path: "/before", Responses: []cannedResponse{{Status: 204}}}, {Method: "GET", Path: "/kept", Responses: []cannedResponse{{Status: 204}}},
		{Method: "GET", Path: "/after", Responses: []cannedResponse{{Status: 204}}},
	})
	dir := filepath.Join(t.TempDir(), "audit")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file, moved := filepath.Join(dir, "audit"), filepath.Join(dir, "audit.1")
	p := startProxy(t, "--api-root", api.root(), "--audit-file", file)
	get(t, p.URL+"/before")
	if err := os.Rename(file, moved); err != nil {
		t.Fatal(err)
	}
	// A name that cannot be opened leaves the moved file in use: no call goes unrecorded.
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	hangUp(t, p, "the audit file could not be reopened")
	get(t, p.URL+"/kept")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	hangUp(t, p, "audit file reopened")
	get(t, p.URL+"/after")
	if code := p.Stop(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	for name, want := range map[string][]string{moved: {`"path":"/before"`, `"path":"/kept"`}, file: {`"path":"/after"`}} {
		text, err := os.ReadFile(name)
		if err != nil || strings.Count(string(text), "\n") != len(want) {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
		for _, part := range want {
			if !strings.Contains(string(text), part) {
				t.Errorf("%s is\n%s\nwant %s", name, text, part)
			}
		}
	}
}

func hangUp(t *testing.T, p *sidecartest.Proxy, said string) {
	t.Helper()
	if err := p.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return strings.Contains(p.Log.String(), said) })
}
