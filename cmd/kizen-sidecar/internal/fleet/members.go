package fleet

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// members says which workers live. Each has a key that it renews three times in its life:
//
//	kizen:fleet:{QUEUE}:worker:ID   there while the worker lives
//	kizen:fleet:{QUEUE}:workers     the ids of all that have work that may have to be taken over
//
// A worker is dead when its key has been gone for another lease, without an error of Redis in between: when Redis comes back
// after a while every key has expired, and those who live show it first.
type members struct {
	redis redis.UniversalClient
	queue string
	id    string
	lease time.Duration
	log   *slog.Logger

	mu      sync.Mutex
	missing map[string]time.Time // since when a worker has been missed
}

// forgetAfter bounds how long a dead worker is remembered.
const forgetAfter = time.Hour

func (m *members) allKey() string { return "kizen:fleet:{" + m.queue + "}:workers" }

func (m *members) key(id string) string { return "kizen:fleet:{" + m.queue + "}:worker:" + id }

// join makes this worker one of the living; it is done before it takes any work.
func (m *members) join(ctx context.Context) error {
	pipe := m.redis.Pipeline()
	pipe.SAdd(ctx, m.allKey(), m.id)
	pipe.Set(ctx, m.key(m.id), "1", m.lease)
	_, err := pipe.Exec(ctx)
	m.heard(err)
	return err
}

// leave is join undone, when there is no work left.
func (m *members) leave(ctx context.Context) error {
	pipe := m.redis.Pipeline()
	pipe.SRem(ctx, m.allKey(), m.id)
	pipe.Del(ctx, m.key(m.id))
	_, err := pipe.Exec(ctx)
	return err
}

// keep renews the membership until ctx ends, and calls bury with each of the others that is dead, until it returns no error.
func (m *members) keep(ctx context.Context, bury func(ctx context.Context, id string) error) {
	ticker := time.NewTicker(m.lease / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := m.join(ctx); err != nil {
			m.log.Warn("this worker cannot show that it lives", "error", err)
			continue
		}
		for _, id := range m.deceased(ctx) {
			m.log.Warn("a worker has died; its work is taken over", "worker", id)
			if err := bury(ctx, id); err != nil {
				m.log.Error("the work of a dead worker could not be taken over; it is tried again", "worker", id, "error", err)
				continue
			}
			if err := m.redis.SRem(ctx, m.allKey(), id).Err(); err != nil {
				m.log.Warn("a dead worker could not be forgotten; it is tried again", "worker", id, "error", err)
			}
		}
	}
}

// deceased returns the workers that are dead and not buried.
func (m *members) deceased(ctx context.Context) []string {
	ids, err := m.redis.SMembers(ctx, m.allKey()).Result()
	if err != nil || len(ids) == 0 {
		m.heard(err)
		return nil
	}
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = m.key(id)
	}
	values, err := m.redis.MGet(ctx, keys...).Result()
	if m.heard(err); err != nil {
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

// dead reports whether a worker is known to be dead.
func (m *members) dead(ctx context.Context, id string) (bool, error) {
	if id == m.id {
		return false, nil
	}
	n, err := m.redis.Exists(ctx, m.key(id)).Result()
	if m.heard(err); err != nil {
		return false, err
	}
	return m.judge(id, n == 1), nil
}

// judge weighs whether the key of a worker is there.
func (m *members) judge(id string, there bool) (dead bool) {
	if id == m.id {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for other, since := range m.missing {
		if now.Sub(since) > forgetAfter {
			delete(m.missing, other)
		}
	}
	if there {
		delete(m.missing, id)
		return false
	}
	since, missed := m.missing[id]
	if !missed {
		m.missing[id] = now
		return false
	}
	return now.Sub(since) >= m.lease
}

// heard begins all over again after an error: nobody could have renewed a key meanwhile.
func (m *members) heard(err error) {
	if err == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.missing)
}
