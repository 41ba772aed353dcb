package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestGroupsThatCouldNotBeRemovedAreRemovedLater uses a non-empty directory in place of a group whose process the
// kernel has not yet released.
func TestGroupsThatCouldNotBeRemovedAreRemovedLater(t *testing.T) {
	dir := t.TempDir()
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	c := &groups{memory: dir}
	c.sweep(time.Now())
	own := filepath.Join(dir, fmt.Sprintf("%s%d-1", groupPrefix, os.Getpid()))
	used := filepath.Join(dir, fmt.Sprintf("%s%d-2", groupPrefix, os.Getpid()))
	dead := filepath.Join(dir, fmt.Sprintf("%s%d-1", groupPrefix, gone.ProcessState.Pid()))
	for _, path := range []string{own, used, dead, filepath.Join(own, "process"), filepath.Join(dead, "process")} {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	(&group{parents: c, memory: own}).remove()
	c.sweep(time.Now().Add(sweepInterval))
	left := func() (names []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		return names
	}
	if names := left(); len(names) != 3 {
		t.Fatalf("%v is left, and all three are in use", names)
	}
	for _, path := range []string{own, dead} {
		if err := os.Remove(filepath.Join(path, "process")); err != nil {
			t.Fatal(err)
		}
	}
	c.sweep(time.Now().Add(sweepInterval))
	if names := left(); len(names) != 3 {
		t.Errorf("%v is left: the next sweep ran before its interval", names)
	}
	c.sweep(time.Now().Add(2 * sweepInterval))
	if names := left(); len(names) != 1 || names[0] != filepath.Base(used) {
		t.Errorf("%v is left, want the groups that programs of this sidecar use", names)
	}
}
