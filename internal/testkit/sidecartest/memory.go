package sidecartest

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
)

var (
	anonymous = regexp.MustCompile(`(?m)^Anonymous:\s+(\d+) kB`) // of smaps_rollup (proc_pid_smaps(5))
	peak      = regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB`)     // of status (proc_pid_status(5))
)

// AnonymousMiB returns the anonymous memory of a process. The kernel cannot drop it, because no file contains it. It
// does not include the pages of the program's file, which all processes of the program share.
func AnonymousMiB(t testing.TB, pid int) float64 {
	t.Helper()
	return memoryMiB(t, pid, "smaps_rollup", anonymous)
}

// PeakMiB returns the peak resident memory of a process, including the pages of files.
func PeakMiB(t testing.TB, pid int) float64 {
	t.Helper()
	return memoryMiB(t, pid, "status", peak)
}

func memoryMiB(t testing.TB, pid int, file string, line *regexp.Regexp) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	found := line.FindSubmatch(text)
	if found == nil {
		t.Fatalf("%s of %d has no line %s: %s", file, pid, line, text)
	}
	kib, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return float64(kib) / 1024
}
