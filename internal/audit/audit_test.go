package audit

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// content returns the content of a file.
func content(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// open opens an audit file with a log.
func open(t *testing.T, name string) (*File, *slog.Logger, *bytes.Buffer) {
	t.Helper()
	file, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	return file, slog.New(slog.NewTextHandler(&logged, nil)), &logged
}

func TestLinesOfConcurrentCallsStayWhole(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit")
	file, log, logged := open(t, name)
	var calls sync.WaitGroup
	for i := range 50 {
		calls.Go(func() {
			if n, err := file.Write(fmt.Appendf(nil, "line %02d\n", i)); n != 8 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
	calls.Wait()
	file.Close(log)
	text := content(t, name)
	for i := range 50 {
		if strings.Count(text, fmt.Sprintf("line %02d\n", i)) != 1 {
			t.Errorf("line %d is not in the file exactly once", i)
		}
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 || info.Size() != 50*8 || logged.Len() > 0 {
		t.Errorf("%v, %v, %s", info, err, logged)
	}
}

func TestOpenReturnsWhyTheFileCannotBeOpened(t *testing.T) {
	if _, err := Open(t.TempDir()); err == nil || err.Error() != "is a directory" {
		t.Errorf("%v", err)
	}
	if _, err := Open("/no/such/folder/audit"); err == nil || err.Error() != "no such file or directory" {
		t.Errorf("%v", err)
	}
}

// TestAFullDiskLosesOnlyLinesBeyondTheLimit uses a device that is always full.
func TestAFullDiskLosesOnlyLinesBeyondTheLimit(t *testing.T) {
	file, log, logged := open(t, "/dev/full")
	if _, err := file.Write([]byte("one\n")); err == nil || err.Error() != "no space left on device" {
		t.Errorf("%v", err)
	}
	if err := file.Ready(); err == nil {
		t.Error("ready although a line is unwritten")
	}
	if _, err := file.Write(bytes.Repeat([]byte("x"), maxUnwritten-4)); err == nil ||
		!strings.Contains(err.Error(), "no space") {
		t.Errorf("at the limit: %v", err)
	}
	for lost := 1; lost <= 2; lost++ {
		if _, err := file.Write([]byte("y")); err == nil ||
			!strings.Contains(err.Error(), fmt.Sprintf("%d lines are lost", lost)) {
			t.Errorf("beyond the limit: %v", err)
		}
	}
	file.Close(log)
	if !strings.Contains(logged.String(), "the audit is incomplete") || !strings.Contains(logged.String(), "lines_lost=3") {
		t.Errorf("%s", logged)
	}
}

// TestATornLineIsWrittenAgain limits the size of the file, so that a write ends within a line, as on a disk that fills
// up.
func TestATornLineIsWrittenAgain(t *testing.T) {
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	limit := func(size uint64) {
		t.Helper()
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
	}
	defer limit(before.Cur)
	name := filepath.Join(t.TempDir(), "audit")
	file, log, logged := open(t, name)
	limit(10)
	if _, err := file.Write([]byte("line one\n")); err != nil {
		t.Error(err)
	}
	if _, err := file.Write([]byte("line two\n")); err == nil || err.Error() != "file too large" {
		t.Errorf("%v", err)
	}
	limit(before.Cur)
	if err := file.Ready(); err != nil {
		t.Error(err)
	}
	if text := content(t, name); text != "line one\nl\nline two\n" {
		t.Errorf("%q", text)
	}
	file.Close(log)
	if logged.Len() > 0 {
		t.Errorf("%s", logged)
	}
}

// TestFollow rotates the file as logrotate does: it moves the file and sends SIGHUP.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	name, moved := filepath.Join(dir, "audit"), filepath.Join(dir, "audit.1")
	file, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	logged := make(chan string, 16)
	log := slog.New(slog.NewTextHandler(writer(func(p []byte) { logged <- string(p) }), nil))
	stop := file.Follow(log)
	hangUp := func(want string) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if got := <-logged; !strings.Contains(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
	}
	write := func(line string) {
		t.Helper()
		if _, err := file.Write([]byte(line)); err != nil {
			t.Error(err)
		}
	}
	write("before\n")
	if err := os.Rename(name, moved); err != nil {
		t.Fatal(err)
	}
	// The old file stays in use if its name cannot be opened, so that every call is recorded.
	if err := os.Mkdir(name, 0o700); err != nil {
		t.Fatal(err)
	}
	hangUp("the audit file could not be reopened")
	write("kept\n")
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	hangUp("audit file reopened")
	write("after\n")
	stop()
	file.Close(log)
	if old, current := content(t, moved), content(t, name); old != "before\nkept\n" || current != "after\n" {
		t.Errorf("%q and %q", old, current)
	}
	(*File)(nil).Follow(log)() // without an audit file, Follow does nothing
}

// writer is an io.Writer that calls a function.
type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

// TestUnwrittenLinesGoToTheReopenedFile: the name first belongs to a device that is full, then to a file.
func TestUnwrittenLinesGoToTheReopenedFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit")
	if err := os.Symlink("/dev/full", name); err != nil {
		t.Fatal(err)
	}
	file, log, logged := open(t, name)
	for _, line := range []string{"one\n", "two\n"} {
		if _, err := file.Write([]byte(line)); err == nil {
			t.Error("a full device accepted a line")
		}
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := file.reopen(); err != nil {
		t.Fatal(err)
	}
	file.Close(log)
	if text := content(t, name); text != "one\ntwo\n" || logged.Len() > 0 {
		t.Errorf("%q, %s", text, logged)
	}
}
