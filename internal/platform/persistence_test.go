package platform

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/minter"
)

// keyDirectory returns a directory with a signing and a sealing key, which several platforms share.
func keyDirectory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, generate := range []func(time.Time) (minter.NewKey, error){minter.NewSigningKey, minter.NewSealingKey} {
		key, err := generate(time.Now())
		must(t, err)
		must(t, minter.WriteKey(dir, key))
	}
	return dir
}

// on returns the world of another instance, at another API root, with the same store and keys.
func (w *world) on(root string) *world {
	other := *w
	other.root = root
	return &other
}

// sharing returns the world of a platform whose keys also sign for the test's own minter.
func sharing(t *testing.T, at ready, dir string) *world {
	t.Helper()
	w := newWorld(t, at)
	keys, err := minter.LoadKeySet(minter.KeySetConfig{Path: dir})
	must(t, err)
	w.minter, err = minter.New(minter.Config{Redis: w.redis, Keys: keys})
	must(t, err)
	w.headers = w.headersFor(w.mint(identity()))
	return w
}

// startTwo starts two instances with one Redis and one set of keys.
func startTwo(t *testing.T) (a, b *world) {
	t.Helper()
	server, dir := redistest.Start(t), keyDirectory(t)
	first, _ := startPlatform(t, "--redis-url", server.URL(), "--keys", dir)
	second, _ := startPlatform(t, "--redis-url", server.URL(), "--keys", dir)
	a = sharing(t, first, dir)
	return a, a.on(second.APIRoot)
}

func TestTwoInstancesOnOneRedisAgree(t *testing.T) {
	a, b := startTwo(t)
	id, headers := a.integrationAccount(`{"name":"Sync"}`)
	path := "/service-accounts/" + id
	read := b.want(200, b.person(viewer), "GET", path, "")
	if text(read, "name") != "Sync" || b.tokens(id)["primary"] != headers.Get(minter.HeaderKey) {
		t.Errorf("the other instance has %v", read.body)
	}
	b.want(200, headers, "GET", "/custom-objects", "")
	stale := with412(a.person(editor), read.header.Get("ETag"))
	b.want(200, stale, "PATCH", path, `{"name":"Stock"}`)
	a.refused(412, "changed", "", stale, "PATCH", path, `{"name":"Lost"}`)
	a.switchIntegration(id, false)
	b.refused(401, minter.CodeSuspended, "", headers, "GET", "/custom-objects", "")
	b.switchIntegration(id, true)
	a.want(200, headers, "GET", "/custom-objects", "")
	b.want(204, b.person(admin), "DELETE", path, "")
	if got := a.callAs(headers, "GET", "/custom-objects", ""); got.status != 401 {
		t.Errorf("archived by the other instance: %d %v", got.status, got.body)
	}
	if got := ownCalls(b.want(200, b.person(unprivileged), "GET", "/timeline?account="+id, "")); len(got) != 2 {
		t.Errorf("the timeline of both instances: %v", got)
	}
}

func TestOnlyOneOfSeveralWritersWithOneETagSucceeds(t *testing.T) {
	a, b := startTwo(t)
	id, _ := a.integrationAccount(`{"name":"x"}`)
	path := "/service-accounts/" + id
	match := with412(a.person(admin), a.want(200, a.person(admin), "GET", path, "").header.Get("ETag"))
	statuses := make([]int, 8)
	var racing sync.WaitGroup
	for i := range statuses {
		racing.Go(func() {
			w := []*world{a, b}[i%2]
			statuses[i] = w.callAs(match, "PATCH", path, fmt.Sprintf(`{"name":"writer %d"}`, i)).status
		})
	}
	racing.Wait()
	winner := slices.Index(statuses, 200)
	slices.Sort(statuses)
	if !slices.Equal(statuses, []int{200, 412, 412, 412, 412, 412, 412, 412}) {
		t.Errorf("the writers got %v", statuses)
	}
	if got := b.want(200, b.person(viewer), "GET", path, ""); text(got, "name") != fmt.Sprint("writer ", winner) ||
		got.body["version"] != 2.0 {
		t.Errorf("the account is %v, the winner was %d", got.body, winner)
	}
}

