package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// verdict is the outcome of a step.
type verdict struct {
	outcome Outcome
	message string
	detail  string
	values  []NamedValue
}

// verdict combines the harness's result with how its process ended. An error is a failure of the sidecar.
func (a *attempt) verdict(ctx context.Context, reading error, exit sandbox.Exit, stderr string) (verdict, error) {
	switch {
	case a.overEvents:
		return verdict{outcome: outcomes.OutputLimit, message: fmt.Sprintf(
			"output limit: the step sent more than %d log messages and records of calls, or more than %s of them",
			maxEvents, formatBytes(maxEventBytes))}, nil
	case a.collector.result != nil:
		return a.reported(*a.collector.result, exit), nil
	case exit.Starved && a.started.IsZero():
		return verdict{}, fmt.Errorf("%w: %w: %s", ErrHarness, ErrNotBegun, starved)
	case exit.Err != nil:
		return verdict{}, fmt.Errorf("%w: %w", ErrHarness, exit.Err)
	case ctx.Err() != nil:
		return verdict{outcome: outcomes.Cancelled,
			message: "cancelled: the execution was stopped before the step ended"}, nil
	case exit.OOMKilled:
		return a.overMemory(), nil
	case exit.CPUExceeded:
		return a.overCPU(), nil
	case a.started.IsZero():
		return verdict{}, fmt.Errorf("%w: %w: %s", ErrHarness, ErrNotBegun, startFailure(reading, exit, stderr))
	case exit.Starved && exit.Signal == syscall.SIGKILL:
		return verdict{outcome: outcomes.KilledBySignal, message: "killed by signal: " + starved}, nil
	case errors.Is(reading, os.ErrDeadlineExceeded), a.ended.Sub(a.started) >= a.limits.Wall &&
		exit.Signal == syscall.SIGKILL:
		return a.timeout(), nil
	case errors.Is(reading, errTooManyFrames):
		return verdict{outcome: outcomes.OutputLimit, message: fmt.Sprintf(
			"output limit: the step wrote more than %d messages to the channel its result travels on", maxFrames)}, nil
	case errors.Is(reading, errNotAFrame):
		return verdict{outcome: outcomes.ResultMissing,
			message: "result missing: the step wrote to the channel its result travels on"}, nil
	}
	return a.died(exit), nil
}

func (a *attempt) overMemory() verdict {
	detail := a.where(a.places.last)
	if near := a.where(a.places.nearMemory); detail == "" && near != "" {
		detail = "When the step was last seen near its limit:\n\n" + near
	}
	return verdict{
		outcome: outcomes.MemoryLimit, detail: detail,
		message: "memory limit: the step's processes used more than " + formatBytes(a.limits.Memory),
	}
}

func (a *attempt) overCPU() verdict {
	return verdict{
		outcome: outcomes.CPULimit, detail: a.where(a.places.last),
		message: fmt.Sprintf("cpu limit: the step used more than %s of processor time", a.limits.CPU),
	}
}

// starved says why a process was killed that had not reached its own limit.
const starved = "the kernel killed the step's process because the memory of this machine, or of the cgroup that the sidecar runs in, ran out; the step had not reached its own limit"

// startFailure returns, in one line, why the harness never started the step.
func startFailure(reading error, exit sandbox.Exit, stderr string) string {
	said := strings.TrimSpace(stderr)
	if i := strings.LastIndexByte(said, '\n'); i >= 0 {
		said = said[i+1:]
	}
	switch {
	case exit.Starved:
		return starved
	case errors.Is(reading, os.ErrDeadlineExceeded):
		return fmt.Sprintf("it was not ready after %s", startupLimit)
	case exit.Signal != 0:
		return "it was killed by " + signalName(exit.Signal)
	case said != "":
		return fmt.Sprintf("it exited with code %d: %s", exit.Code, said)
	}
	return fmt.Sprintf("it exited with code %d", exit.Code)
}

