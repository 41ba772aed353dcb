package runner_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner"
)

// TestReadingStacksDoesNotExtendTheTimeLimit: without a bound, each byte would make the runner wait longer, for hours.
func TestReadingStacksDoesNotExtendTheTimeLimit(t *testing.T) {
	r := newRunner(t, runner.Config{})
	script := "import os, time\nwhile True:\n  os.write(95, b'x')\n  time.sleep(0.01)"
	ended := make(chan runner.Result, 1)
	go func() {
		result, err := r.Run(context.Background(), runner.Execution{ID: "drip", Script: []byte(script), Timeout: time.Second})
		if err != nil {
			t.Error(err)
		}
		ended <- result
	}()
	select {
	case result := <-ended:
		if result.Outcome != outcomes.Timeout {
			t.Errorf("got %s: %v", result.Outcome, result.Error)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("the step keeps running after its limit")
	}
}

// TestStacksOfLongLinesAreShort: faulthandler shows a hundred frames of each thread, with their source lines.
func TestStacksOfLongLinesAreShort(t *testing.T) {
	r := newRunner(t, runner.Config{})
	script := "import os, time\n" + "time.sleep(60) # " + strings.Repeat("x", 1<<20) + "\n"
	forged := `import os
os.write(95, b'Thread 0x1 (most recent call first):\n' + b'  File "script.py", line 3, in f\n' * 2000)
` + script[strings.Index(script, "import"):]
	var result runner.Result
	used := allocated(func() {
		var err error
		if result, err = r.Run(context.Background(), runner.Execution{ID: "long", Script: []byte(forged), Timeout: time.Second}); err != nil {
			t.Fatal(err)
		}
	})
	if result.Outcome != outcomes.Timeout || used > 256<<20 {
		t.Errorf("got %s, and it took %d bytes", result.Outcome, used)
	}
}
