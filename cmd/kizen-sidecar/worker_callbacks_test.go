package main

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"
)

// resetting is a relay to Redis whose connections a test can reset.
type resetting struct {
	net.Listener
	mu      sync.Mutex
	open    map[*net.TCPConn]bool
	all     sync.WaitGroup
	cut     bool         // connections are refused
	answers atomic.Int64 // since the last reset
}

func newResetting(t *testing.T, to string) *resetting {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &resetting{Listener: listener, open: map[*net.TCPConn]bool{}}
	r.all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			r.all.Go(func() { r.relay(conn.(*net.TCPConn), to) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		r.reset()
		r.all.Wait()
	})
	return r
}

func (r *resetting) relay(conn *net.TCPConn, to string) {
	defer func() { _ = conn.Close() }()
	upstream, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer func() { _ = upstream.Close() }()
	r.mu.Lock()
	cut := r.cut
	r.open[conn] = !cut
	r.mu.Unlock()
	if cut {
		return
	}
	go func() {
		_, _ = io.Copy(upstream, conn) // ends when either side does
		_ = upstream.Close()
	}()
	_, _ = io.Copy(countingWriter{conn, &r.answers}, upstream)
	r.mu.Lock()
	delete(r.open, conn)
	r.mu.Unlock()
}

// reset closes every connection at once, with the commands in flight.
func (r *resetting) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for conn := range r.open {
		_ = conn.SetLinger(0)
		_ = conn.Close()
	}
	clear(r.open)
	r.answers.Store(0)
}

// part refuses all connections until mend is called.
func (r *resetting) part() {
	r.mu.Lock()
	r.cut = true
	r.mu.Unlock()
	r.reset()
}

func (r *resetting) mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = false
}

// countingWriter counts the writes to a connection.
type countingWriter struct {
	io.Writer
	writes *atomic.Int64
}

func (w countingWriter) Write(p []byte) (int, error) {
	w.writes.Add(1)
	return w.Writer.Write(p)
}

// TestEveryCallbackIsDeliveredUnderFaults resets the workers' connections to Redis repeatedly, and stops one worker
// until it is declared dead. The receiver refuses each message once.
func TestEveryCallbackIsDeliveredUnderFaults(t *testing.T) {
	t.Parallel()
	const total = 30
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	at, err := url.Parse(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	way := newResetting(t, at.Host)
	api, callbacks := newTally(t, total), newReceiver(t)
	var bodies []step
	for i := range total {
		id := fmt.Sprintf("e-%03d", i)
		bodies = append(bodies, forFleet(id, "kizen.api.post('/ran/"+id+"').raise_for_status()").with("callback_url",
			callbacks.URL+"/hook"))
	}
	var workers []*served
	for range 3 {
		workers = append(workers, startWorker(t, "redis://"+way.Addr().String()+"/0", api.URL+"/api", "--slots", "2"))
	}
	enqueue(t, store, bodies...)
	ended := func() int { return len(endings(t, store)) }
	waitFor(t, func() bool { return ended() >= total/6 })
	victim := workers[0]
	_ = victim.Process.Signal(syscall.SIGSTOP)
	t.Cleanup(func() { _ = victim.Process.Signal(syscall.SIGCONT) })
	for done := ended(); done < total*2/3; {
		waitFor(t, func() bool { return ended() > done })
		done = ended()
		way.reset()
	}
	waitFor(t, func() bool {
		// Resets without time for a heartbeat between them would be an outage, in which no worker may be declared
		// dead.
		if way.answers.Load() > 500 {
			way.reset()
		}
		return strings.Contains(workers[1].Log.String()+workers[2].Log.String(), "a worker has died")
	})
	_ = victim.Process.Signal(syscall.SIGCONT)
	for done := ended(); done < total; {
		waitFor(t, func() bool { return ended() > done })
		done = ended()
	}
	for delivered := callbacks.count(); delivered < total; {
		waitFor(t, func() bool { return callbacks.count() > delivered || t.Failed() })
		delivered = callbacks.count()
	}
	waitFor(t, func() bool { return len(withCallback(t, store, "delivered")) == total })
	for id, outcome := range endings(t, store) {
		if ran := api.ran[id]; ran > 1 || outcome == "ok" && ran != 1 {
			t.Errorf("%s ended %s and ran %d times", id, outcome, ran)
		}
	}
}

// withCallback returns the executions of b-1 whose record has this state of their callback.
func withCallback(t *testing.T, store *redis.Client, state string) (ids []string) {
	t.Helper()
	for _, key := range store.Keys(t.Context(), "kizen:{b-1}:run:*").Val() {
		if store.HGet(t.Context(), key, "callback").Val() == state {
			ids = append(ids, key)
		}
	}
	return ids
}
