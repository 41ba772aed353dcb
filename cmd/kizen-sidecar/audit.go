package main

import (
	"os"
	"sync"
)

// audit is the file that every call is written to, for all executions of this
// process.
type audit struct {
	*os.File
	mu   sync.Mutex
	torn bool // the last line was written in part, as on a full disk
}

// openAudit opens the audit file, nil when there is to be none.
func (f apiFlags) openAudit() (*audit, error) {
	if f.AuditFile == "" {
		return nil, nil
	}
	file, err := os.OpenFile(f.AuditFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, usagef("cannot write --audit-file %q: %w", f.AuditFile, unwrapPath(err))
	}
	return &audit{File: file}, nil
}

// Write appends a line. Half a line before it does not spoil it.
func (a *audit) Write(line []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.torn {
		if _, err := a.File.Write([]byte{'\n'}); err != nil {
			return 0, err
		}
	}
	n, err := a.File.Write(line)
	a.torn = n > 0 && n < len(line)
	return n, err
}
