package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

const (
	// startupLimit limits the time from the start of the interpreter to the step's first line, which does not count
	// towards the step's own limit.
	startupLimit = 20 * time.Second
	// exitGrace is how long the interpreter may take to exit after its result.
	exitGrace = 250 * time.Millisecond
)

// attempt is one running execution.
type attempt struct {
	*Prepared
	execution Execution
	limits    Limits
	collector *collector
	meter     *meter

	taken, ready, started, ended time.Time
	// mainThread is the identifier of the thread that runs the step's body, in hexadecimal.
	mainThread string
	// ending lists the threads and handlers that still run after the step's body has ended.
	ending *message
	forged int
	// overEvents reports that the step exceeded the limit on events.
	overEvents bool
}

// run sends the job, waits for the end of the execution and returns its result.
func (a *attempt) run(ctx context.Context) (Result, error) {
	job := newJob(a.execution, a.limits, a.process.SourceDir())
	body, err := marshal(job)
	if err != nil {
		a.Discard()
		return Result{}, fmt.Errorf("write the job: %w", err)
	}
	a.meter = &meter{charge: a.process.ChargeCPU}
	fed := make(chan struct{})
	routine.Go(func() {
		defer close(fed)
		// If the harness has exited, the reading side detects it.
		_ = writeFrame(a.sockets.stream, body)
	})
	heard := make(chan int)
	routine.Go(func() { heard <- a.listen(job.Nonce) })
	stopWatching := context.AfterFunc(ctx, routine.Safe(func() { _ = a.sockets.stream.SetReadDeadline(time.Now()) }))
	reading := a.follow(ctx, job.Nonce)
	stopWatching()
	a.ended = time.Now()
	if errors.Is(reading, os.ErrDeadlineExceeded) && ctx.Err() == nil && !a.started.IsZero() {
		a.places.ask()
	}
	exit := a.stop(ctx, reading)
	if exit.Signal != 0 {
		a.places.readCrash()
	}
	// All processes that could send have ended, so the socket ends after the messages that were sent.
	_ = a.sockets.events.SetReadDeadline(time.Now().Add(lastEvents))
	a.forged += <-heard
	stdout, stderr := a.release()
	<-fed
	return a.judge(ctx, reading, exit, stdout, stderr)
}

// follow reads frames until the result, the end of the stream or the deadline. It returns nil after a result,
// otherwise the reason why it stopped. Until the step's first line, the deadline is the startup limit; after it, the
// step's own. Frames that have arrived when follow notices that the deadline has passed still count.
func (a *attempt) follow(ctx context.Context, nonce string) error {
	_ = a.sockets.stream.SetReadDeadline(a.taken.Add(startupLimit))
	late := &lateReader{ctx: ctx, file: a.sockets.stream}
	reader := &frameReader{from: late, result: a.limits.Result, meter: a.meter}
	for range maxFrames {
		if ctx.Err() != nil {
			return ctx.Err()
		}
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
			a.started, a.mainThread = time.Now(), m.Thread
			a.places.begin()
			late.extend()
			_ = a.sockets.stream.SetReadDeadline(a.started.Add(a.limits.Wall))
		case m.Kind == kindEnding:
			a.ending = &m
		case m.Kind == kindResult:
			a.collector.result = &m
			return nil
		}
	}
	return errTooManyFrames
}

// lastEvents limits the time for reading a step's events after its processes have ended.
const lastEvents = 5 * time.Second

var eventBuffers = sync.Pool{New: func() any { return new([maxEvent]byte) }}

// listen reads events until all processes that could send any have ended. If the step sends too many, listen ends it.
// It returns the number of forged events.
func (a *attempt) listen(nonce string) (forged int) {
	buffer := eventBuffers.Get().(*[maxEvent]byte)
	defer eventBuffers.Put(buffer)
	events, size, empty := 0, 0, 0
	for {
		n, err := a.sockets.events.Read(buffer[:])
		if empty++; !errors.Is(err, io.EOF) {
			empty = 0
		} else if empty == 1 || !hungUp(a.sockets.events) {
			err = nil // an empty message looks like the end
		}
		if err != nil {
			return forged
		}
		if events, size = events+1, size+n; events > maxEvents || size > maxEventBytes {
			a.overEvents = true
			a.process.Kill()
			return forged
		}
		a.meter.spend(func() {
			var m message
			if json.Unmarshal(buffer[:n], &m) != nil || m.Nonce != nonce {
				forged++
				return
			}
			a.collector.add(m)
		})
	}
}

// stop lets the interpreter exit by itself if it has sent its result, or if it has closed the connection and may be
// exiting. Otherwise stop kills it.
func (a *attempt) stop(ctx context.Context, reading error) sandbox.Exit {
	grace := time.Duration(0)
	switch {
	case reading == nil:
		grace = exitGrace
	case errors.Is(reading, io.EOF) || errors.Is(reading, io.ErrUnexpectedEOF):
		// A step that closed its channel may still run until its limit.
		grace = exitGrace
		if !a.started.IsZero() {
			grace = max(0, time.Until(a.started.Add(a.limits.Wall)))
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
	exit := a.process.Wait()
	if reading != nil {
		a.ended = time.Now()
	}
	return exit
}

func (a *attempt) judge(ctx context.Context, reading error, exit sandbox.Exit, stdout, stderr string) (Result, error) {
	finished := time.Now()
	verdict, err := a.verdict(ctx, reading, exit, stderr)
	if err != nil {
		return Result{}, err
	}
	result := Result{RequestID: a.execution.ID, Outcome: verdict.outcome, Values: verdict.values}
	if supervisor := a.process.Connections(); supervisor != nil {
		record := supervisor.Record()
		result.Connections = a.collector.connections(record)
		verdict.explain(record)
	}
	if verdict.outcome != outcomes.OK {
		result.Error = &StepError{
			Message: a.collector.redact.cut(verdict.message, maxDetail),
			Detail:  a.collector.redact.cutEnd(verdict.detail, maxDetail),
		}
	}
	a.collector.fill(&result)
	result.Stdout, result.Stderr = a.collector.redact.printed(stdout), a.collector.redact.printed(stderr)
	result.Begun, result.Started = a.begun, a.started
	result.Phases = Phases{Spawn: a.spawned.Sub(a.begun), Teardown: finished.Sub(a.ended)}
	if a.started.IsZero() {
		// The step never started, so the import took all of the time.
		result.Phases.Import = a.ended.Sub(a.spawned)
	} else {
		result.Duration = a.ended.Sub(a.started)
		result.Phases.Import, result.Phases.Step = a.started.Sub(a.spawned), result.Duration
	}
	result.Evidence = Evidence{
		Wall: result.Duration, CPU: exit.CPU + a.meter.total(), PeakMemory: exit.PeakMemory,
		PeakProcesses: exit.PeakProcesses,
		ExitCode:      exit.Code, Signal: exit.Signal, OutOfMemory: exit.OOMKilled || exit.Starved, Survivors: exit.Survivors,
	}
	result.Layers = a.layers
	if a.forged > 0 {
		result.Notes = append(result.Notes, fmt.Sprintf("ignored %d frames that the harness did not send", a.forged))
	}
	return result, nil
}

// lastBytes returns the end of s, beginning with a whole character.
func lastBytes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[len(s)-n:], "")
}
