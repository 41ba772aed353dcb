package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisRun detects that Redis was restarted, or replaced by its replica, and may have lost its last writes.
// Connections do not survive a restart, so redisRun reads the run id of Redis only after a new connection was made.
//
// When the run id has changed, every worker writes its state again, and starts nothing for one lease. So if the
// restart has requeued an execution that a live worker has run, its record is started or finished again before another
// worker can start it. The fleet remembers the run id in kizen:fleet:{QUEUE}:redis-run, so that a worker that starts
// after the restart waits too.
type redisRun struct {
	redis redis.UniversalClient
	queue string
	lease time.Duration
	log   *slog.Logger

	dials atomic.Int64

	mu       sync.Mutex
	known    string
	verified int64     // the number of dials when known was last read
	resume   time.Time // no execution starts before this
	lost     bool      // Redis may lack state that this worker has
	denied   bool
}

func newRedisRun(config Config) *redisRun {
	r := &redisRun{redis: config.Redis, queue: config.Queue, lease: config.Lease, log: config.Log, verified: -1}
	config.Redis.AddHook(dialHook{&r.dials})
	return r
}

// dialHook counts connections.
type dialHook struct{ dials *atomic.Int64 }

func (h dialHook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		h.dials.Add(1)
		return next(ctx, network, address)
	}
}

func (dialHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (dialHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (r *redisRun) key() string { return "kizen:fleet:{" + r.queue + "}:redis-run" }

// id returns the run id of the server, or of all masters of a cluster.
func (r *redisRun) id(ctx context.Context) (string, error) {
	cluster, ok := r.redis.(*redis.ClusterClient)
	if !ok {
		return runOf(ctx, r.redis)
	}
	var mu sync.Mutex
	var all []string
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		id, err := runOf(ctx, node)
		mu.Lock()
		defer mu.Unlock()
		all = append(all, id)
		return err
	})
	slices.Sort(all)
	return strings.Join(all, " "), err
}

func runOf(ctx context.Context, node redis.Cmdable) (string, error) {
	info, err := node.Info(ctx, "server").Result()
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(info) {
		if id, found := strings.CutPrefix(line, "run_id:"); found {
			return strings.TrimSpace(id), nil
		}
	}
	return "", errors.New("INFO names no run_id")
}

// check reports whether the run id differs from the one of the last check.
func (r *redisRun) check(ctx context.Context) (changed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	dials := r.dials.Load()
	_, cluster := r.redis.(*redis.ClusterClient)
	if r.denied || dials == r.verified && !cluster {
		return false, nil
	}
	id, err := r.id(ctx)
	if redis.HasErrorPrefix(err, "NOPERM") {
		r.denied = true
		r.log.Warn("the Redis user may not use INFO, so a loss of Redis's last writes goes unnoticed; grant +info to the user")
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the run id of Redis: %w", err)
	}
	r.verified = dials
	changed = r.known != "" && r.known != id
	r.known = id
	if changed {
		r.lost = true
		r.pause()
	}
	return changed, nil
}

// checkFor does what check does, before the code of an execution starts. In a Cluster it asks only the master of the
// execution's record: the other masters do not matter, and may be unreachable.
func (r *redisRun) checkFor(ctx context.Context, record string) (changed bool, err error) {
	cluster, ok := r.redis.(*redis.ClusterClient)
	if !ok {
		return r.check(ctx)
	}
	node, err := cluster.MasterForKey(ctx, record)
	if err != nil {
		return false, fmt.Errorf("find the master of a record: %w", err)
	}
	r.mu.Lock()
	known, denied := strings.Fields(r.known), r.denied
	r.mu.Unlock()
	if denied {
		return false, nil
	}
	if id, err := runOf(ctx, node); err == nil && slices.Contains(known, id) {
		return false, nil
	}
	return r.check(ctx)
}

// takeLoss reports, once for each loss, that Redis may lack state that this worker has, whichever call of check
// detected it.
func (r *redisRun) takeLoss() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	lost := r.lost
	r.lost = false
	return lost
}

// markLost records that Redis still lacks state that this worker has.
func (r *redisRun) markLost() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = true
}

// pause prevents starts for a lease.
func (r *redisRun) pause() {
	r.resume = time.Now().Add(r.lease)
	r.log.Warn("Redis was restarted or replaced and may have lost its last writes; no execution starts until every worker has written its state again",
		"pause", r.lease.String())
}

// join compares the run id with the one that the fleet remembers.
func (r *redisRun) join(ctx context.Context) error {
	if _, err := r.check(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.denied {
		return nil
	}
	last, err := r.redis.Get(ctx, r.key()).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return r.redis.SetNX(ctx, r.key(), r.known, 0).Err()
	case err != nil:
		return err
	case last != r.known:
		r.pause()
	}
	return nil
}

// wait returns when executions may start. After a pause it stores the run id for the fleet.
func (r *redisRun) wait(ctx context.Context) error {
	r.mu.Lock()
	resume, known := r.resume, r.known
	r.mu.Unlock()
	if resume.IsZero() {
		return nil
	}
	timer := time.NewTimer(time.Until(resume))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
	}
	if err := r.redis.Set(ctx, r.key(), known, 0).Err(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.resume.Equal(resume) {
		r.resume = time.Time{}
	}
	return nil
}

// The bounds on the finished executions that a worker remembers: far more than Redis loses with appendfsync everysec.
const (
	recallFor   = time.Minute
	recallBytes = 64 << 20
)

// recall remembers the attempts that run on this worker, and those that finished in the last minute, by the owner of
// the record.
type recall struct {
	mu       sync.Mutex
	running  map[string]*attempt
	finished map[string]*finishedAttempt
	order    []*finishedAttempt // oldest first
	bytes    int
}

// finishedAttempt is an attempt and how it ended.
type finishedAttempt struct {
	subject
	ending
}

func newRecall() *recall {
	return &recall{running: map[string]*attempt{}, finished: map[string]*finishedAttempt{}}
}

func (r *recall) begin(a *attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running[a.owner] = a
}

func (r *recall) runs(owner string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running[owner] != nil
}

// of returns this worker's attempt at an execution; nil if it has none.
func (r *recall) of(business, id string) *attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.running {
		if a.business == business && a.id == id {
			return a
		}
	}
	return nil
}

// end removes an attempt that was given back.
func (r *recall) end(a *attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, a.owner)
}

// finish remembers how an attempt ended, and forgets attempts that are older than recallFor or too many.
func (r *recall) finish(s subject, e ending) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done := &finishedAttempt{s, e}
	r.finished[s.owner] = done
	r.order = append(r.order, done)
	r.bytes += len(e.result)
	for len(r.order) > 0 && (r.bytes > recallBytes || time.Since(r.order[0].at) > recallFor) {
		r.bytes -= len(r.order[0].result)
		delete(r.finished, r.order[0].owner)
		r.order = r.order[1:]
	}
}

// ended returns how an attempt of this worker ended, or nil if the worker no longer remembers it.
func (r *recall) ended(owner string) *finishedAttempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.finished[owner]
}

// all returns the attempts that have begun a step's code and still run, and those that have finished.
func (r *recall) all() (running []*attempt, finished []*finishedAttempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.running {
		if a.begun.Load() {
			running = append(running, a)
		}
	}
	return running, append(finished, r.order...)
}

// mayStart reports whether executions may start.
func (r *redisRun) mayStart() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resume.IsZero()
}
