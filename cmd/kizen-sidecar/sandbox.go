package main

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

// sandboxFlags say which Python runs steps, and how far it is shut in.
type sandboxFlags struct {
	Python        string `help:"Python interpreter to use, instead of looking for the runtime's." placeholder:"FILE" group:"Sandbox"`
	StrictRuntime bool   `help:"Refuse to fall back to another Python when the runtime is not installed." group:"Sandbox"`
	Sandbox       string `help:"auto uses every layer that this machine has, required refuses to run where one is missing, off isolates nothing and keeps the limits." enum:"auto,required,off" default:"auto" placeholder:"MODE" group:"Sandbox"`
	Network       string `help:"What a step reaches: host for everything that this machine reaches, policy for what the rules for connections permit, or kizen-only for nothing but the proxy." enum:"policy,host,kizen-only" default:"host" placeholder:"NETWORK" group:"Sandbox"`

	MaxConnections int `help:"Connections of one execution with --network=policy; more are refused. 0: no limit." default:"10000" placeholder:"N" group:"Limits"`
	MaxDNSRate     int `name:"max-dns-rate" help:"Questions to name servers that one execution may ask in a second with --network=policy; more are refused. 0: no limit." default:"100" placeholder:"N" group:"Limits"`
}

// runnerConfig is what the flags mean for a runner.
func (f sandboxFlags) runnerConfig(log *slog.Logger) runner.Config {
	return runner.Config{
		Python: f.Python, StrictRuntime: f.StrictRuntime, Logger: log,
		Sandbox: sandbox.Mode(f.Sandbox), Network: sandbox.Network(f.Network), MaxConnections: f.MaxConnections, MaxQuestions: f.MaxDNSRate,
	}
}

// limitFlags bound one execution.
type limitFlags struct {
	Timeout      time.Duration `help:"Time that a step may take, ${max_timeout} at most." default:"30s" placeholder:"DURATION" group:"Limits"`
	CPUTimeout   time.Duration `name:"cpu-timeout" help:"Processor time of a step and all that it starts. Default: twice --timeout." placeholder:"DURATION" group:"Limits"`
	Memory       string        `help:"Resident memory of a step and all that it starts." default:"1GiB" placeholder:"SIZE" group:"Limits"`
	MaxProcesses int64         `help:"Processes and threads at one time." default:"64" placeholder:"N" group:"Limits"`
	MaxOpenFiles int64         `help:"Open files of one process." default:"1024" placeholder:"N" group:"Limits"`
	MaxFileSize  string        `help:"Size of one written file." default:"512MiB" placeholder:"SIZE" group:"Limits"`
	TmpSize      string        `help:"Size of /tmp." default:"512MiB" placeholder:"SIZE" group:"Limits"`
	MaxResult    string        `help:"Size of the outputs that a step hands back." default:"6MiB" placeholder:"SIZE" group:"Limits"`
}

// limits are the flags, checked.
func (f limitFlags) limits() (runner.Limits, error) {
	limits := runner.Limits{Wall: f.Timeout, CPU: f.CPUTimeout, Processes: f.MaxProcesses, OpenFiles: f.MaxOpenFiles}
	if f.Timeout <= 0 || f.Timeout > runner.MaxWall {
		return limits, usagef("--timeout %s is out of range; use more than 0 and at most %s", f.Timeout, runner.MaxWall)
	}
	if f.CPUTimeout < 0 {
		return limits, usagef("--cpu-timeout must not be negative")
	}
	for _, count := range []struct {
		flag  string
		value int64
		least int64
	}{{"--max-processes", f.MaxProcesses, 2}, {"--max-open-files", f.MaxOpenFiles, 16}} {
		if count.value < count.least || count.value > 1<<20 {
			return limits, usagef("%s %d is out of range; use %d to %d", count.flag, count.value, count.least, 1<<20)
		}
	}
	for _, size := range []struct {
		flag, text string
		least      uint64
		into       *int64
	}{
		{"--memory", f.Memory, 32 << 20, &limits.Memory},
		{"--max-file-size", f.MaxFileSize, 4 << 10, &limits.FileSize},
		{"--tmp-size", f.TmpSize, 4 << 10, &limits.TmpSize},
		{"--max-result", f.MaxResult, 1 << 10, &limits.Result},
	} {
		bytes, err := humanize.ParseBytes(size.text)
		if err != nil || bytes < size.least || bytes > 1<<40 {
			return limits, usagef("%s %q is not a size from %s to 1TiB; write it like 512MiB", size.flag, size.text, compactBytes(size.least))
		}
		*size.into = int64(bytes)
	}
	return limits.WithDefaults(), nil
}

// compactBytes writes a size as the flags take it.
func compactBytes(n uint64) string {
	for _, unit := range []struct {
		shift uint
		name  string
	}{{30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if n >= 1<<unit.shift {
			return fmt.Sprintf("%d%s", n>>unit.shift, unit.name)
		}
	}
	return fmt.Sprintf("%dB", n)
}
