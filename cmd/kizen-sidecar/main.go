// Command kizen-sidecar runs beside one Kizen Code Step: it mints the execution's signed key, opens the local proxy
// that authenticates the step's requests, runs the step, and revokes the key.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/kizen/kizen-sidecar/internal/buildinfo"
	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/flagvalue"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/internal/shown"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// The exit codes, by short names.
const (
	exitOK         = exit.OK
	exitStepFailed = exit.StepFailed
	exitNothing    = exit.Nothing
	exitUsage      = exit.Usage
	exitSidecar    = exit.Failed
)

// commandLine is the definition of the command line.
type commandLine struct {
	commonFlags

	Run    runCommand    `cmd:"" help:"Run one Code Step and print its result."`
	Serve  serveCommand  `cmd:"" help:"Run steps for an orchestrator, over HTTP."`
	Worker workerCommand `cmd:"" help:"Run steps from a queue in Redis that many machines share."`
	Queue  queueCommand  `cmd:"" help:"Inspect the queue of a fleet; retry, cancel or drain executions."`
	Proxy  proxyCommand  `cmd:"" help:"Serve the authenticating proxy for a step in a neighbouring container."`
	Keys   keysCommand   `cmd:"" help:"Manage signing keys, and revoke what they signed."`
	Policy policyCommand `cmd:"" help:"Validate rules for API calls, and explain their decisions."`
	Doctor doctorCommand `cmd:"" help:"Report what this machine offers steps: layers of the sandbox, Pythons, Redis."`
	Client clientCommand `cmd:"" help:"Write the kizen client module for Python in a neighbouring container."`
	Health healthCommand `cmd:"" help:"Check that a proxy is serving, for container health checks."`
}

// runLine is the part of commandLine that "run" needs. Parsing the definition of all commands would take a tenth of a
// short run.
type runLine struct {
	commonFlags

	Run runCommand `cmd:"" help:"Run one Code Step and print its result."`
}

// commonFlags are the flags of every command.
type commonFlags struct {
	LogLevel  string           `help:"Lowest log level: debug, info, warn or error." env:"KIZEN_LOG" default:"info" placeholder:"LEVEL" group:"Logging"`
	LogFormat string           `help:"Format of the log on standard error: text, json, or auto (text on a terminal)." default:"auto" placeholder:"FORMAT" group:"Logging"`
	Version   kong.VersionFlag `help:"Print the version and exit." env:"-"`
}

// streams are the process's standard streams.
type streams struct {
	stdin          io.Reader
	stdout, stderr io.Writer
}

// app is passed to every command.
type app struct {
	streams
	log *slog.Logger
}

// readFile reads a file that the caller named; errors are usage errors.
func readFile(what, name string) ([]byte, error) {
	data, err := wholefile.Read(what, name)
	if err != nil {
		return nil, exit.WrongUsage(err)
	}
	return data, nil
}

// errReported ends a command that has already printed its outcome.
type errReported struct{ code int }

func (e errReported) Error() string { return fmt.Sprintf("exit code %d", e.code) }

func main() { os.Exit(start()) }

// start runs the command of this process. It first protects the process's memory from others, because it will contain
// keys.
func start() (code int) {
	std := streams{os.Stdin, os.Stdout, os.Stderr}
	endWithDocument(std, os.Args[1:])
	if err := sandbox.Conceal(); err != nil {
		return fail(std, fmt.Errorf("protect this process's memory from other processes: %w", err))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	routine.Safe(func() { code = run(ctx, os.Args[1:], std) })()
	return code
}

// endWithDocument makes a panic in any of our goroutines end this process through crashed.
func endWithDocument(std streams, arguments []string) {
	routine.OnPanic(func(cause any, stack []byte) { os.Exit(crashed(std, arguments, cause, stack)) })
}

// crashed reports a panic as a failure of the sidecar: with its exit code, and with the document that run --json
// promises.
func crashed(std streams, arguments []string, cause any, stack []byte) int {
	err := fmt.Errorf("the sidecar failed because of a bug; please report it: %v", cause)
	if len(arguments) > 0 && arguments[0] == "run" && slices.Contains(arguments, "--json") {
		err = reportFailure(&app{streams: std}, executed{}, outcomes.Internal, err)
	}
	fmt.Fprintf(std.stderr, "%s\n", telemetry.Redact(string(stack)))
	return fail(std, err)
}

// newParser returns a parser that reads arguments into line, a commandLine or a runLine.
func newParser(line any, std streams) (*kong.Kong, error) {
	return kong.New(line,
		kong.Name("kizen-sidecar"),
		kong.Description("The runtime beside every Kizen Code Step.\n\nExit codes: 0 success, 1 the step failed or a command found nothing to act on, 2 wrong usage or a refused request, 3 the sidecar could not do its work."),
		kong.DefaultEnvars("KIZEN"),
		kong.Writers(std.stdout, std.stderr),
		kong.Vars{"version": buildinfo.Version(), "max_timeout": runner.MaxWall.String()},
		kong.UsageOnError(),
		kong.ValueFormatter(helpText),
		flagvalue.Durations(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	)
}

// helpText returns a flag's help with its default, if that is informative, and its environment variables.
func helpText(value *kong.Value) string {
	defaults := value.Default
	if defaults != "" && defaults != "0" && defaults != "0s" && defaults != "-1" &&
		!strings.Contains(value.Help, "Default:") {
		described := *value
		described.Help = fmt.Sprintf("%s Default: %s.", value.Help, defaults)
		value = &described
	}
	return kong.DefaultHelpValueFormatter(value)
}

// run parses the arguments, runs the command they name, and returns the exit
// code.
func run(ctx context.Context, arguments []string, std streams) int {
	var all commandLine
	var only runLine
	var line any = &all
	common, running := &all.commonFlags, &all.Run
	if len(arguments) > 0 && arguments[0] == "run" {
		line, common, running = &only, &only.commonFlags, &only.Run
	}
	parser, err := newParser(line, std)
	if err != nil {
		return fail(std, fmt.Errorf("read the command line's own definition: %w", err))
	}
	command, err := parser.Parse(flagvalue.Join(arguments))
	if err != nil {
		return fail(std, misread(err))
	}
	if err := flagvalue.Check(command.Flags()); err != nil {
		return fail(std, exit.WrongUsage(err))
	}
	if running.Verbose {
		common.LogLevel = "debug"
	}
	logger, err := telemetry.NewLogger(std.stderr, telemetry.LogConfig{Level: common.LogLevel, Format: common.LogFormat})
	if err != nil {
		return fail(std, exit.WrongUsage(err))
	}
	command.BindTo(ctx, (*context.Context)(nil))
	command.Bind(command)
	return fail(std, command.Run(&app{streams: std, log: logger}))
}

// misread returns an error in the arguments, with a hint about the help.
func misread(err error) error {
	about := "kizen-sidecar"
	var parsing *kong.ParseError
	if errors.As(err, &parsing) && parsing.Context.Selected() != nil {
		about = parsing.Context.Selected().FullPath()
	}
	return exit.Usagef("%w; see %s --help", err, about)
}

// fail reports err on standard error, in one line, and returns its exit code.
func fail(std streams, err error) int {
	if reported, ok := errors.AsType[errReported](err); ok {
		return reported.code
	}
	if err != nil {
		fmt.Fprintf(std.stderr, "kizen-sidecar: %s\n", shown.Text(telemetry.Redact(err.Error())))
	}
	return exit.Code(err)
}