// died interprets the end of a process that never sent a result.
func (a *attempt) died(exit sandbox.Exit) verdict {
	switch {
	case exit.Signal != 0:
		v := verdict{outcome: outcomes.KilledBySignal,
			message: "killed by signal: the step's process died of " + signalName(exit.Signal)}
		if slices.Contains(crashes, exit.Signal) {
			v.detail = a.where(a.places.last)
		}
		return v
	case exit.Code != 0 && exit.Code != exitChannelLost:
		return verdict{outcome: outcomes.Exited,
			message: fmt.Sprintf("exited: the step's process left with code %d and did not hand over a result", exit.Code)}
	}
	return verdict{outcome: outcomes.ResultMissing,
		message: "result missing: the step's process ended without handing over a result"}
}

// exitChannelLost is the harness's exit code when it cannot send its result.
const exitChannelLost = 74

// The kinds of failure that the harness reports.
var reportedOutcomes = map[string]Outcome{
	"exception":                  outcomes.Exception,
	"syntax_error":               outcomes.SyntaxError,
	"exited":                     outcomes.Exited,
	"result_not_serialisable":    outcomes.ResultNotSerialisable,
	string(outcomes.OutputLimit): outcomes.OutputLimit,
	"result_too_large":           outcomes.OutputLimit,
}

func (a *attempt) reported(m message, exit sandbox.Exit) verdict {
	if m.OK && exit.OOMKilled { // for Starved, the step has handled the end of its child itself
		// A child was killed, and the main process ended before the runner could end it.
		return a.overMemory()
	}
	if m.OK && m.size > a.limits.Result {
		return verdict{outcome: outcomes.OutputLimit,
			message: "output limit: the result is larger than " + formatBytes(a.limits.Result)}
	}
	if m.OK {
		values, err := a.collector.values()
		if err != nil {
			return verdict{outcome: outcomes.ResultNotSerialisable, message: "result not serialisable: " + err.Error()}
		}
		return verdict{outcome: outcomes.OK, values: values}
	}
	v := verdict{outcome: reportedOutcomes[m.Failure], message: m.Error, detail: m.Detail}
	switch v.outcome {
	case "":
		v.outcome = outcomes.Exception
	case outcomes.OutputLimit:
		v.message = "output limit: the result is larger than " + formatBytes(a.limits.Result)
	case outcomes.Exception:
		a.nameLimit(&v, exit)
	}
	return v
}

// nameLimit finds the limit that caused an exception, because the exception contains only the kernel's error.
func (a *attempt) nameLimit(v *verdict, exit sandbox.Exit) {
	limits := a.limits
	for _, known := range []struct {
		applies bool
		outcome Outcome
		means   string
	}{
		{exit.OOMKilled, outcomes.MemoryLimit, "the step's processes used more than " + formatBytes(limits.Memory)},
		{exit.Starved, outcomes.Exception, starved},
		{strings.HasPrefix(v.message, "MemoryError") && exit.PeakMemory > limits.Memory/2, outcomes.MemoryLimit,
			"the step may use " + formatBytes(limits.Memory)},
		{exit.ProcessesRefused && mentions(v.message, "start new thread", "Errno 11"), outcomes.ProcessLimit,
			fmt.Sprintf("the step may have %d processes and threads", limits.Processes)},
		{strings.HasPrefix(v.message, "OSError: [Errno 27]"), outcomes.OutputLimit,
			"a file may have " + formatBytes(limits.FileSize)},
		{strings.HasPrefix(v.message, "OSError: [Errno 28]") && slices.Contains(a.layers.Held, stage.LayerFileSystem),
			outcomes.OutputLimit, fmt.Sprintf("/tmp may hold %s in %d files, /dev/shm %s", formatBytes(limits.TmpSize),
				sandbox.MaxFiles, formatBytes(sandbox.ShmSize))},
		{mentions(v.message, "[Errno 24]"), outcomes.Exception,
			fmt.Sprintf("a process may have %d open files", limits.OpenFiles)},
	} {
		if known.applies {
			v.outcome = known.outcome
			v.message += fmt.Sprintf(" (limit: %s)", known.means)
			return
		}
	}
}

func mentions(text string, parts ...string) bool {
	for _, part := range parts {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}
