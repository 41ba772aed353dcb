package sidecartest

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
)

// anonymous is a line of smaps_rollup (proc_pid_smaps(5)).
var anonymous = regexp.MustCompile(`(?m)^Anonymous:\s+(\d+) kB`)

// AnonymousMiB returns the memory that a process has written: it has no file behind it, so that the kernel cannot drop it. The
// pages of the program's own file, which all processes of it share, are not counted.
func AnonymousMiB(t testing.TB, pid int) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := anonymous.FindSubmatch(text)
	if found == nil {
		t.Fatalf("smaps_rollup of %d has no Anonymous: %s", pid, text)
	}
	kib, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return float64(kib) / 1024
}
