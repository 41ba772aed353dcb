package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/charmbracelet/colorprofile"
	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

// doctorCommand is kizen-sidecar doctor.
type doctorCommand struct {
	sandboxFlags
	redisFlags
	apiClockFlags
	JSON bool `help:"Print one JSON document." group:"Output"`
}

// apiClockFlags name the API whose clock is looked at.
type apiClockFlags struct {
	APIRoot string `help:"API root whose clock is compared with this machine's. Default: none." placeholder:"URL" group:"Platform"`
	APICA   string `name:"api-ca" help:"PEM file of the certificate authority that the API's certificate is verified with. Default: the system's." placeholder:"FILE" group:"Platform"`
}

// Help is the long text of kizen-sidecar doctor --help.
func (doctorCommand) Help() string {
	return `Builds an empty sandbox, looks for the Python of every runtime, does to Redis what minting does where one is configured, compares the clocks of Redis and of the API with this machine's, and prints what it found.

Examples:
  kizen-sidecar doctor
  kizen-sidecar doctor --sandbox required --redis-url redis://redis:6379

Exit codes: 0 steps can run, 3 they cannot, or a layer is missing that --sandbox=required insists on.`
}

// diagnosis is what doctor found.
type diagnosis struct {
	Kernel  string         `json:"kernel"`
	Layers  sandbox.Report `json:"layers"`
	Pythons []pythonFound  `json:"runtimes"`
	Redis   redisFound     `json:"redis"`
	API     *clockFound    `json:"api,omitempty"` // absent where no API root is given
}

// clockFound is by how much another clock is ahead of this machine's.
type clockFound struct {
	SkewMS *int64 `json:"clock_ahead_ms,omitempty"` // absent where it could not be measured
	Note   string `json:"note"`
	OK     bool   `json:"ok"`
}

// compare words a measurement of a clock.
func compare(skew time.Duration, err error) *clockFound {
	if err != nil {
		return &clockFound{Note: "its clock could not be measured: " + err.Error()}
	}
	ms := skew.Milliseconds()
	found := &clockFound{SkewMS: &ms, OK: skew.Abs() <= tolerableSkew}
	switch ahead := skew.Round(time.Millisecond); {
	case found.OK:
		found.Note = "its clock is " + ahead.Abs().String() + " from this machine's"
	case skew > 0:
		found.Note = fmt.Sprintf("its clock is %s ahead of this machine's; synchronise them: keys bear differences of %s", ahead, minter.DefaultLeeway)
	default:
		found.Note = fmt.Sprintf("its clock is %s behind this machine's; synchronise them: keys bear differences of %s", -ahead, minter.DefaultLeeway)
	}
	return found
}

// pythonFound is what a runtime would run on.
type pythonFound struct {
	Runtime string `json:"runtime"`
	Path    string `json:"path,omitempty"`
	Version string `json:"version,omitempty"`
	// Note is why it is another Python than the one asked for, or that there
	// is none.
	Note string `json:"note,omitempty"`
	OK   bool   `json:"ok"`
}

// redisFound is whether keys could be minted.
type redisFound struct {
	Configured bool        `json:"configured"`
	OK         bool        `json:"ok"`
	Note       string      `json:"note,omitempty"`
	Clock      *clockFound `json:"clock,omitempty"`
}

// Run is called by kong.
func (c *doctorCommand) Run(ctx context.Context, app *app) error {
	required := c.Sandbox == string(sandbox.ModeRequired)
	mode := sandbox.Mode(c.Sandbox)
	if required {
		mode = sandbox.ModeAuto // what is missing is shown, not refused
	}
	box, err := sandbox.New(sandbox.Config{Mode: mode})
	if err != nil {
		return err
	}
	found := diagnosis{Kernel: kernel(), Layers: box.Report(), Pythons: c.pythons()}
	if found.Redis, err = c.redis(ctx); err != nil {
		return err
	}
	if c.APIRoot != "" {
		skew, err := apiSkew(ctx, c.apiClockFlags)
		var usage usageError
		if errors.As(err, &usage) {
			return err
		}
		found.API = compare(skew, err)
	}
	if c.JSON {
		err = printJSON(app, found)
	} else {
		err = found.print(app.stdout)
	}
	if err != nil {
		return fmt.Errorf("print the diagnosis: %w", err)
	}
	if problem := found.problem(required); problem != nil {
		return problem
	}
	return nil
}

// kernel names the system that the layers depend on.
func kernel() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return runtime.GOOS
	}
	return fmt.Sprintf("%s %s %s", unix.ByteSliceToString(name.Sysname[:]), unix.ByteSliceToString(name.Release[:]), unix.ByteSliceToString(name.Machine[:]))
}

func (c *doctorCommand) pythons() []pythonFound {
	var found []pythonFound
	for _, name := range []runner.Runtime{runner.Python312, runner.Python313} {
		interpreter, warning, err := runner.FindInterpreter(name, c.Python, c.StrictRuntime)
		row := pythonFound{Runtime: string(name), Path: interpreter.Path, Version: interpreter.Version, Note: warning, OK: err == nil}
		if err != nil {
			row.Note = err.Error()
		}
		found = append(found, row)
	}
	return found
}

func (c *doctorCommand) redis(ctx context.Context) (redisFound, error) {
	if c.RedisURL == "" {
		return redisFound{OK: true, Note: "not configured; run uses an embedded store"}, nil
	}
	client, err := c.redisFlags.require()
	if err != nil {
		return redisFound{}, err
	}
	defer func() { _ = client.Close() }()
	if err := minter.Probe(ctx, client); err != nil {
		return redisFound{Configured: true, Note: err.Error()}, nil
	}
	skew, err := minter.ClockSkew(ctx, client)
	return redisFound{Configured: true, OK: true, Note: "keys can be minted", Clock: compare(skew, err)}, nil
}

// problem is the first thing that keeps steps from running, nil when none does.
func (d diagnosis) problem(required bool) error {
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

// print writes the table for a person.
func (d diagnosis) print(out io.Writer) error {
	table := tabwriter.NewWriter(colorprofile.NewWriter(out, os.Environ()), 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, d.Kernel)
	fmt.Fprintln(table)
	for _, layer := range d.Layers {
		note := layer.Means
		if layer.Why != "" {
			note += " (" + layer.Why + ")"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", mark(layer.Held), layer.Name, note)
	}
	fmt.Fprintln(table)
	for _, python := range d.Pythons {
		sign, note := mark(python.OK), python.Path
		if python.Note != "" {
			note = python.Note
			if python.OK {
				sign = warnStyle.Render("!")
			}
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", sign, python.Runtime, note)
	}
	redisMark, redisNote := mark(d.Redis.OK), d.Redis.Note
	if clock := d.Redis.Clock; clock != nil {
		redisNote += "; " + clock.Note
		if !clock.OK {
			redisMark = warnStyle.Render("!")
		}
	}
	fmt.Fprintf(table, "%s\t%s\t%s\n", redisMark, "redis", redisNote)
	if d.API != nil {
		sign := mark(true)
		if !d.API.OK {
			sign = warnStyle.Render("!")
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", sign, "api", d.API.Note)
	}
	return table.Flush()
}

// mark is as wide styled as it is plain: a tabwriter counts the characters of
// styles as well, of which all marks carry the same number.
func mark(good bool) string {
	if good {
		return goodStyle.Render("✓")
	}
	return badStyle.Render("✗")
}
