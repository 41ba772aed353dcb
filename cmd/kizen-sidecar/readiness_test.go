package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// TestReadinessFailsIfRedisCannotStoreKeys: Redis answers PING but stores no keys, because it was demoted to a
// replica, is out of memory, or forbids SET to its user. The test checks /readyz of every command before, during and
// after the fault.
func TestReadinessFailsIfRedisCannotStoreKeys(t *testing.T) {
	server := redistest.Start(t)
	server.Do(t, "ACL", "SETUSER", "kizen", "on", ">p", "~*", "&*", "+@all")
	url := "redis://kizen:p@" + server.Addr
	platform := startPlatform(t, "--redis-url", url)
	root := platform.String()
	arguments := []string{"--api-root", root, "--redis-url", url}
	ready := map[string]string{
		"serve": sidecartest.StartService(t, nil,
			append([]string{"serve", "--listen", "127.0.0.1:0", "--warm", "0"}, arguments...)...).Admin,
		"worker":         sidecartest.StartService(t, nil, append([]string{"worker", "--warm", "0"}, arguments...)...).Admin,
		"proxy":          adminOf(t, startProxy(t, append([]string{"--admin-listen", "127.0.0.1:0"}, arguments...)...)),
		"kizen-platform": "http://" + platform.Host,
	}
	expect := func(when string, want int, says string) {
		t.Helper()
		for name, address := range ready {
			if want == 200 { // a worker checks itself before it takes executions
				waitFor(t, func() bool { got, _ := get(t, address+"/readyz"); return got == want })
			}
			got, body := get(t, address+"/readyz")
			if got != want || name != "kizen-platform" && !strings.Contains(body, says) {
				t.Errorf("%s, %s: %d %s, want %d and %q", when, name, got, body, want, says)
			}
			if got, _ := get(t, address+"/healthz"); got != 200 {
				t.Errorf("%s, %s: /healthz answers %d", when, name, got)
			}
		}
	}
	expect("before", 200, `"redis":"ok"`)
	for when, row := range map[string]struct {
		spoil, mend []string
		says        string
	}{
		"a demoted master": {[]string{"REPLICAOF", "127.0.0.1", "1"}, []string{"REPLICAOF", "NO", "ONE"},
			"is a replica and cannot be written"},
		"out of memory": {[]string{"CONFIG", "SET", "maxmemory", "1"}, []string{"CONFIG", "SET", "maxmemory", "0"},
			"is out of memory"},
		"an ACL without SET": {[]string{"ACL", "SETUSER", "kizen", "-set"}, []string{"ACL", "SETUSER", "kizen", "+set"},
			"does not let this user do it"},
	} {
		server.Do(t, row.spoil...)
		expect(when, 503, row.says)
		server.Do(t, row.mend...)
		expect("after "+when, 200, `"redis":"ok"`)
	}
}

// adminOf returns the address for operators from a proxy's log.
func adminOf(t *testing.T, p *sidecartest.Proxy) (url string) {
	t.Helper()
	waitFor(t, func() bool {
		found := regexp.MustCompile(`"admin_url":"([^"]+)"`).FindStringSubmatch(p.Log.String())
		if found != nil {
			url = found[1]
		}
		return found != nil
	})
	return url
}

// TestDevelopmentKeysAreRefusedIfRedisAndAPIAreRemote: run, serve, worker and proxy refuse generated keys if Redis and
// the API are remote. Each command wires the check itself.
func TestDevelopmentKeysAreRefusedIfRedisAndAPIAreRemote(t *testing.T) {
	remote := []string{"--redis-url", "redis://redis.invalid:6379", "--api-root", "https://api.invalid/api"}
	script := []string{"--script", "-"}
	for name, command := range map[string][]string{"run": append([]string{"run"}, script...), "serve": {"serve"},
		"worker": {"worker"}, "proxy": {"proxy"}} {
		got := sidecar(t, "pass", nil, append(command, remote...)...)
		if got.code != exitUsage || !strings.Contains(got.stderr, "no signing keys are configured") ||
			!strings.Contains(got.stderr, "--keys") {
			t.Errorf("%s: %d %s", name, got.code, got.stderr)
		}
	}
	for name, more := range map[string][]string{
		"redis on this machine":   {"--redis-url", "redis://127.0.0.1:1"},
		"the API on this machine": {"--api-root", "http://127.0.0.1:1/api"},
		"allowed":                 {"--development-keys"},
	} {
		got := sidecar(t, "pass", nil, append(append([]string{"run", "--script", "-", "--redis-timeout", "1s"}, remote...),
			more...)...)
		if got.code != exitSidecar || strings.Contains(got.stderr, "no signing keys are configured, and") {
			t.Errorf("%s: %d %s", name, got.code, got.stderr)
		}
	}
}

// TestTheEmbeddedStoreHasNoListener counts the listeners of a process in which only the proxy listens.
func TestTheEmbeddedStoreHasNoListener(t *testing.T) {
	p := startProxy(t, "--api-root", "http://127.0.0.1:1/api")
	mine := map[string]bool{}
	pid := p.Process.Pid
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, "socket:[") {
			mine[strings.Trim(to, "socket:[]")] = true
		}
	}
	listeners := 0
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			const listening = "0A"
			if fields := strings.Fields(line); len(fields) > 9 && fields[3] == listening && mine[fields[9]] {
				listeners++
			}
		}
	}
	if listeners != 1 {
		t.Errorf("the process listens %d times, want the proxy's listener only", listeners)
	}
}

// TestDoctorMeasuresClocksAndWrites: doctor reads the clocks of a real Redis and of the platform, mints a key, and
// names a Redis that became a replica.
func TestDoctorMeasuresClocksAndWrites(t *testing.T) {
	server := redistest.Start(t)
	api := startPlatform(t, "--redis-url", server.URL())
	got := sidecar(t, "", nil, "doctor", "--redis-url", server.URL(), "--api-root", api.String())
	if got.code != exitOK || !strings.Contains(got.stdout, "keys can be minted; its clock is") ||
		!regexp.MustCompile(`✓  api +its clock is`).MatchString(got.stdout) {
		t.Errorf("%d\n%s%s", got.code, got.stdout, got.stderr)
	}
	server.Do(t, "REPLICAOF", "127.0.0.1", "1")
	if got := sidecar(t, "", nil, "doctor", "--redis-url", server.URL()); got.code != exitSidecar ||
		!strings.Contains(got.stderr, "is a replica and cannot be written") {
		t.Errorf("%d %s", got.code, got.stderr)
	}
}