func TestAccountsThatAreCreatedConcurrentlyAllExistAndDiffer(t *testing.T) {
	a, b := startTwo(t)
	var racing sync.WaitGroup
	for i := range 16 {
		racing.Go(func() {
			w := []*world{a, b}[i%2]
			for w.callAs(w.person(editor), "POST", "/service-accounts", `{"name":"Same"}`).status == http.StatusConflict {
			}
		})
	}
	racing.Wait()
	got := a.want(200, a.person(viewer), "GET", "/service-accounts?search=same&page_size=100", "")
	for _, name := range []string{"api_name", "email", "id"} {
		if values := slices.Compact(slices.Sorted(slices.Values(column(got, name)))); len(values) != 16 {
			t.Errorf("%d different %ss", len(values), name)
		}
	}
}

// TestASuspensionAgreesWithTheAccountAfterConcurrentSwitches lets two instances enable and disable one integration
// concurrently, and then compares the suspension that verifiers see with the account.
func TestASuspensionAgreesWithTheAccountAfterConcurrentSwitches(t *testing.T) {
	a, b := startTwo(t)
	id, headers := a.integrationAccount(`{"name":"x"}`)
	read := a.want(200, a.person(admin), "GET", "/service-accounts/"+id, "")
	path := "/integrations/" + read.body["integration"].(map[string]any)["id"].(string)
	admins := a.person(admin)
	for range 15 {
		var racing sync.WaitGroup
		for i := range 4 {
			racing.Go(func() {
				w := []*world{a, b}[i%2]
				w.callAs(admins, "PATCH", path, []string{`{"enabled":true}`, `{"enabled":false}`}[i/2])
			})
		}
		racing.Wait()
		status := text(a.want(200, admins, "GET", "/service-accounts/"+id, ""), "status")
		at := a.on(strings.TrimSuffix(a.root, apiRoot))
		verdict := at.callAs(headers, "GET", "/verify", "").status
		if want := map[string]int{statusActive: 200, statusSuspended: 401}[status]; verdict != want {
			t.Fatalf("the account is %s, and verifiers say %d", status, verdict)
		}
	}
}

// process is a platform in its own process.
type process struct {
	ready
	kill func() // kills it with SIGKILL, and waits
}

func startProcess(t *testing.T, arguments ...string) *process {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ready.json")
	command := exec.Command(os.Args[0], append([]string{"--ready-file", file, "--log-level", "error"}, arguments...)...)
	command.Env = []string{"TEST_AS_PLATFORM=1", "GORACE=atexit_sleep_ms=0"}
	var log bytes.Buffer
	command.Stderr = &log
	must(t, command.Start())
	p := &process{kill: sync.OnceFunc(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})}
	t.Cleanup(p.kill)
	redistest.Await(t, "the platform to listen", func() bool {
		_, err := os.Stat(file) // the file appears complete
		return err == nil
	})
	p.ready = readReady(t, file)
	return p
}

// relay forwards between a platform and Redis, and counts transactions. When Redis has answered the transaction for
// which it is armed, it calls struck instead of passing the answer on: the write has happened, and the platform does
// not know.
type relay struct {
	redis  string
	struck func()

	mu      sync.Mutex
	left    int // transactions until struck is called; 0: not armed
	waiting bool
}

// arm makes the nth transaction from now on the last one.
func (r *relay) arm(nth int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left, r.waiting = nth, false
}

// disarm reports whether struck was called.
func (r *relay) disarm() (struck bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	struck = r.waiting
	r.left, r.waiting = 0, false
	return struck
}

// listen serves until the test ends.
func (r *relay) listen(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { r.carry(client) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		serving.Wait()
	})
	return "redis://" + listener.Addr().String()
}

func (r *relay) carry(client net.Conn) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", r.redis)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	armed := make(chan struct{}, 1) // the last transaction is on this connection
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = client.Close() }()
		buffer := make([]byte, 64<<10)
		for {
			n, err := server.Read(buffer)
			select {
			case <-armed:
				r.struck()
				return
			default:
			}
			if _, writeErr := client.Write(buffer[:n]); err != nil || writeErr != nil {
				return
			}
		}
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := client.Read(buffer)
		if r.passes(bytes.Count(buffer[:n], []byte("\r\nexec\r\n"))) {
			armed <- struct{}{}
		}
		if _, writeErr := server.Write(buffer[:n]); err != nil || writeErr != nil {
			break
		}
	}
	_ = server.Close()
	<-done
}

