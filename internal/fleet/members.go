package fleet

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// members tracks which workers are alive. Each worker renews its key three times per lease, in a loop that does
// nothing else:
//
//	kizen:fleet:{QUEUE}:worker:ID   exists while the worker lives; its version, see [wire.Version]
//	kizen:fleet:{QUEUE}:workers     the ids of all workers that may have tasks
//	kizen:fleet:{QUEUE}:keeper      the id of the one worker that watches over the others
//	kizen:fleet:{QUEUE}:dead:ID     the worker was declared dead, and may not return under this id
//
// The keeper declares a worker dead when its key has been missing for a whole lease, without an error of Redis in
// between. That is two leases after the last renewal. A worker that could not renew for one lease ends its [term]
// before that.
type members struct {
	redis redis.UniversalClient
	queue string
	lease time.Duration
	log   *slog.Logger

	term   atomic.Pointer[term]
	keeper atomic.Bool

	mu      sync.Mutex
	missing map[string]time.Time // when the keeper first missed the key of each worker
}

// term is a period during which a worker renewed its membership at least once per lease. Each term has its own id.
type term struct {
	id    string
	lease time.Duration
	ctx   context.Context // ends with the term
	end   context.CancelCauseFunc
	// renewed is when the most recent successful renewal was sent.
	renewed atomic.Pointer[time.Time]
	fence   *time.Timer
}

// errFenced ends the steps of a worker that could not renew for a lease, because others may soon take them over.
var errFenced = errors.New("the worker could not reach Redis for one --lease, so it ended the step before another worker may take it over")

// deadLimit is how long the fleet remembers a dead worker: as long as a record may name it.
const deadLimit = unfinishedLimit

func (m *members) allKey() string { return "kizen:fleet:{" + m.queue + "}:workers" }

func (m *members) key(id string) string { return "kizen:fleet:{" + m.queue + "}:worker:" + id }

func (m *members) deadKey(id string) string { return "kizen:fleet:{" + m.queue + "}:dead:" + id }

func (m *members) keeperKey() string { return "kizen:fleet:{" + m.queue + "}:keeper" }

// newTerm returns a term that has not begun.
func newTerm(lease time.Duration) *term {
	host, _ := os.Hostname() // the name is unique without it
	t := &term{id: host + ":" + uuid.NewString(), lease: lease}
	t.ctx, t.end = context.WithCancelCause(context.Background())
	return t
}

// check returns errFenced if no renewal has succeeded for a lease. It compares clock times, so it works from the first
// instruction after the process was suspended.
func (t *term) check() error {
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	if renewed := t.renewed.Load(); renewed == nil || time.Since(*renewed) >= t.lease {
		t.end(errFenced)
		return errFenced
	}
	return nil
}

// current returns the term for new work, or nil while the worker cannot reach Redis.
func (m *members) current() *term {
	t := m.term.Load()
	if t == nil || t.check() != nil {
		return nil
	}
	return t
}

var renewScript = redis.NewScript(`
if redis.call('EXISTS', KEYS[3]) == 1 then return -1 end
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2])
local keeper = redis.call('GET', KEYS[4])
if keeper and keeper ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[2])
return 1`)

// join renews the membership, or begins a new term if the last one has ended. The worker calls it before it takes any
// work.
func (m *members) join(ctx context.Context) error {
	t := m.current()
	if t == nil {
		t = newTerm(m.lease)
	}
	sent := time.Now()
	keys := []string{m.allKey(), m.key(t.id), m.deadKey(t.id), m.keeperKey()}
	limited, cancel := context.WithTimeout(ctx, max(m.lease, time.Second))
	defer cancel()
	answer, err := renewScript.Run(limited, m.redis, keys, t.id, m.lease.Milliseconds(), wire.Version).Int()
	if err != nil {
		m.resetOnError(err)
		return err
	}
	if answer < 0 { // declared dead: the next call begins a new term
		t.end(errFenced)
		return m.join(ctx)
	}
	if t.renewed.Swap(&sent) == nil {
		t.fence = time.AfterFunc(m.lease, routine.Safe(func() { _ = t.check() }))
		m.term.Store(t)
	}
	t.fence.Reset(time.Until(sent.Add(m.lease)))
	if m.keeper.Swap(answer == 1) != (answer == 1) {
		m.resetOnError(errors.New("another worker was the keeper"))
	}
	return nil
}

