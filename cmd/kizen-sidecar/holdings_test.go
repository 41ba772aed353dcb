package main

import (
	"context"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// tried is a serve in which a test provokes a fault. Afterwards it must not hold more resources than before.
type tried struct {
	*served
	store  *redis.Client
	disk   string // its temporary directory, and its cache's
	before holdings
}

// holdings are the resources of a process that could leak.
type holdings struct {
	goroutines int
	files      []string // open files, except connections to Redis, which are pooled
	pooled     int      // connections to Redis
	processes  []int    // its descendants
	disk       []string // files and directories of its temporary directory
	keys       []string // in its Redis, which only it uses
}

// redisPool is the maximum number of connections that go-redis keeps.
const redisPool = 64

// try starts a serve with its own Redis and its own disk.
func try(t *testing.T, redisURL, disk string, arguments ...string) *tried {
	t.Helper()
	return tryWith(t, redisURL, disk, tryCommand(redisURL, disk, arguments...))
}

func tryCommand(redisURL, disk string, arguments ...string) *exec.Cmd {
	arguments = append([]string{"serve", "--listen", "127.0.0.1:0", "--redis-url", redisURL}, arguments...)
	return sidecartest.Command(context.Background(), []string{"TMPDIR=" + disk, "XDG_CACHE_HOME=" + disk}, arguments...)
}

func tryWith(t *testing.T, redisURL, disk string, command *exec.Cmd) *tried {
	t.Helper()
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	store := redis.NewClient(options)
	t.Cleanup(func() { _ = store.Close() })
	return &tried{served: &served{sidecartest.StartCommand(t, command), t}, store: store, disk: disk}
}

// settle records what the serve holds, after steps have run in every slot.
func (s *tried) settle(slots int) *tried {
	s.t.Helper()
	var all sync.WaitGroup
	for range slots {
		all.Go(func() {
			if got, err := s.try(s.t.Context(), "b-1", "POST", "/api/coderunner/run", script("kizen.api.get('/x')")); err != nil || got.status != 200 {
				s.t.Errorf("before the fault: %+v, %v", got, err)
			}
		})
	}
	all.Wait()
	s.Readiness() // publishes a public key, which stays for a while
	s.before = s.steady()
	return s
}

// steady returns the holdings when they have not changed for a while. The number of goroutines is the smallest one
// seen from then on, because goroutines that answer /metrics count themselves, sometimes one more than before.
func (s *tried) steady() holdings {
	s.t.Helper()
	http.DefaultClient.CloseIdleConnections() // each holds a goroutine and a descriptor of the server
	var last holdings
	same, fewest := 0, math.MaxInt
	waitFor(s.t, func() bool {
		now := s.holdings()
		counted := now.goroutines
		if now.goroutines = 0; !reflect.DeepEqual(now, last) {
			last, same, fewest = now, 0, math.MaxInt
			return false
		}
		if same++; same > 20 {
			fewest = min(fewest, counted)
		}
		return same == 40
	})
	last.goroutines = fewest
	return last
}

// requireWell checks that a fault has left nothing behind, and that the next executions succeed.
func (s *tried) requireWell() {
	s.t.Helper()
	if got := s.ask("POST", "/api/coderunner/run", script("outputs.log(1)")); got.status != 200 {
		s.t.Errorf("after the fault: %d %s", got.status, got.body)
	}
	s.requireNothingLeft()
}

// requireNothingLeft waits until it holds no more than before.
func (s *tried) requireNothingLeft() {
	s.t.Helper()
	http.DefaultClient.CloseIdleConnections()
	var left []string
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if left = s.holdings().beyond(s.before); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			return
		}
	}
}

// beyond returns what h has in addition to before.
func (h holdings) beyond(before holdings) (more []string) {
	if h.goroutines > before.goroutines {
		more = append(more, fmt.Sprintf("%d goroutines, and %d before", h.goroutines, before.goroutines))
	}
	if h.pooled > redisPool {
		more = append(more, fmt.Sprintf("%d connections to redis", h.pooled))
	}
	if len(h.files) > len(before.files) {
		more = append(more, fmt.Sprintf("open files %q, and %q before", h.files, before.files))
	}
	if len(h.processes) > len(before.processes) {
		more = append(more, fmt.Sprintf("processes %v, and %v before", h.processes, before.processes))
	}
	for what, pair := range map[string][2][]string{"file": {h.disk, before.disk}, "redis key": {h.keys, before.keys}} {
		for _, name := range pair[0] {
			if !slices.Contains(pair[1], name) {
				more = append(more, what+" "+name)
			}
		}
	}
	return more
}

func (s *tried) holdings() holdings {
	s.t.Helper()
	h := holdings{processes: sidecartest.Descendants(s.Process.Pid)}
	goroutines, _ := s.metric("go_goroutines")
	h.goroutines = int(goroutines)
	h.files, h.pooled = s.openFiles()
	_ = filepath.WalkDir(s.disk, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != s.disk {
			h.disk = append(h.disk, path)
		}
		return nil // a file that vanishes meanwhile has not leaked
	})
	keys, err := s.store.Keys(s.t.Context(), "*").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	// The tombstone that prevents an id from running again stays for a week.
	keys = slices.DeleteFunc(keys, func(key string) bool { return strings.Contains(key, ":ran:") })
	slices.Sort(keys)
	h.keys = keys
	return h
}

// openFiles returns the descriptors of the process without its connections to its Redis, and the number of these.
func (s *tried) openFiles() (files []string, pooled int) {
	s.t.Helper()
	directory := fmt.Sprintf("/proc/%d/fd", s.Process.Pid)
	entries, err := os.ReadDir(directory)
	if err != nil {
		s.t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(s.store.Options().Addr)
	if err != nil {
		s.t.Fatal(err)
	}
	toRedis := socketsTo(s.t, s.Process.Pid, port)
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(directory, entry.Name()))
		switch {
		case err != nil: // closed meanwhile
		case toRedis[target]:
			pooled++
		default:
			files = append(files, target)
		}
	}
	slices.Sort(files)
	return files, pooled
}

// socketsTo returns the sockets of a process's network that are connected to a port.
func socketsTo(t *testing.T, pid int, port string) map[string]bool {
	t.Helper()
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		t.Fatal(err)
	}
	sockets := map[string]bool{}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 9 && strings.HasSuffix(fields[2], fmt.Sprintf(":%04X", number)) {
			sockets["socket:["+fields[9]+"]"] = true
		}
	}
	return sockets
}
