package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a file system of the given size, for at most 64 files.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can mount a small disk")
	}
	disk := t.TempDir()
	if err := unix.Mount("kizen-test", disk, "tmpfs", unix.MS_NOSUID, "size="+size+",nr_inodes=64,mode=1777"); err != nil {
		if os.Getenv("KIZEN_TEST_REQUIRE") != "" && !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: a small disk cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return disk
}

// fill uses up every block and every file of a small disk. free releases them.
func fill(t *testing.T, disk string) (free func()) {
	t.Helper()
	full := filepath.Join(disk, "full")
	if err := os.Mkdir(full, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; err == nil; i++ {
		err = os.WriteFile(filepath.Join(full, strconv.Itoa(i)), make([]byte, 16<<10), 0o600)
	}
	for i := 0; ; i++ { // the blocks are used up, but files may be left
		if err := os.WriteFile(filepath.Join(full, "empty"+strconv.Itoa(i)), nil, 0o600); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk does not fill up: %v", err)
	}
	return func() {
		t.Helper()
		if err := os.RemoveAll(full); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTortureServeNeedsNoDiskIfStepsHaveTheirOwn: on a full disk, steps still write to their own /tmp and call the API.
// A file system that is really full and the mounts of the sandbox meet.
func TestTortureServeNeedsNoDiskIfStepsHaveTheirOwn(t *testing.T) {
	disk := smallDisk(t, "256k")
	api := newGateAPI(t)
	s := try(t, startRedisServer(t), disk, "--warm", "0", "--slots", "4", "--api-root", api.root()).settle(4)
	free := fill(t, disk)
	for range 3 {
		got := s.ask("POST", "/api/coderunner/run",
			script("open('/tmp/x', 'wb').write(bytes(1 << 20))\noutputs.log(kizen.api.get('/x').status_code)"))
		if got.status != 200 || !strings.Contains(got.body, `"logs":["204"]`) {
			t.Errorf("on a full disk: %d %s", got.status, got.body)
		}
	}
	free()
	s.requireWell()
}

// TestTortureServeSaysThatItsDiskIsFull: steps use the sidecar's own disk, as they do if the kernel gives them none.
func TestTortureServeSaysThatItsDiskIsFull(t *testing.T) {
	disk := smallDisk(t, "1m") // the compiled harness is kept there too
	redisURL := startRedisServer(t)
	api := newGateAPI(t)
	s := try(t, redisURL, disk, "--sandbox", "off", "--warm", "0", "--slots", "4", "--api-root", api.root()).settle(4)
	free := fill(t, disk)
	for range 3 {
		got := s.ask("POST", "/api/coderunner/run", script("pass"))
		if got.status != 503 || !strings.Contains(got.body, "runner_unavailable") ||
			!strings.Contains(got.body, "no space left on device") {
			t.Errorf("on a full disk: %d %s", got.status, got.body)
		}
	}
	free()
	s.requireWell()
}

// TestADiskThatIsTooSmallForAStepsSourceIsNamed: this holds for a cold interpreter, and for a warm one, which has
// already created its directories.
func TestADiskThatIsTooSmallForAStepsSourceIsNamed(t *testing.T) {
	disk := smallDisk(t, "1m") // the compiled harness is kept there too
	source := "outputs.log(1)\n" + strings.Repeat("#", 2<<20)
	const want = "cannot write the step's source to "
	got := sidecar(t, source, []string{"TMPDIR=" + disk}, "run", "--script", "-", "--sandbox", "off")
	if got.code != exitSidecar || !strings.Contains(got.stderr, want+disk) ||
		!strings.Contains(got.stderr, "No space left on device") {
		t.Errorf("run: %d %s", got.code, got.stderr)
	}
	s := try(t, startRedisServer(t), disk, "--sandbox", "off", "--warm", "1", "--slots", "1")
	for range 2 {
		if got := s.ask("POST", "/api/coderunner/run", script(source)); got.status != 503 ||
			!strings.Contains(got.body, want) || !strings.Contains(got.body, "No space left on device") {
			t.Errorf("serve: %d %s", got.status, got.body)
		}
	}
	if got := s.ask("POST", "/api/coderunner/run", script("outputs.log(1)")); got.status != 200 {
		t.Errorf("a step that fits: %d %s", got.status, got.body)
	}
}

// TestTortureAFullAuditDiskRefusesCallsAndLosesNone: the audit's disk fills up, possibly within a line.
func TestTortureAFullAuditDiskRefusesCallsAndLosesNone(t *testing.T) {
	disk := smallDisk(t, "256k")
	api := newGateAPI(t)
	file := filepath.Join(disk, "audit.jsonl")
	s := try(t, startRedisServer(t), t.TempDir(), "--warm", "0", "--slots", "4", "--api-root", api.root(), "--audit-file",
		file).settle(4)
	settled := int(api.calls.Load())
	free := fill(t, disk)
	// The file may already own a page, which takes lines until it is full.
	got := s.ask("POST", "/api/coderunner/run",
		script("for i in range(64): r = kizen.api.get('/x')\noutputs.log(f'{r.status_code} {r.json()[\"code\"]}')"))
	if got.status != 200 || !strings.Contains(got.body, `"logs":["503 audit_unavailable"]`) {
		t.Errorf("on a full disk: %d %s", got.status, got.body)
	}
	if !strings.Contains(s.Log.String(), "could not write the audit") ||
		!strings.Contains(s.Log.String(), "no space left on device") {
		t.Errorf("the log does not say why:\n%s", s.Log)
	}
	if status, body := s.Readiness(); status != 503 || !strings.Contains(body, `"audit":"no space left on device"`) {
		t.Errorf("readiness on a full disk: %d %s", status, body)
	}
	free()
	if got := s.ask("POST", "/api/coderunner/run", script("kizen.api.get('/afterwards')")); got.status != 200 {
		t.Errorf("afterwards: %d %s", got.status, got.body)
	}
	s.requireWell()
	answered, refused, torn, last := readAudit(t, file)
	if answered != int(api.calls.Load()) || answered+refused != settled+65 || torn > 1 || last != "/afterwards" {
		t.Errorf("the api got %d calls; the audit has %d of them, %d refused ones and %d torn lines, the last is %s",
			api.calls.Load(), answered, refused, torn, last)
	}
}

// readAudit counts the lines of calls that were answered, the lines of calls that were refused because of the audit,
// and the torn lines.
func readAudit(t *testing.T, file string) (answered, refused, torn int, last string) {
	t.Helper()
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(written)) {
		var call struct{ Path, Outcome string }
		switch err := json.Unmarshal([]byte(line), &call); {
		case err != nil:
			torn++
		case call.Outcome == "audit_unavailable":
			refused++
		case call.Outcome == "answered":
			answered++
		}
		last = call.Path
	}
	return answered, refused, torn, last
}
