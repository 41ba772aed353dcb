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

// AnonymousMiB returns the memory that a process has written: it has no file behind it, so that the kernel cannot drop
// it. The pages of the program's own file, which all processes of it share, are not counted.
func AnonymousMiB(t testing.TB, pid int) float64 {
	t.Helper()
	return memoryMiB(t, pid, "smaps_rollup", anonymous)
}

// PeakMiB returns the most memory that a process ever had resident, pages of files included.
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
