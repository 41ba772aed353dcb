package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

const (
	// startupLimit bounds the time from the start of the interpreter to the step's first line, which the step's own
	// limit does not count.
	startupLimit = 20 * time.Second
	// exitGrace is how long the interpreter may take to leave after its result.
	exitGrace = 250 * time.Millisecond
)

// attempt is one execution on its way.
type attempt struct {
	execution   Execution
	interpreter Interpreter
	limits      Limits
	collector   *collector

	process        process
	conn           *os.File
	stdout, stderr *drain

	begun, spawned, ready, started, ended time.Time
	forged                                int
}

// run starts the interpreter, follows the execution to its end and says what became of it.
func (a *attempt) run(ctx context.Context, starter starter, bundle []byte) (Result, error) {
	a.begun = time.Now()
	job := newJob(a.execution, a.limits)
	body, err := marshal(job)
	if err != nil {
		return Result{}, fmt.Errorf("write the job: %w", err)
	}
	if err := a.start(ctx, starter); err != nil {
		return Result{}, err
	}
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		// A harness that is gone does not read; that shows on the reading side.
		if writeFrame(a.conn, bundle) == nil {
			_ = writeFrame(a.conn, body)
		}
	}()
	stopWatching := context.AfterFunc(ctx, func() { _ = a.conn.SetReadDeadline(time.Now()) })
	reading := a.follow(ctx, job.Nonce)
	stopWatching()
	a.ended = time.Now()
	exit := a.stop(ctx, reading)
	_ = a.conn.Close()
	<-fed
	stdout, stderr := a.stdout.finish(), a.stderr.finish()
	return a.judge(ctx, reading, exit, stdout, stderr)
}

func (a *attempt) start(ctx context.Context, starter starter) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrHarness, err)
	}
	defer func() { _ = theirs.Close() }()
	a.conn = ours
	if a.stdout, err = newDrain(); err == nil {
		a.stderr, err = newDrain()
	}
	if err == nil {
		a.process, err = starter.start(ctx, spec{
			argv:   []string{a.interpreter.Path, "-I", "-S", "-c", loaderSource, "3"},
			env:    environment(a.execution),
			socket: theirs, stdout: a.stdout.write, stderr: a.stderr.write,
			readable: a.interpreter.readable(),
			limits:   a.limits,
		})
	}
	if err != nil {
		_ = ours.Close()
		for _, d := range []*drain{a.stdout, a.stderr} {
			if d != nil {
				d.finish()
			}
		}
		return fmt.Errorf("%w: start %s: %w", ErrHarness, a.interpreter.Path, err)
	}
	_, _ = a.stdout.write.Close(), a.stderr.write.Close()
	a.spawned = time.Now()
	return nil
}

// environment is all that a step finds in its environment.
func environment(e Execution) []string {
	env := []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8", "TZ=UTC"}
	if e.APIURL != "" {
		env = append(env, "KIZEN_API_URL="+e.APIURL)
	}
	if e.Traceparent != "" {
		env = append(env, "TRACEPARENT="+e.Traceparent)
	}
	return env
}

// follow reads frames until the result, the end of the stream or the deadline, and says why it stopped; nil after a
// result. The deadline is that of starting up until the step's first line and the step's own from there on.
func (a *attempt) follow(ctx context.Context, nonce string) error {
	_ = a.conn.SetReadDeadline(a.begun.Add(startupLimit))
	reader := &frameReader{from: a.conn, limit: a.limits.Result + frameOverhead}
	for ctx.Err() == nil {
		m, err := reader.next()
		switch {
		case err != nil:
			return err
		case m.Kind == kindReady && a.ready.IsZero():
			a.ready = time.Now()
			continue
		case m.Nonce != nonce:
			a.forged++
			continue
		case m.Kind == kindStarted && a.started.IsZero():
			a.started = time.Now()
			_ = a.conn.SetReadDeadline(a.started.Add(a.limits.Wall))
		}
		a.collector.add(m)
		if a.collector.result != nil {
			return nil
		}
	}
	return ctx.Err()
}

// stop lets the interpreter leave by itself when it has said all, or when it hung up and may be on its way out, and ends
// it otherwise.
func (a *attempt) stop(ctx context.Context, reading error) exit {
	defer a.process.Kill()
	grace := time.Duration(0)
	switch {
	case reading == nil:
		grace = exitGrace
	case errors.Is(reading, io.EOF) || errors.Is(reading, io.ErrUnexpectedEOF):
		// A step that closed its channel still has until its limit.
		grace = exitGrace
		if !a.started.IsZero() {
			grace = time.Until(a.started.Add(a.limits.Wall))
		}
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-a.process.Done():
	case <-timer.C:
	case <-ctx.Done():
	}
	a.process.Kill()
	return a.process.Wait()
}

func (a *attempt) judge(ctx context.Context, reading error, exit exit, stdout, stderr string) (Result, error) {
	finished := time.Now()
	verdict, err := a.verdict(ctx, reading, exit, stderr)
	if err != nil {
		return Result{}, err
	}
	result := Result{RequestID: a.execution.ID, Outcome: verdict.outcome, Values: verdict.values}
	if verdict.outcome != OK {
		result.Error = &StepError{
			Message: a.collector.redact.text(verdict.message),
			Detail:  lastBytes(a.collector.redact.text(verdict.detail), maxDetail),
		}
	}
	a.collector.fill(&result)
	result.Stdout, result.Stderr = a.collector.redact.text(stdout), a.collector.redact.text(stderr)
	if !a.started.IsZero() {
		result.Duration = a.ended.Sub(a.started)
	}
	result.Evidence = Evidence{
		Wall: result.Duration, CPU: exit.cpu, PeakMemory: exit.peakMemory, ExitCode: exit.code, Signal: exit.signal,
		OutOfMemory: exit.outOfMemory,
	}
	result.Phases = Phases{Spawn: a.spawned.Sub(a.begun), Step: result.Duration, Teardown: finished.Sub(a.ended)}
	if first := firstOf(a.started, a.ready, a.ended); !first.IsZero() {
		result.Phases.Import = first.Sub(a.spawned)
	}
	if a.forged > 0 {
		result.Notes = append(result.Notes, fmt.Sprintf("ignored %d frames that the harness did not send", a.forged))
	}
	return result, nil
}

func firstOf(times ...time.Time) time.Time {
	for _, t := range times {
		if !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}

// lastBytes keeps the end of s, from a whole character on.
func lastBytes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[len(s)-n:], "")
}
