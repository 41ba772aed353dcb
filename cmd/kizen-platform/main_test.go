package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
	"github.com/kizen/kizen-sidecar/minter"
)

// TestMain lets the test binary stand in for kizen-platform, so that a test can send signals to a real process.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_AS_PLATFORM") != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// started is a running platform.
type started struct {
	ready ready
	log   *sidecartest.Buffer
}

// startPlatform runs the command until the test ends.
func startPlatform(t *testing.T, arguments ...string) started {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ready.json")
	ctx, stop := context.WithCancel(context.Background())
	log, code := &sidecartest.Buffer{}, make(chan int, 1)
	go func() {
		code <- run(ctx, append([]string{"--listen", "127.0.0.1:0", "--ready-file", file, "--log-format", "json"},
			arguments...), io.Discard, log)
	}()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		stop()
		if got := <-code; got != exit.OK {
			t.Errorf("the platform ended with %d", got)
		}
	})
	sidecartest.WaitFor(t, func() bool { return strings.Contains(log.String(), `"listening"`) })
	return started{readReady(t, file), log}
}

func readReady(t *testing.T, file string) ready {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	var at ready
	must(t, json.Unmarshal(data, &at))
	return at
}

// status returns the status of a call with a key that keys signed, after the key was recorded in the Redis of config.
func (s started) status(t *testing.T, config redisconn.Config, keys *minter.KeySet) int {
	t.Helper()
	client, err := redisconn.Open(config)
	must(t, err)
	defer func() { _ = client.Close() }()
	m, err := minter.New(minter.Config{Redis: client, Keys: keys})
	must(t, err)
	key, err := m.Mint(t.Context(), minter.Identity{AccountID: "account-1", AccountType: "service_automation",
		BusinessID: "business-1", ExecutionID: "e-1"}, time.Hour)
	must(t, err)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.ready.APIRoot+"/custom-objects", nil)
	must(t, err)
	request.Header.Set(minter.HeaderKey, key.Token.Reveal())
	request.Header.Set(minter.HeaderBusiness, key.Identity.BusinessID)
	request.Header.Set(minter.HeaderUser, key.Identity.AccountID)
	response, err := http.DefaultClient.Do(request)
	must(t, err)
	must(t, response.Body.Close())
	return response.StatusCode
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestWrongUsageEndsWithTwoAndOneLine: a mistake in a flag or its environment ends the platform with the right exit
// code and one line without secrets. Flags, the Redis URL, the listener and the files are wired only in run.
func TestWrongUsageEndsWithTwoAndOneLine(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = taken.Close() }()
	for name, c := range map[string]struct {
		arguments []string
		code      int
		message   string
	}{
		"unknown flag": {[]string{"--nothing"}, exit.Usage, "unknown flag --nothing"},
		"address without a port": {[]string{"--listen", "localhost"}, exit.Usage,
			`--listen "localhost" is not an address`},
		"redis url without scheme": {[]string{"--redis-url", "localhost"}, exit.Usage, "redis"},
		"unknown log level":        {[]string{"--log-level", "loud"}, exit.Usage, `unknown log level "loud"`},
		"port taken":               {[]string{"--listen", taken.Addr().String()}, exit.Failed, "choose another --listen"},
		"ready file nowhere": {[]string{"--listen", "127.0.0.1:0", "--ready-file", "/nowhere/ready"}, exit.Failed,
			`--ready-file "/nowhere/ready"`},
		"env file nowhere": {[]string{"--listen", "127.0.0.1:0", "--env-file", "/nowhere/env"}, exit.Failed,
			`--env-file "/nowhere/env"`},
		"development keys": {[]string{"--listen", "0.0.0.0:0", "--redis-url", "redis://redis.invalid:6379"},
			exit.Usage, "no keys are configured, and other machines can reach redis and --listen; configure keys with --keys"},
		"the same on every address": {[]string{"--listen", ":0", "--redis-url", "redis://redis.invalid:6379"}, exit.Usage,
			"no keys are configured"},
		"secret in a bad url": {[]string{"--redis-url", "htp://u:pa55word@h"}, exit.Usage, "redis"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KIZEN_LOG", "error")
			var out, log bytes.Buffer
			code := run(t.Context(), c.arguments, &out, &log)
			if code != c.code || !strings.Contains(log.String(), c.message) || strings.Count(log.String(), "\n") != 1 ||
				out.Len() > 0 {
				t.Errorf("exit %d, out %q, log %q", code, out.String(), log.String())
			}
			if strings.Contains(log.String(), "pa55word") {
				t.Errorf("the password is in the log: %s", log.String())
			}
		})
	}
}

