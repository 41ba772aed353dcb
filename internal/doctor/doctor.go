// Package doctor reports what a machine offers to steps: sandbox layers, Pythons, Redis, and synchronised clocks.
package doctor

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"runtime"
	"time"

	"github.com/charmbracelet/colorprofile"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/clocks"
	"github.com/kizen/kizen-sidecar/internal/terminal"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

// Config selects what is examined.
type Config struct {
	Sandbox sandbox.Mode
	// Python and StrictRuntime are those of [runner.Config].
	Python        string
	StrictRuntime bool
	// Redis stores the records of keys. If nil, Redis is not configured.
	Redis redis.UniversalClient
	// APIRoot is the API whose clock is compared; if nil, none is. APICA verifies its certificate; if nil, the
	// system's authorities do.
	APIRoot *url.URL
	APICA   *x509.CertPool
}

// Diagnosis is the result of an examination.
type Diagnosis struct {
	Kernel  string         `json:"kernel"`
	Layers  sandbox.Report `json:"layers"`
	Pythons []pythonFound  `json:"runtimes"`
	Redis   redisFound     `json:"redis"`
	API     *clockFound    `json:"api,omitempty"` // absent if no API root is given
}

// clockFound compares another clock with this machine's.
type clockFound struct {
	SkewMS *int64 `json:"clock_ahead_ms,omitempty"` // absent if it could not be measured
	Note   string `json:"note"`
	OK     bool   `json:"ok"`
}

// compare describes a measurement of a clock.
func compare(skew time.Duration, err error) *clockFound {
	if err != nil {
		return &clockFound{Note: "its clock could not be measured: " + err.Error()}
	}
	ms := skew.Milliseconds()
	found := &clockFound{SkewMS: &ms, OK: skew.Abs() <= clocks.Tolerable}
	switch ahead := skew.Round(time.Millisecond); {
	case found.OK:
		found.Note = "its clock is " + ahead.Abs().String() + " from this machine's"
	case skew > 0:
		found.Note = fmt.Sprintf("its clock is %s ahead of this machine's; synchronise them: keys tolerate differences of %s",
			ahead, minter.DefaultLeeway)
	default:
		found.Note = fmt.Sprintf("its clock is %s behind this machine's; synchronise them: keys tolerate differences of %s",
			-ahead, minter.DefaultLeeway)
	}
	return found
}

// pythonFound is the Python of a runtime.
type pythonFound struct {
	Runtime string `json:"runtime"`
	Path    string `json:"path,omitempty"`
	Version string `json:"version,omitempty"`
	// Note says why the Python differs from the requested one, or why none was found.
	Note string `json:"note,omitempty"`
	OK   bool   `json:"ok"`
}

// redisFound says whether keys can be minted.
type redisFound struct {
	Configured bool        `json:"configured"`
	OK         bool        `json:"ok"`
	Note       string      `json:"note,omitempty"`
	Clock      *clockFound `json:"clock,omitempty"`
}

// Diagnose builds an empty sandbox, searches for Pythons, runs the commands of minting on Redis, and compares clocks.
func Diagnose(ctx context.Context, c Config) (Diagnosis, error) {
	mode := c.Sandbox
	if mode == sandbox.ModeRequired {
		mode = sandbox.ModeAuto // missing layers are reported, not refused
	}
	box, err := sandbox.New(sandbox.Config{Mode: mode})
	if err != nil {
		return Diagnosis{}, err
	}
	found := Diagnosis{Kernel: kernel(), Layers: box.Report(), Pythons: c.pythons(), Redis: c.redis(ctx)}
	if c.APIRoot != nil {
		found.API = compare(clocks.OfAPI(ctx, c.APIRoot, c.APICA))
	}
	return found, nil
}

// kernel returns the name, the release and the machine type of the kernel.
func kernel() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return runtime.GOOS
	}
	return fmt.Sprintf("%s %s %s", unix.ByteSliceToString(name.Sysname[:]), unix.ByteSliceToString(name.Release[:]),
		unix.ByteSliceToString(name.Machine[:]))
}

func (c Config) pythons() []pythonFound {
	var found []pythonFound
	for _, name := range []runner.Runtime{runner.Python312, runner.Python313} {
		interpreter, warning, err := runner.FindInterpreter(name, c.Python, c.StrictRuntime)
		row := pythonFound{Runtime: string(name), Path: interpreter.Path, Version: interpreter.Version, Note: warning,
			OK: err == nil}
		if err != nil {
			row.Note = err.Error()
		}
		found = append(found, row)
	}
	return found
}

func (c Config) redis(ctx context.Context) redisFound {
	if c.Redis == nil {
		return redisFound{OK: true, Note: "not configured; run uses an embedded store"}
	}
	if err := minter.Probe(ctx, c.Redis); err != nil {
		return redisFound{Configured: true, Note: err.Error()}
	}
	return redisFound{Configured: true, OK: true, Note: "keys can be minted",
		Clock: compare(minter.ClockSkew(ctx, c.Redis))}
}

// Problem returns the first problem that prevents steps from running, or nil.
func (d Diagnosis) Problem(required bool) error {
	if missing := d.Layers.Missing(); required && len(missing) > 0 {
		return &sandbox.MissingError{Layers: missing}
	}
	usable := false
	for _, python := range d.Pythons {
		usable = usable || python.OK
	}
	if !usable {
		return errors.New(d.Pythons[0].Note)
	}
	if !d.Redis.OK {
		return errors.New(d.Redis.Note)
	}
	return nil
}

// Print writes the diagnosis as text for a terminal.
func (d Diagnosis) Print(out io.Writer) error {
	var text bytes.Buffer
	fmt.Fprintf(&text, "%s\n\n", d.Kernel)
	var rows [][]string
	for _, layer := range d.Layers {
		note := layer.Means
		if layer.Why != "" {
			note += " (" + layer.Why + ")"
		}
		rows = append(rows, []string{terminal.Mark(layer.Held), layer.Name, note})
	}
	terminal.Table(&text, "", rows)
	fmt.Fprintln(&text)
	rows = nil
	for _, python := range d.Pythons {
		sign, note := terminal.Mark(python.OK), python.Path
		if python.Note != "" {
			note = python.Note
			if python.OK {
				sign = terminal.Warning()
			}
		}
		rows = append(rows, []string{sign, python.Runtime, note})
	}
	sign, note := terminal.Mark(d.Redis.OK), d.Redis.Note
	if clock := d.Redis.Clock; clock != nil {
		note += "; " + clock.Note
		if !clock.OK {
			sign = terminal.Warning()
		}
	}
	rows = append(rows, []string{sign, "redis", note})
	if d.API != nil {
		sign := terminal.Mark(true)
		if !d.API.OK {
			sign = terminal.Warning()
		}
		rows = append(rows, []string{sign, "api", d.API.Note})
	}
	terminal.Table(&text, "", rows)
	_, err := colorprofile.NewWriter(out, os.Environ()).Write(text.Bytes())
	return err
}
