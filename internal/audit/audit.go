// Package audit appends a line for every call of an execution to a file.
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

// maxUnwritten bounds the lines, in bytes, that are kept in memory while the disk is full.
const maxUnwritten = 4 << 20

// File is the audit file of all executions of this process. Other processes may append to it too.
type File struct {
	file *os.File

	mu        sync.Mutex // also serialises the use of file
	unwritten []byte     // whole lines that could not be written yet
	torn      bool       // the file ends within a line, for example because the disk was full
	dropped   int        // lines lost because too many were unwritten
}

// Open opens the file for appending, and creates it if it does not exist.
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

// reopen opens the file by its name again, because it may have been moved. Unwritten lines go to the new file. If
// reopen fails, the old file stays in use, so that every call is recorded.
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

// Follow reopens the file on SIGHUP until stop is called. If a is nil, Follow does nothing.
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

// Ready writes the unwritten lines, and returns why it cannot.
func (a *File) Ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.flush()
}

// Write appends a line. If that fails, a later call writes the line.
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

// flush writes the unwritten lines. After a partial write it ends the torn line and writes that line again as a whole,
// because another process may have appended to the file in between.
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

// Close closes the file. It logs an error if lines are missing in the file.
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
