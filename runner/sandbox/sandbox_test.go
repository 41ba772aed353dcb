package sandbox

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

const python = "/usr/bin/python3"

// result is what a program printed and how it ended.
type result struct {
	Exit
	out string
}

// run starts Python code in a sandbox and waits for it.
func run(t *testing.T, s *Sandbox, code string, change func(*Spec)) result {
	t.Helper()
	spec := Spec{
		Argv: []string{python, "-I", "-S", "-c", code},
		Env:  []string{"PATH=/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8"},
	}
	if change != nil {
		change(&spec)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	spec.Stdout, spec.Stderr = w, w
	process, err := s.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	out, _ := io.ReadAll(r)
	r.Close()
	exit := process.Wait()
	if exit.Err != nil {
		t.Errorf("the sandbox failed: %v", exit.Err)
	}
	return result{exit, strings.TrimSpace(string(out))}
}

func TestRuns(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range s.Report() {
		t.Log(l)
	}
	start := time.Now()
	r := run(t, s, "import os;print(os.getpid(), os.getuid(), os.listdir('/'), os.listdir('/proc')[-5:], open('/proc/self/status').read(), open('/proc/mounts').read())", nil)
	t.Log(time.Since(start), r)
}
