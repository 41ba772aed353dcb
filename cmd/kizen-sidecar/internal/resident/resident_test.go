package resident

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestTrimGivesTheProgramsPagesBackAndTheProgramGoesOn(t *testing.T) {
	mappings, err := ofProgram()
	if err != nil {
		t.Fatal(err)
	}
	program := mappings[len(mappings)-1]
	for _, m := range mappings {
		if m.end-m.start > program.end-program.start {
			program = m
		}
	}
	for address := program.start; address < program.end; address += uintptr(os.Getpagesize()) {
		touch(t, address)
	}
	before := residentFile(t)
	if err := Trim(); err != nil {
		t.Fatal(err)
	}
	if after := residentFile(t); after > before-1024 { // what the test itself uses is back
		t.Errorf("%d KiB of files are resident, %d before", after, before)
	}
}

// touch reads a byte of the process's own memory.
func touch(t *testing.T, address uintptr) {
	t.Helper()
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	if _, err := memory.ReadAt(make([]byte, 1), int64(address)); err != nil {
		t.Fatal(err)
	}
}

// residentFile is RssFile of proc_pid_status(5), in KiB.
func residentFile(t *testing.T) (kib int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}
