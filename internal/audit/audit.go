// Package audit keeps a file of every call that executions make.
package audit

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
)

// maxUnwritten bounds, in bytes, what is kept of calls that were under way when
// the audit's disk filled up.
const maxUnwritten = 4 << 20

// File is the file that every call is written to, for all executions of this
// process. Other processes may append to it too.
type File struct {
	file *os.File

	mu        sync.Mutex // held to use file, too
	unwritten []byte     // whole lines that the file did not take
	torn      bool       // the file ends in the midst of a line, as on a full disk
	dropped   int        // lines that were not even kept here
}

// Open opens the file, or makes it.
func Open(name string) (*File, error) {
	file, err := openFile(name)
	if err != nil {
		return nil, wholefile.Cause(err)
	}
	return &File{file: file}, nil
}

func openFile(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// reopen opens the file by its name again, since it may have been moved. Lines that the old file has not taken go to
// the new one. On an error the old file stays in use, so that no call goes unrecorded.
func (a *File) reopen() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	file, err := openFile(a.file.Name())
	if err != nil {
		return wholefile.Cause(err)
	}
	err = wholefile.Cause(a.file.Close())
	a.file, a.torn = file, false
	if flushing := a.flush(); err == nil {
		err = flushing
	}
	return err
}

// Follow reopens the file on SIGHUP until the function it returns is called. Without an audit it does nothing.
func (a *File) Follow(log *slog.Logger) (stop func()) {
	if a == nil {
		return func() {}
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	var following routine.Group
	following.Go(func() {
		for range hangups {
			if err := a.reopen(); err != nil {
				log.Error("the audit file could not be reopened", "file", a.file.Name(), "error", err)
				continue
			}
			log.Info("audit file reopened", "file", a.file.Name())
		}
	})
	return func() {
		signal.Stop(hangups)
		close(hangups)
		following.Wait()
	}
}

// Ready tries what the file has not taken yet, and says why it still does not.
func (a *File) Ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.flush()
}

// Write appends a line. One that the file does not take follows when it does.
func (a *File) Write(line []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.unwritten)+len(line) > maxUnwritten {
		a.dropped++
		return 0, fmt.Errorf("%d lines are lost: more than %d bytes wait to be written", a.dropped, maxUnwritten)
	}
	a.unwritten = append(a.unwritten, line...)
	if err := a.flush(); err != nil {
		return 0, err
	}
	return len(line), nil
}

// flush writes the lines that are left. Half a line is ended and written again
// as a whole, for another process may have appended to it.
func (a *File) flush() error {
	if len(a.unwritten) == 0 {
		return nil
	}
	if a.torn {
		if _, err := a.file.Write([]byte{'\n'}); err != nil {
			return wholefile.Cause(err)
		}
		a.torn = false
	}
	n, err := a.file.Write(a.unwritten)
	whole := bytes.LastIndexByte(a.unwritten[:n], '\n') + 1
	a.torn = n > whole
	a.unwritten = append(a.unwritten[:0], a.unwritten[whole:]...)
	return wholefile.Cause(err)
}

// Close gives the file back. That something is missing in it is logged.
func (a *File) Close(log *slog.Logger) {
	err := a.Ready()
	if closing := a.file.Close(); err == nil {
		err = wholefile.Cause(closing)
	}
	lost := bytes.Count(a.unwritten, []byte{'\n'}) + a.dropped
	if err != nil || lost > 0 {
		log.Error("the audit is incomplete", "file", a.file.Name(), "lines_lost", lost, "error", err)
	}
}
