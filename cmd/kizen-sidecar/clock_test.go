package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
	"github.com/kizen/kizen-sidecar/minter"
)

// These tests run the built binary under a clock that jumps. A seccomp listener of the test answers the system calls
// that read the time of day. The vDSO would answer without a system call, so the tests use a copy of the binary that
// does not find the vDSO's function. The monotonic clock stays the kernel's, as when a real clock jumps.

// clockProgram is the environment variable that makes this test binary execute a program under the filter. It sends
// the filter's listener over descriptor 3.
const clockProgram = "KIZEN_TEST_CLOCK_PROGRAM"

func init() {
	if program := os.Getenv(clockProgram); program != "" {
		fmt.Fprintln(os.Stderr, "execute under a clock that jumps:", executeFiltered(program))
		os.Exit(exitSidecar)
	}
}

// executeFiltered returns only if it fails.
func executeFiltered(program string) error {
	runtime.LockOSThread() // the filter applies to this thread, which executes the program
	const number, firstArgument = 0, 16
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_CLOCK_GETTIME, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: firstArgument},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.CLOCK_REALTIME, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	compiled := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&compiled)))
	if errno != 0 {
		return fmt.Errorf("install the filter: %w", errno)
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(listener)), nil, 0); err != nil {
		return fmt.Errorf("send the listener: %w", err)
	}
	unix.CloseOnExec(3)
	environment := os.Environ()
	for i, variable := range environment {
		if strings.HasPrefix(variable, clockProgram+"=") {
			environment = append(environment[:i:i], environment[i+1:]...)
			break
		}
	}
	return unix.Exec(program, append([]string{program}, os.Args[1:]...), environment)
}

// jumpyClock is the time of day of a process and its children.
type jumpyClock struct {
	offset atomic.Int64 // nanoseconds
	asked  atomic.Int64
}

// jump sets the clock to the real time plus d.
func (c *jumpyClock) jump(d time.Duration) { c.offset.Store(int64(d)) }

// notification and response are the kernel's struct seccomp_notif and
// seccomp_notif_resp.
type notification struct {
	id         uint64
	pid, flags uint32
	number     int32
	arch       uint32
	ip         uint64
	arguments  [6]uint64
}

type response struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

// The requests of a listener, from linux/seccomp.h.
const (
	receiveNotification = 0xc0502100
	sendResponse        = 0xc0182101
)

// answer answers until every process under the filter has ended.
func (c *jumpyClock) answer(listener int) {
	for {
		ready := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(ready, -1); errors.Is(err, unix.EINTR) {
			continue
		}
		if ready[0].Revents&unix.POLLIN == 0 {
			return
		}
		var asked notification
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), receiveNotification, uintptr(unsafe.Pointer(&asked))); errno != 0 {
			continue // the asking process has ended
		}
		reply := response{id: asked.id}
		if err := c.writeTime(asked); err != nil {
			reply.err = -int32(unix.EFAULT)
		}
		// The process may have ended.
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), sendResponse, uintptr(unsafe.Pointer(&reply)))
	}
}

// writeTime writes the time to the address that a process passed.
func (c *jumpyClock) writeTime(asked notification) error {
	c.asked.Add(1)
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", asked.pid), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = memory.Close() }()
	now := time.Now().Add(time.Duration(c.offset.Load()))
	timespec := binary.NativeEndian.AppendUint64(nil, uint64(now.Unix()))
	timespec = binary.NativeEndian.AppendUint64(timespec, uint64(now.Nanosecond()))
	_, err = memory.WriteAt(timespec, int64(asked.arguments[1]))
	return err
}

