package pool

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

// forking is a Python that has loaded requests. For each line that it reads, it forks an empty child, waits for it,
// and prints how many nanoseconds this took.
const forking = `
import os, sys, time, requests
for _ in sys.stdin:
    began = time.perf_counter_ns()
    if os.fork() == 0:
        exec(compile('pass', 'script.py', 'exec'), {}); os._exit(0)
    os.wait()
    print(time.perf_counter_ns() - began, flush=True)
`

// BenchmarkExecution runs an empty step in turn in a waiting interpreter, in one forked on demand, and cold, next to
// its baselines: a bare fork of a loaded Python, and a Python that imports requests. The metrics are medians in
// milliseconds.
func BenchmarkExecution(b *testing.B) {
	p := newPool(b, 1, runner.Config{})
	python, _, err := runner.FindInterpreter(runner.DefaultRuntime, "", false)
	if err != nil {
		b.Fatal(err)
	}
	fork := startForking(b, python.Path)
	times := map[string][]time.Duration{}
	for b.Loop() {
		times["bare-fork"] = append(times["bare-fork"], fork())
		times["warm"] = append(times["warm"], timed(b, take(b, p)))
		began := time.Now()
		forked, err := p.of(runner.DefaultRuntime).fork(b.Context())
		if forked == nil {
			b.Skip("forks are not available: ", err)
		}
		timed(b, forked)
		times["forked"] = append(times["forked"], time.Since(began))
		began = time.Now()
		prepared, err := p.config.Source.Prepare(b.Context(), runner.DefaultRuntime, limits)
		if err != nil {
			b.Fatal(err)
		}
		timed(b, prepared)
		times["cold"] = append(times["cold"], time.Since(began))
		began = time.Now()
		if err := exec.Command(python.Path, "-c", "import requests").Run(); err != nil {
			b.Fatal(err)
		}
		times["import-requests"] = append(times["import-requests"], time.Since(began))
	}
	for name, all := range times {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, name+"-ms")
	}
}

// loading is a runner that cannot fork: it loads each interpreter of its pool separately.
type loading struct{ *runner.Runner }

func (loading) StartForkServer(context.Context, runner.Runtime, runner.Limits) (*runner.ForkServer, error) {
	return nil, sandbox.ErrCannotFork
}

// BenchmarkThroughput runs empty steps as fast as a pool serves four callers: without warm interpreters, with
// interpreters loaded one by one, and with forks.
func BenchmarkThroughput(b *testing.B) {
	for _, size := range []int{0, 2, 8} {
		for _, how := range []string{"loaded", "forked"} {
			name := fmt.Sprintf("%s=%d", how, size)
			if size == 0 {
				if how == "forked" {
					continue
				}
				name = "cold"
			}
			b.Run(name, func(b *testing.B) {
				p := newPool(b, size, runner.Config{})
				if how == "loaded" {
					p.config.Source = loading{p.config.Source.(*runner.Runner)}
				}
				if size > 0 {
					take(b, p).Discard()
				}
				throughput(b, p)
			})
		}
	}
}

func throughput(b *testing.B, p *Pool) {
	var running sync.WaitGroup
	work := make(chan struct{})
	for range 4 {
		running.Go(func() {
			for range work {
				prepared, err := p.Prepare(context.Background(), runner.DefaultRuntime, limits)
				if err != nil {
					b.Error(err)
					continue
				}
				timed(b, prepared)
			}
		})
	}
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	running.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "executions/s")
}

// timed measures the time from the submission of an empty step until all its resources are released.
func timed(b *testing.B, prepared *runner.Prepared) time.Duration {
	began := time.Now()
	prepared.Relimit(limits)
	result, err := prepared.Run(context.Background(), runner.Execution{ID: "bench", Script: []byte("pass")})
	if err != nil || result.Outcome != outcomes.OK {
		b.Errorf("%v %+v", err, result.Error)
	}
	return time.Since(began)
}

func startForking(b *testing.B, python string) func() time.Duration {
	command := exec.Command(python, "-c", forking)
	stdin, err := command.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_ = command.Wait()
	})
	answers := bufio.NewReader(stdout)
	return func() time.Duration {
		_, _ = io.WriteString(stdin, "\n")
		line, err := answers.ReadString('\n')
		if err != nil {
			b.Fatal(err)
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		return time.Duration(ns)
	}
}
