package resident

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
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

// TestTrimKeepsWhatWasWrittenBeforeItWasProtected does to a page of constants what the dynamic linker does to its own.
func TestTrimKeepsWhatWasWrittenBeforeItWasProtected(t *testing.T) {
	constant := unsafe.StringData("a constant of the program")
	write := func(value byte) {
		t.Helper()
		size := os.Getpagesize()
		offset := int(uintptr(unsafe.Pointer(constant)) % uintptr(size))
		page := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(constant), -offset)), size)
		if err := unix.Mprotect(page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
			t.Fatal(err)
		}
		*constant = value
		if err := unix.Mprotect(page, unix.PROT_READ); err != nil {
			t.Fatal(err)
		}
	}
	write('A')
	defer write('a')
	if err := Trim(); err != nil {
		t.Fatal(err)
	}
	// A compiler knows what a constant is.
	if got := touch(t, uintptr(unsafe.Pointer(constant))); got != 'A' {
		t.Errorf("what was written is gone: %q", got)
	}
}

// touch reads a byte of the process's own memory.
func touch(t *testing.T, address uintptr) byte {
	t.Helper()
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	var content [1]byte
	if _, err := memory.ReadAt(content[:], int64(address)); err != nil {
		t.Fatal(err)
	}
	return content[0]
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
