// Command kizen-platform is a small reference platform: it accepts the keys that kizen-sidecar mints and serves enough
// of Kizen's API for development, demos and tests.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"regexp"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/buildinfo"
	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/flagvalue"
	"github.com/kizen/kizen-sidecar/internal/platform"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/internal/shown"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/telemetry"
)

const description = `The reference platform: verifies the keys that kizen-sidecar mints and serves a few of Kizen's endpoints under /api.

Examples:
  kizen-platform
      Listen on 127.0.0.1:8080 with an embedded store, which only this process can use.
  kizen-platform --env-file platform.env &
  export $(cat platform.env) && kizen-sidecar run examples/count_custom_objects
      Let a sidecar on this machine use that store.
  kizen-platform --redis-url redis://127.0.0.1:6379
      Check keys that a sidecar on the same Redis mints.

Exit codes: 0 stopped when asked to, 2 wrong usage, 3 the platform could not do its work.`

// commandLine defines the flags of kizen-platform.
type commandLine struct {
	Listen          string           `help:"Address to listen on; port 0 chooses a free one." default:"127.0.0.1:8080" placeholder:"HOST:PORT"`
	RedisURL        string           `help:"Redis that holds the records of keys. Default: an embedded store, whose URL and password are in --env-file and --ready-file." env:"KIZEN_REDIS_URL,REDIS_URL" placeholder:"URL" group:"Redis"`
	Connection      redisconn.Flags  `embed:""`
	Keys            string           `help:"Key set: a file, or a directory that kizen-sidecar keys manages, with a signing and a sealing key. Default: the keys in KIZEN_SIGNING_KEYS; without those, the public keys that sidecars publish in Redis, and stored keys that are lost when this process ends." placeholder:"FILE|DIR"`
	EmailDomain     string           `help:"Domain of the generated addresses of service accounts." default:"serviceaccounts.kizen.com" placeholder:"DOMAIN"`
	DevelopmentKeys bool             `help:"Trust signing keys published in Redis even if other machines can reach both Redis and the listener. Anyone who can write to that Redis can then mint keys."`
	ReadyFile       string           `help:"Write a JSON object with api_root and redis_url here once the platform listens. Only its owner can read it, because the URL may contain a password." placeholder:"FILE"`
	EnvFile         string           `help:"Write KIZEN_API_ROOT and REDIS_URL here once the platform listens, for the environment of a sidecar. Only its owner can read it." placeholder:"FILE"`
	LogLevel        string           `help:"Lowest level to log: debug, info, warn or error." env:"KIZEN_LOG" default:"info" placeholder:"LEVEL"`
	LogFormat       string           `help:"Format of the log on standard error: text, json, or auto (text on a terminal)." default:"auto" placeholder:"FORMAT"`
	Version         kong.VersionFlag `help:"Print the version and exit." env:"-"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	routine.OnPanic(func(cause any, stack []byte) {
		fmt.Fprintf(os.Stderr, "%s\nkizen-platform: the platform failed because of a bug; please report it: %v\n",
			stack, cause)
		os.Exit(exit.Failed)
	})
	var code int
	routine.Safe(func() { code = run(ctx, os.Args[1:], os.Stdout, os.Stderr) })()
	stop()
	os.Exit(code)
}

// run parses the arguments, serves until ctx ends, and returns the exit code.
func run(ctx context.Context, arguments []string, stdout, stderr io.Writer) int {
	err := serve(ctx, arguments, stdout, stderr)
	if errors.Is(err, errAnswered) {
		return exit.OK
	}
	if err != nil {
		fmt.Fprintf(stderr, "kizen-platform: %s\n", shown.Text(telemetry.Redact(err.Error())))
	}
	return exit.Code(err)
}

// errAnswered ends parsing after --help or --version has printed its output.
var errAnswered = errors.New("answered by the command line itself")

// parser returns the parser that reads arguments into line.
func (line *commandLine) parser(stdout, stderr io.Writer) (*kong.Kong, error) {
	return kong.New(line,
		kong.Name("kizen-platform"),
		kong.Description(description),
		kong.DefaultEnvars("KIZEN"),
		kong.Writers(stdout, stderr),
		kong.Vars{"version": buildinfo.Version()},
		flagvalue.Durations(),
		kong.ConfigureHelp(kong.HelpOptions{WrapUpperBound: 100}),
		kong.Exit(func(int) { panic(errAnswered) }),
	)
}

func parse(arguments []string, stdout, stderr io.Writer) (line commandLine, err error) {
	parser, err := line.parser(stdout, stderr)
	if err != nil {
		return line, fmt.Errorf("read the command line's own definition: %w", err)
	}
	defer func() {
		switch cause := recover(); cause {
		case nil:
		case errAnswered:
			err = errAnswered
		default:
			panic(cause)
		}
	}()
	command, err := parser.Parse(flagvalue.Join(arguments))
	if err != nil {
		return line, exit.Usagef("%w; see kizen-platform --help", err)
	}
	if err := flagvalue.Check(command.Flags()); err != nil {
		return line, exit.WrongUsage(err)
	}
	if _, _, err := net.SplitHostPort(line.Listen); err != nil {
		return line, exit.Usagef("--listen %q is not an address; write it like 127.0.0.1:8080", line.Listen)
	}
	if !domainName.MatchString(line.EmailDomain) || len(line.EmailDomain) > 190 {
		return line, exit.Usagef("--email-domain %q is not a domain; write it like serviceaccounts.example.com",
			line.EmailDomain)
	}
	return line, nil
}

// domainName is a domain of letters, digits and hyphens (RFC 1123 section 2.1).
var domainName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

// trusted rejects published keys in what looks like production: if no key set is configured, and other machines can
// reach both this platform and the Redis with the published keys.
func (line commandLine) trusted(configured bool) error {
	host, _, _ := net.SplitHostPort(line.Listen)
	ip := net.ParseIP(host)
	local := host == "localhost" || ip != nil && ip.IsLoopback()
	if configured || line.DevelopmentKeys || local || redisconn.OnThisMachine(line.RedisURL) {
		return nil
	}
	return exit.Usagef("no keys are configured, and other machines can reach redis and --listen; configure keys with --keys, or trust the keys published in redis with --development-keys")
}

func serve(ctx context.Context, arguments []string, stdout, stderr io.Writer) error {
	line, err := parse(arguments, stdout, stderr)
	if err != nil {
		return err
	}
	log, err := telemetry.NewLogger(stderr, telemetry.LogConfig{Level: line.LogLevel, Format: line.LogFormat})
	if err != nil {
		return exit.WrongUsage(err)
	}
	var embedded *redisconn.Embedded
	if line.RedisURL == "" {
		if embedded, err = redisconn.StartEmbedded(); err != nil {
			return err
		}
		defer embedded.Close()
		if err := line.share(embedded, log); err != nil {
			return err
		}
	}
	client, err := line.connect(embedded)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }() // no request is in flight

	keys, configured, err := loadKeys(line.Keys, log)
	if err != nil {
		return err
	}
	if err := line.trusted(configured); err != nil {
		return err
	}
	served, err := platform.New(platform.Config{Redis: client, Keys: keys, TrustPublished: !configured,
		EmailDomain: line.EmailDomain, Log: log})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", line.Listen)
	if err != nil {
		return fmt.Errorf("listen on %q: %w; choose another --listen", line.Listen, err)
	}
	return served.Serve(ctx, listener, func(root string) error {
		if err := line.announce(ready{APIRoot: root, RedisURL: line.RedisURL}); err != nil {
			return err
		}
		log.Info("listening", "api_root", root)
		return nil
	})
}

// share lets sidecars use the embedded store if a file will publish its address.
func (line *commandLine) share(embedded *redisconn.Embedded, log *slog.Logger) error {
	if line.ReadyFile == "" && line.EnvFile == "" {
		log.Info("using an embedded store, which only this process can use; share it with --env-file")
		return nil
	}
	if err := embedded.Share("127.0.0.1:0"); err != nil {
		return err
	}
	line.RedisURL = embedded.URL()
	log.Info("using the embedded store; a sidecar reaches it with the REDIS_URL of --env-file, which has the password",
		"redis_url", "redis://"+embedded.Addr())
	return nil
}

// connect returns a client for the Redis that the flags name, or for the embedded one. It dials nothing yet.
func (line commandLine) connect(embedded *redisconn.Embedded) (redis.UniversalClient, error) {
	client, err := line.Connection.Open(line.RedisURL, embedded)
	if err != nil {
		return nil, exit.WrongUsage(err)
	}
	return client, nil
}

// signingKeysVariable contains the keys themselves. It is not a flag, because keys must not be on a command line.
const signingKeysVariable = "KIZEN_SIGNING_KEYS"

// loadKeys reads the key set from --keys or the environment, or generates one for this process.
func loadKeys(path string, log *slog.Logger) (keys *minter.KeySet, configured bool, err error) {
	source := minter.KeySetConfig{Path: path}
	if path == "" {
		source.Text = minter.NewToken(os.Getenv(signingKeysVariable))
	}
	if source.Path == "" && source.Text.Reveal() == "" {
		log.Info("no keys are configured: trusting the public keys that sidecars publish in redis, and losing stored keys when this process ends")
		keys, err = minter.GenerateKeySet()
		return keys, false, err
	}
	if keys, err = minter.LoadKeySet(source); err != nil {
		return nil, false, exit.WrongUsage(err)
	}
	return keys, true, nil
}

// ready is the content of --ready-file.
type ready struct {
	APIRoot  string `json:"api_root"`
	RedisURL string `json:"redis_url"`
}

// announce writes the files with the platform's address.
func (line commandLine) announce(content ready) error {
	document, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return fmt.Errorf("write --ready-file: %w", err)
	}
	environment := fmt.Sprintf("KIZEN_API_ROOT=%s\nREDIS_URL=%s", content.APIRoot, content.RedisURL)
	for _, file := range []struct{ flag, path, text string }{
		{"--ready-file", line.ReadyFile, string(document)}, {"--env-file", line.EnvFile, environment},
	} {
		if file.path == "" {
			continue
		}
		if err := wholefile.Write(file.path, []byte(file.text+"\n"), 0o600); err != nil {
			return fmt.Errorf("write %s %q: %w", file.flag, file.path, err)
		}
	}
	return nil
}
