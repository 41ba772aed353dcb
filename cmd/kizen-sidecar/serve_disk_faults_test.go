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

// smallDisk mounts a file system of 256 KiB and 32 files.
func smallDisk(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can mount a small disk")
	}
	disk := t.TempDir()
	if err := unix.Mount("kizen-test", disk, "tmpfs", unix.MS_NOSUID, "size=256k,nr_inodes=32,mode=1777"); err != nil {
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

// fill uses up every block and every file of a small disk. free gives them back.
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
	for i := 0; ; i++ { // blocks are used up: files may be left
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

func TestServeNeedsNoDiskWhereStepsHaveTheirOwn(t *testing.T) {
	disk := smallDisk(t)
	api := newGateAPI(t)
	s := try(t, startRedisServer(t), disk, "--warm", "0", "--slots", "4", "--api-root", api.root()).settle(4)
	free := fill(t, disk)
	for range 3 {
		got := s.ask("POST", "/api/coderunner/run", script("open('/tmp/x', 'wb').write(bytes(1 << 20))\noutputs.log(kizen.api.get('/x').status_code)"))
		if got.status != 200 || !strings.Contains(got.body, `"logs":["204"]`) {
			t.Errorf("on a full disk: %d %s", got.status, got.body)
		}
	}
	free()
	s.requireWell()
}

// TestServeSaysThatItsDiskIsFull has steps use the sidecar's own disk, as they
// do where the kernel gives them none.
func TestServeSaysThatItsDiskIsFull(t *testing.T) {
	disk := smallDisk(t)
	redisURL := startRedisServer(t)
	api := newGateAPI(t)
	s := try(t, redisURL, disk, "--sandbox", "off", "--warm", "0", "--slots", "4", "--api-root", api.root()).settle(4)
	free := fill(t, disk)
	for range 3 {
		got := s.ask("POST", "/api/coderunner/run", script("pass"))
		if got.status != 503 || !strings.Contains(got.body, "runner_unavailable") || !strings.Contains(got.body, "no space left on device") {
			t.Errorf("on a full disk: %d %s", got.status, got.body)
		}
	}
	free()
	s.requireWell()
}

// TestAnAuditThatCannotBeWrittenIsSaidAndGoesOnAfterwards has the audit's disk
// fill up in the middle of a line.
func TestAnAuditThatCannotBeWrittenIsSaidAndGoesOnAfterwards(t *testing.T) {
	disk := smallDisk(t)
	api := newGateAPI(t)
	file := filepath.Join(disk, "audit.jsonl")
	s := try(t, startRedisServer(t), t.TempDir(), "--warm", "0", "--slots", "4", "--api-root", api.root(), "--audit-file", file).settle(4)
	free := fill(t, disk)
	got := s.ask("POST", "/api/coderunner/run", script("for _ in range(64): kizen.api.get('/x')"))
	if got.status != 200 || !strings.Contains(s.Log.String(), "could not write the audit") || !strings.Contains(s.Log.String(), "no space left on device") {
		t.Errorf("on a full disk: %d %s", got.status, got.body)
	}
	free()
	if got := s.ask("POST", "/api/coderunner/run", script("kizen.api.get('/afterwards')")); got.status != 200 {
		t.Errorf("afterwards: %d %s", got.status, got.body)
	}
	s.requireWell()
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(written), "\n"), "\n")
	torn := 0
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			torn++
		}
	}
	if last := lines[len(lines)-1]; torn > 1 || !json.Valid([]byte(last)) || !strings.Contains(last, "/afterwards") {
		t.Errorf("%d lines are torn, and the last is %s", torn, last)
	}
}
