package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// BenchmarkRun times whole processes in turn: kizen-sidecar run of an empty step and, as a baseline, the same Python
// importing requests. ns/op covers both; the metrics are medians.
func BenchmarkRun(b *testing.B) {
	python := pythonWithRequests(b)
	var baseline, run durations
	for b.Loop() {
		baseline.add(b, exec.Command(python, "-c", "import requests"))
		command := sidecarCommand(b.Context(), nil, "run", "--script", "-", "--json", "--python", python)
		command.Stdin = strings.NewReader("pass\n")
		run.add(b, command)
	}
	b.ReportMetric(milliseconds(baseline.median()), "import-requests-ms")
	b.ReportMetric(milliseconds(run.median()), "run-ms")
	b.ReportMetric(float64(run.median())/float64(baseline.median()), "run/import-requests")
}

// BenchmarkReady measures the time from the start of the binary until its proxy listens and has a key. The metric is
// the median.
func BenchmarkReady(b *testing.B) {
	var ready durations
	for b.Loop() {
		command := sidecarCommand(b.Context(), nil, "proxy")
		stdout, err := command.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		if err := command.Start(); err != nil {
			b.Fatal(err)
		}
		if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || !strings.HasPrefix(line, "KIZEN_API_URL=") {
			b.Fatalf("the proxy printed %q, %v", line, err)
		}
		ready = append(ready, time.Since(began))
		if err := command.Process.Signal(os.Interrupt); err != nil {
			b.Fatal(err)
		}
		if err := command.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(milliseconds(ready.median()), "ready-ms")
}

// BenchmarkMemory reads the sidecar's anonymous memory when its step starts, and again while it runs.
func BenchmarkMemory(b *testing.B) {
	api := newRecordingAPI(b)
	var first, later []float64
	for b.Loop() {
		api.expect([]route{{Method: "POST", Path: "/started", Responses: []cannedResponse{{Status: 204}, {Status: 204}}}})
		command := sidecarCommand(b.Context(), nil, "run", "--script", "-", "--json", "--api-root", api.root())
		stdin, err := command.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := command.Start(); err != nil {
			b.Fatal(err)
		}
		_, _ = io.WriteString(stdin,
			"import time\nkizen.api.post('/started')\ntime.sleep(0.5)\nkizen.api.post('/started')\ntime.sleep(20)\n")
		_ = stdin.Close()
		waitFor(b, func() bool { return len(api.apiCalls()) == 1 })
		first = append(first, sidecartest.AnonymousMiB(b, command.Process.Pid))
		waitFor(b, func() bool { return len(api.apiCalls()) == 2 })
		later = append(later, sidecartest.AnonymousMiB(b, command.Process.Pid))
		_ = command.Process.Signal(os.Interrupt)
		_ = command.Wait() // interrupted: exit code 1
	}
	for name, figures := range map[string][]float64{"first-MiB": first, "anonymous-MiB": later} {
		slices.Sort(figures)
		b.ReportMetric(figures[len(figures)/2], name)
	}
}

// durations are the times of one kind of command.
type durations []time.Duration

// add runs a command to its end, records how long it took, and returns its output.
func (d *durations) add(b *testing.B, command *exec.Cmd) string {
	began := time.Now()
	out, err := command.CombinedOutput()
	*d = append(*d, time.Since(began))
	if err != nil {
		b.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

func (d durations) median() time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