// leave removes a worker without work from the fleet.
func (m *members) leave(ctx context.Context) error {
	t := m.term.Load()
	if t == nil {
		return nil
	}
	t.fence.Stop()
	t.end(errDraining)
	pipe := m.redis.Pipeline()
	pipe.SRem(ctx, m.allKey(), t.id)
	pipe.Del(ctx, m.key(t.id))
	if m.keeper.Load() {
		pipe.Del(ctx, m.keeperKey())
	}
	_, err := pipe.Exec(ctx)
	return err
}

// renew keeps the membership alive until ctx ends. After each successful renewal it calls after.
func (m *members) renew(ctx context.Context, after func(context.Context)) {
	every(ctx, m.lease/3, func() {
		if err := m.join(ctx); err != nil {
			m.log.Warn("this worker could not renew its lease", "error", err)
			return
		}
		after(ctx)
	})
}

// every calls do at an interval until ctx ends.
func every(ctx context.Context, interval time.Duration, do func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			do()
		}
	}
}

// deadWorkers returns the dead workers whose work has not been taken over. Only the keeper calls it.
func (m *members) deadWorkers(ctx context.Context) []string {
	ids, err := m.redis.SMembers(ctx, m.allKey()).Result()
	if err != nil || len(ids) == 0 {
		m.resetOnError(err)
		return nil
	}
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = m.key(id)
	}
	values, err := m.redis.MGet(ctx, keys...).Result()
	if m.resetOnError(err); err != nil {
		return nil
	}
	var dead []string
	for i, id := range ids {
		if m.judge(id, values[i] != nil) {
			dead = append(dead, id)
		}
	}
	return dead
}

// newer reports whether any live worker has a newer version than this one.
func (m *members) newer(ctx context.Context) (bool, error) {
	ids, err := m.redis.SMembers(ctx, m.allKey()).Result()
	if err != nil || len(ids) == 0 {
		return false, err
	}
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = m.key(id)
	}
	versions, err := m.redis.MGet(ctx, keys...).Result()
	return slices.ContainsFunc(versions, func(version any) bool {
		text, lives := version.(string)
		return lives && newer(text)
	}), err
}

// judge records whether the key of a worker exists, and reports whether the worker is dead.
func (m *members) judge(id string, exists bool) (dead bool) {
	if t := m.current(); t != nil && t.id == id {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if exists {
		delete(m.missing, id)
		return false
	}
	since, missed := m.missing[id]
	if !missed {
		m.missing[id] = time.Now()
		return false
	}
	return time.Since(since) >= m.lease
}

// resetOnError forgets all missing keys after an error, because no worker could renew while Redis was unreachable.
func (m *members) resetOnError(err error) {
	if err == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.missing)
}

var declareScript = redis.NewScript(`
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('SET', KEYS[2], '1', 'PX', ARGV[1])
return 1`)

// declareDead prevents a worker from returning under its id. It returns false if the worker has renewed in the
// meantime.
func (m *members) declareDead(ctx context.Context, id string) (bool, error) {
	return declareScript.Run(ctx, m.redis, []string{m.key(id), m.deadKey(id)}, deadLimit.Milliseconds()).Bool()
}

// forget removes a dead worker whose work has been taken over.
func (m *members) forget(ctx context.Context, id string) error {
	m.mu.Lock()
	delete(m.missing, id)
	m.mu.Unlock()
	return m.redis.SRem(ctx, m.allKey(), id).Err()
}

var deadScript = redis.NewScript(`
if redis.call('EXISTS', KEYS[3]) == 1 then return 1 end
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SADD', KEYS[1], ARGV[1]) end
return 0`)

// dead reports whether a worker was declared dead. If Redis has lost the worker, dead adds it to the list again, for
// the keeper to check.
func (m *members) dead(ctx context.Context, id string) (bool, error) {
	return deadScript.Run(ctx, m.redis, []string{m.allKey(), m.key(id), m.deadKey(id)}, id).Bool()
}