// TestHelpShowsExamplesAndEveryEnvironmentVariable: --help prints the examples and each variable that sets a flag. The
// parser builds this text from the struct of flags.
func TestHelpShowsExamplesAndEveryEnvironmentVariable(t *testing.T) {
	var out, log bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, &out, &log); code != exit.OK || log.Len() > 0 {
		t.Fatalf("exit %d, log %q", code, log.String())
	}
	for _, want := range []string{"kizen-platform --env-file platform.env",
		"$KIZEN_LISTEN", "$KIZEN_REDIS_URL", "$REDIS_URL", "$KIZEN_REDIS_TIMEOUT", "$KIZEN_READY_FILE", "$KIZEN_LOG",
		"$KIZEN_LOG_FORMAT"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the help lacks %q", want)
		}
	}
}

// TestEnvironmentSetsTheRedisURL: a platform started with REDIS_URL uses that Redis and names it in its ready file.
func TestEnvironmentSetsTheRedisURL(t *testing.T) {
	store, err := redisconn.StartEmbedded()
	must(t, err)
	defer store.Close()
	must(t, store.Share("127.0.0.1:0"))
	t.Setenv("REDIS_URL", store.URL())
	if at := startPlatform(t).ready; at.RedisURL != store.URL() {
		t.Errorf("redis_url is %s", at.RedisURL)
	}
}

// TestTheEnvFileConfiguresASidecarAndOnlyItsOwnerCanReadIt: the file of --env-file holds the address and the password
// that a sidecar needs, with mode 0600, after the listener and the embedded store chose their ports.
func TestTheEnvFileConfiguresASidecarAndOnlyItsOwnerCanReadIt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	at := startPlatform(t, "--env-file", file).ready
	text, err := os.ReadFile(file)
	must(t, err)
	if want := "KIZEN_API_ROOT=" + at.APIRoot + "\nREDIS_URL=" + at.RedisURL + "\n"; string(text) != want ||
		!strings.Contains(want, "@") {
		t.Errorf("the env file is %q, want %q with a password", text, want)
	}
	about, err := os.Stat(file)
	must(t, err)
	if about.Mode() != 0o600 {
		t.Errorf("its mode is %v", about.Mode())
	}
}

// TestSignalsEndThePlatformCleanly: SIGTERM and SIGINT end a platform with exit code 0. It needs a separate process,
// because the signal handler belongs to the process.
func TestSignalsEndThePlatformCleanly(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "ready.json")
			command := exec.CommandContext(t.Context(), os.Args[0], "--listen", "127.0.0.1:0", "--ready-file", file,
				"--log-format", "json")
			command.Env = []string{"TEST_AS_PLATFORM=1", "GORACE=atexit_sleep_ms=0"}
			stop := redistest.Run(t, `"listening"`, command, signal)
			at := readReady(t, file)
			if !strings.HasPrefix(at.APIRoot, "http://127.0.0.1:") || !strings.HasPrefix(at.RedisURL, "redis://:") {
				t.Errorf("ready file says %+v", at)
			}
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("ready file: %v %v", info.Mode(), err)
			}
			stop()
			if code := command.ProcessState.ExitCode(); code != exit.OK {
				t.Errorf("the platform ended with %d", code)
			}
		})
	}
}