// tryUnderClock starts a serve as try does, under a clock that the test moves.
func tryUnderClock(t *testing.T, redisURL, disk string, arguments ...string) (*tried, *jumpyClock) {
	t.Helper()
	if runtime.GOARCH != "amd64" || os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can replace the clock of another process, and only on amd64")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "clock")
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := tryCommand(redisURL, disk, arguments...)
	command.Env = append(command.Env, clockProgram+"="+withoutVDSO(t))
	command.Path, command.ExtraFiles = executable, []*os.File{theirs}
	clock := &jumpyClock{}
	var answering sync.WaitGroup
	answering.Go(func() {
		defer func() { _ = unix.Close(pair[0]) }()
		listener, err := receiveDescriptor(pair[0])
		if err != nil {
			t.Errorf("no listener arrived: %v", err)
			return
		}
		defer func() { _ = unix.Close(listener) }()
		clock.answer(listener)
	})
	t.Cleanup(answering.Wait) // after the process has been killed
	s := tryWith(t, redisURL, disk, command)
	_ = theirs.Close()
	return s, clock
}

func receiveDescriptor(socket int) (int, error) {
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return 0, fmt.Errorf("%d messages: %w", len(messages), err)
	}
	descriptors, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return descriptors[0], nil
}

// withoutVDSO returns a copy of the built binary that reads the time with system calls.
func withoutVDSO(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile(sidecartest.Program("kizen-sidecar"))
	if err != nil {
		t.Fatal(err)
	}
	name, none := []byte("__vdso_clock_gettime"), []byte("__vdso_clock_no_time")
	if !bytes.Contains(program, name) {
		t.Fatal("this binary does not use the vDSO; adapt this test")
	}
	copied := filepath.Join(t.TempDir(), "kizen-sidecar")
	if err := os.WriteFile(copied, bytes.ReplaceAll(program, name, none), 0o755); err != nil {
		t.Fatal(err)
	}
	return copied
}

// keyedGateAPI is a gateAPI that records the keys that it receives, and the account of each.
type keyedGateAPI struct {
	*gateAPI
	front *httptest.Server
	mu    sync.Mutex
	keys  map[string]bool
	whose []string // BUSINESS/USER of each call
}

func newKeyedGateAPI(t *testing.T) *keyedGateAPI {
	api := &keyedGateAPI{gateAPI: newGateAPI(t), keys: map[string]bool{}}
	api.front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		api.mu.Lock()
		api.keys[r.Header.Get("X-API-KEY")] = true
		api.whose = append(api.whose, r.Header.Get("X-BUSINESS-ID")+"/"+r.Header.Get("X-USER-ID"))
		api.mu.Unlock()
		api.Config.Handler.ServeHTTP(w, r)
	}))
	t.Cleanup(api.front.Close)
	t.Cleanup(api.open)
	return api
}

func (a *keyedGateAPI) root() string { return a.front.URL + apiRootPath }

// businesses returns the account of each call, as BUSINESS/USER.
func (a *keyedGateAPI) businesses() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.whose)
}

// requireLifetimes checks that no key has a longer lifetime than the given one.
func (a *keyedGateAPI) requireLifetimes(t *testing.T, longest time.Duration) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for key := range a.keys {
		var claims jwt.RegisteredClaims
		if _, _, err := jwt.NewParser().ParseUnverified(key, &claims); err != nil {
			t.Errorf("not a key: %v", err)
			continue
		}
		if lifetime := claims.ExpiresAt.Sub(claims.IssuedAt.Time); lifetime <= 0 || lifetime > longest {
			t.Errorf("a key has the lifetime %s", lifetime)
		}
	}
}