// passes counts transactions and reports whether the last one is among them.
func (r *relay) passes(n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left == 0 || n == 0 {
		return false
	}
	r.left = max(0, r.left-n)
	r.waiting = r.left == 0
	return r.waiting
}

// TestNothingIsLostWhenAnInstanceIsKilledBetweenTwoWrites takes each call that writes, and kills the platform with
// SIGKILL after each of its writes in turn. It then starts another platform, and checks the data that the call left.
func TestNothingIsLostWhenAnInstanceIsKilledBetweenTwoWrites(t *testing.T) {
	for name, c := range map[string]struct {
		call  func(w *world, id string) (method, path, body string)
		check func(w *world, id string, before http.Header)
	}{
		"create": {
			func(*world, string) (string, string, string) { return "POST", "/service-accounts", `{"name":"New"}` },
			func(w *world, _ string, _ http.Header) {
				made := list(w.want(200, w.person(viewer), "GET", "/service-accounts?search=new", ""), "results")
				for _, a := range made {
					id := a["id"].(string)
					if len(w.tokens(id)) == 0 {
						w.want(201, w.person(editor), "POST", "/service-accounts/"+id+"/tokens/rotate", "")
					}
					w.want(200, stored(id, w.tokens(id)["primary"]), "GET", "/custom-objects", "")
				}
				if len(made) != 1 {
					w.t.Errorf("%d accounts exist", len(made))
				}
			},
		},
		"archive": {
			func(_ *world, id string) (string, string, string) { return "DELETE", "/service-accounts/" + id, "" },
			func(w *world, id string, before http.Header) {
				if got := w.callAs(before, "GET", "/custom-objects", ""); got.status != 401 {
					w.t.Errorf("the account to archive can still act: %d", got.status)
				}
				if got := w.callAs(w.person(admin), "DELETE", "/service-accounts/"+id, ""); got.status != 204 && got.status != 404 {
					w.t.Errorf("archiving again: %d %v", got.status, got.body)
				}
				w.refused(404, "not_found", "", w.person(viewer), "GET", "/service-accounts/"+id, "")
			},
		},
		"disable": {
			func(w *world, id string) (string, string, string) {
				a, err := accountStore{redis: w.redis}.find(w.t.Context(), testBusiness, id)
				must(w.t, err)
				return "PATCH", "/integrations/" + a.Integration.ID, `{"enabled":false}`
			},
			func(w *world, id string, before http.Header) {
				w.refused(401, minter.CodeSuspended, "", before, "GET", "/custom-objects", "")
				w.switchIntegration(id, false)
				w.refused(401, minter.CodeSuspended, "", before, "GET", "/custom-objects", "")
				w.switchIntegration(id, true)
				w.want(200, before, "GET", "/custom-objects", "")
			},
		},
		"rotate": {
			func(_ *world, id string) (string, string, string) {
				return "POST", "/service-accounts/" + id + "/tokens/rotate", ""
			},
			func(w *world, id string, before http.Header) {
				tokens := w.tokens(id)
				if len(tokens) != 2 || tokens["secondary"] != before.Get(minter.HeaderKey) {
					w.t.Errorf("%d tokens are left", len(tokens))
				}
				w.want(200, before, "GET", "/custom-objects", "")
				w.want(200, stored(id, tokens["primary"]), "GET", "/custom-objects", "")
			},
		},
		"rename": {
			func(_ *world, id string) (string, string, string) {
				return "PATCH", "/service-accounts/" + id, `{"name":"Renamed"}`
			},
			func(w *world, id string, _ http.Header) {
				if got := w.want(200, w.person(viewer), "GET", "/service-accounts/"+id, ""); text(got, "name") != "Renamed" ||
					got.body["version"] != 2.0 {
					w.t.Errorf("the account is %v", got.body)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			strokes := 0
			for nth := 1; killedAfter(t, nth, c.call, c.check); nth++ {
				strokes = nth
			}
			if strokes == 0 {
				t.Error("the call wrote nothing")
			}
			t.Logf("killed after each of %d writes", strokes)
		})
	}
}

// killedAfter makes a call, and kills the platform right after the call's nth write. It returns false if the call has
// fewer writes.
func killedAfter(t *testing.T, nth int, call func(*world,
	string) (method, path, body string), check func(w *world, id string, before http.Header)) bool {
	t.Helper()
	server, dir := redistest.Start(t), keyDirectory(t)
	defer server.Stop()
	between := &relay{redis: server.Addr}
	victim := startProcess(t, "--redis-url", between.listen(t), "--keys", dir)
	between.struck = victim.kill
	w := sharing(t, ready{APIRoot: victim.APIRoot, RedisURL: server.URL()}, dir)
	id, headers := w.integrationAccount(`{"name":"Old"}`)
	keeper, kept := w.integrationAccount(`{"name":"Keeper"}`)

	method, path, body := call(w, id)
	request, err := http.NewRequestWithContext(t.Context(), method, w.root+path, strings.NewReader(body))
	must(t, err)
	request.Header = w.person(admin)
	between.arm(nth)
	response, err := http.DefaultTransport.RoundTrip(request)
	if err == nil {
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
	}
	struck := between.disarm()
	if struck != (err != nil) {
		t.Fatalf("the platform was killed: %v, its answer: %v", struck, err)
	}
	victim.kill()

	at, _ := startPlatform(t, "--redis-url", server.URL(), "--keys", dir)
	survivor := w.on(at.APIRoot)
	check(survivor, id, headers)
	survivor.want(200, kept, "GET", "/custom-objects", "")
	if got := survivor.want(200, survivor.person(viewer), "GET", "/service-accounts/"+keeper, ""); text(got,
		"name") != "Keeper" {
		t.Errorf("another account was changed to %v", got.body)
	}
	return struck
}

// TestEveryWriteThatWasAnsweredSurvivesKill9 writes as fast as possible to a process that is killed meanwhile. Every
// write that was answered with success must still exist.
func TestEveryWriteThatWasAnsweredSurvivesKill9(t *testing.T) {
	server, dir := redistest.Start(t), keyDirectory(t)
	victim := startProcess(t, "--redis-url", server.URL(), "--keys", dir)
	w := sharing(t, victim.ready, dir)
	w.want(200, w.headers, "GET", "/custom-objects", "")
	var (
		writing  sync.WaitGroup
		mu       sync.Mutex
		answered []string
	)
	editors := w.person(editor)
	for range 4 {
		writing.Go(func() {
			for {
				request, err := http.NewRequestWithContext(t.Context(), "POST", w.root+"/service-accounts",
					strings.NewReader(`{"name":"Written"}`))
				if err != nil {
					return
				}
				request.Header = editors
				response, err := http.DefaultTransport.RoundTrip(request)
				if err != nil {
					return // the process is dead
				}
				location, _ := url.PathUnescape(response.Header.Get("Location"))
				_ = response.Body.Close()
				if response.StatusCode == 201 {
					mu.Lock()
					answered = append(answered, strings.TrimPrefix(location, apiRoot))
					if len(answered) == 12 {
						writing.Go(victim.kill)
					}
					mu.Unlock()
				}
			}
		})
	}
	writing.Wait()
	victim.kill()
	at, _ := startPlatform(t, "--redis-url", server.URL(), "--keys", dir)
	survivor := w.on(at.APIRoot)
	for _, path := range answered {
		got := survivor.want(200, survivor.person(viewer), "GET", path, "")
		id := text(got, "id")
		survivor.want(200, stored(id, survivor.tokens(id)["primary"]), "GET", "/custom-objects", "")
	}
	all := survivor.want(200, survivor.person(viewer), "GET", "/service-accounts?search=written&page_size=100", "")
	if n := len(list(all, "results")); n < len(answered) || n > len(answered)+4 {
		t.Errorf("%d accounts exist, %d were answered", n, len(answered))
	}
}
