package platform

import (
	"bufio"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/minter"
)

func TestPlatformReloadsItsKeysOnHangup(t *testing.T) {
	dir, file := keyDirectory(t), filepath.Join(t.TempDir(), "ready.json")
	command := exec.CommandContext(t.Context(), os.Args[0], "--keys", dir, "--ready-file", file)
	command.Env = []string{"TEST_AS_PLATFORM=1", "GORACE=atexit_sleep_ms=0"}
	pipe, err := command.StderrPipe()
	must(t, err)
	must(t, command.Start())
	lines := bufio.NewScanner(pipe)
	await := func(text string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), text) {
				return
			}
		}
		t.Fatalf("the platform ended without logging %q", text)
	}
	var w *world
	for listening, loaded := false, false; !listening || !loaded; {
		if !lines.Scan() {
			t.Fatal("the platform ended")
		}
		listening = listening || strings.Contains(lines.Text(), `"listening"`)
		loaded = loaded || strings.Contains(lines.Text(), `"keys loaded"`) // it now handles signals
	}
	w = sharing(t, readReady(t, file), dir)
	must(t, command.Process.Signal(syscall.SIGHUP))
	await(`"keys loaded"`)
	key, err := minter.NewSigningKey(time.Now())
	must(t, err)
	must(t, minter.WriteKey(dir, key))
	must(t, command.Process.Signal(syscall.SIGHUP))
	await(`"keys loaded"`)
	w.want(200, w.headers, "GET", "/custom-objects", "")
	w = sharing(t, readReady(t, file), dir)
	w.want(200, w.headers, "GET", "/custom-objects", "")
	must(t, command.Process.Signal(syscall.SIGTERM))
	for lines.Scan() {
	}
	must(t, command.Wait())
}

func TestVerifyAnswersForEveryMethodAndPathSuffix(t *testing.T) {
	w := start(t)
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		for _, path := range []string{"/verify", "/verify/", "/verify/api/things?a=b", "/verify/a%2Fb//c/../d",
			"/verify/.well-known/jwks.json"} {
			for want, headers := range map[int]http.Header{200: w.headers, 401: {}} {
				request, err := http.NewRequestWithContext(t.Context(), method, strings.TrimSuffix(w.root, apiRoot)+path, nil)
				must(t, err)
				request.Header = headers
				answer, err := http.DefaultClient.Do(request)
				must(t, err)
				must(t, answer.Body.Close())
				if account := answer.Header.Get(minter.HeaderAccount); answer.StatusCode != want || want == 200 &&
					account != testAccount {
					t.Errorf("%s %s: %d for account %q, want %d", method, path, answer.StatusCode, account, want)
				}
			}
		}
	}
}