// TestTortureServeOutlivesJumpsOfItsClock: the time of day jumps by an hour while one step runs, one waits, and a
// third is about to exceed its limit.
func TestTortureServeOutlivesJumpsOfItsClock(t *testing.T) {
	for name, jump := range map[string]time.Duration{"an hour ahead": time.Hour, "an hour back": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			redisURL := startRedisServer(t)
			api := newKeyedGateAPI(t)
			s, clock := tryUnderClock(t, redisURL, t.TempDir(), "--api-root", api.root(), "--warm", "0", "--slots", "2",
				"--queue-timeout", "50s", "--timeout", "50s")
			s.settle(2)
			submit := func(id string, body step) answer {
				t.Helper()
				got := s.ask("POST", "/executions", body.with("execution_id", id))
				if got.status != 202 {
					t.Fatalf("%s: %d %s", id, got.status, got.body)
				}
				return got
			}
			runs := script("kizen.api.get('/gate')\noutputs.log(kizen.api.get('/x').status_code)")
			submit("runs", runs)
			submit("too-long", script("kizen.api.get('/gate')\nwhile True: pass").with("timeout_ms", 3000))
			waitFor(t, func() bool { return api.waiting.Load() == 2 })
			submit("waits", script("outputs.log(kizen.api.get('/x').status_code)"))

			clock.jump(jump)
			if ended := s.events("too-long").until("finished"); !strings.Contains(ended, `"outcome":"timeout"`) {
				t.Errorf("the one that takes too long finished with %s", ended)
			}
			if ended := s.events("waits").until("finished"); !strings.Contains(ended, `"outcome":"ok"`) {
				t.Errorf("the one that waits finished with %s", ended)
			}
			if records := recordsIn(t, redisURL); len(records) != 1 {
				t.Errorf("the key of the one that runs: %v", records)
			}
			submit("later", script("outputs.log(kizen.api.get('/x').status_code)"))
			if ended := s.events("later").until("finished"); !strings.Contains(ended, `"outcome":"ok"`) {
				t.Errorf("a later one finished with %s", ended)
			}
			api.open()
			if ended := s.events("runs").until("finished"); !strings.Contains(ended, `"outcome":"ok"`) {
				t.Errorf("the one that runs finished with %s", ended)
			}
			if again := submit("runs", runs); !strings.Contains(again.body, `"state":"finished"`) {
				t.Errorf("the same one again: %s", again.body)
			}
			for _, id := range []string{"runs", "waits", "later", "too-long"} {
				requireSaneTimes(t, s.ask("GET", "/executions/"+id, nil).body)
			}
			requireJumped(t, s.ask("GET", "/executions/later", nil).body, jump)
			// The step's limit, the grace of its key, rounding, and the time by which a key is backdated.
			api.requireLifetimes(t, 66*time.Second+minter.DefaultLeeway)
			s.requireWell()
			if status, body := s.Readiness(); status != 200 {
				t.Errorf("ready: %d %s", status, body)
			}
			clock.jump(0)
			if code := s.Stop(); code != exitOK {
				t.Errorf("exit code %d", code)
			}
			if clock.asked.Load() == 0 {
				t.Error("no process read the clock")
			}
		})
	}
}

// requireJumped checks that the times of an execution follow the clock that jumped. Otherwise the test would test
// nothing.
func requireJumped(t *testing.T, shown string, jump time.Duration) {
	t.Helper()
	var e struct {
		Queued time.Time `json:"queued_at"`
	}
	if err := json.Unmarshal([]byte(shown), &e); err != nil {
		t.Fatal(err)
	}
	if off := time.Until(e.Queued) - jump; off.Abs() > 10*time.Minute {
		t.Errorf("queued at %s, which is %s from the clock", e.Queued, off)
	}
}

// requireSaneTimes checks that no reported duration is negative or an hour long.
func requireSaneTimes(t *testing.T, shown string) {
	t.Helper()
	var e struct {
		Phases map[string]float64 `json:"phases"`
		Result struct {
			Duration float64 `json:"duration_ms"`
		} `json:"result"`
	}
	if err := json.Unmarshal([]byte(shown), &e); err != nil || len(e.Phases) == 0 {
		t.Fatalf("%v: %s", err, shown)
	}
	e.Phases["duration_ms"] = e.Result.Duration
	for phase, took := range e.Phases {
		if took < 0 || took > 120_000 {
			t.Errorf("%s is %v ms: %s", phase, took, shown)
		}
	}
}
