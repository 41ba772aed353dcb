package fleet

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// held is the index of the tasks of one queue that this worker has, under kizen:fleet:{QUEUE}:held:WORKER. The worker that takes over
// from a dead worker reads this index, and never all active tasks. A task stays in it until asynq has written down its end.
type held struct {
	redis redis.UniversalClient
	queue string // asynq's name of it

	mu sync.Mutex
	// terms are the tasks by the term that took them, with the number of handlers that have the task now.
	terms map[string]map[string]int
}

func newHeld(client redis.UniversalClient, queue string) *held {
	return &held{redis: client, queue: queue, terms: map[string]map[string]int{}}
}

func (h *held) key(worker string) string { return "kizen:fleet:{" + h.queue + "}:held:" + worker }

// add writes down that a worker has a task.
func (h *held) add(ctx context.Context, worker, task string) error {
	h.mu.Lock()
	if h.terms[worker] == nil {
		h.terms[worker] = map[string]int{}
	}
	h.terms[worker][task]++
	h.mu.Unlock()
	return h.redis.SAdd(ctx, h.key(worker), task).Err()
}

// returned notes that the handler of a task is done with it.
func (h *held) returned(worker, task string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.terms[worker][task] > 0 {
		h.terms[worker][task]--
	}
}

// tasks are those of a term whose handler runs, or whose handler has returned.
func (h *held) tasks(worker string, running bool) (tasks []any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for task, handlers := range h.terms[worker] {
		if handlers > 0 == running {
			tasks = append(tasks, task)
		}
	}
	return tasks
}

// known are the terms that this worker holds tasks of.
func (h *held) known() (workers []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for worker := range h.terms {
		workers = append(workers, worker)
	}
	return workers
}

// requeueScript returns tasks to the head of their queue. It works on asynq's keys as asynq's own Requeue does, which only the
// server that holds the lease can call. A task that is not active has been concluded. Unless the mode is "any", neither is an
// active task touched whose lease runs: somebody has it. It returns the tasks that it left.
var requeueScript = redis.NewScript(`
local left = {}
for i = 5, #ARGV do
  local id, task = ARGV[i], ARGV[1] .. ARGV[i]
  local keep = false
  if redis.call('HGET', task, 'state') == 'active' then
    local lease = redis.call('ZSCORE', KEYS[2], id)
    if ARGV[4] == 'any' or not lease or tonumber(lease) < tonumber(ARGV[2]) then
      redis.call('LREM', KEYS[1], 0, id)
      redis.call('ZREM', KEYS[2], id)
      redis.call('RPUSH', KEYS[3], id)
      redis.call('HSET', task, 'state', 'pending', 'pending_since', ARGV[3])
    else
      keep = true
    end
  end
  if keep then table.insert(left, id) else redis.call('SREM', KEYS[4], id) end
end
return left`)

// Modes of requeue.
const (
	requeueAny      = "any"      // of a dead worker
	requeueUnleased = "unleased" // only what asynq has lost
)

// atOnce bounds the tasks that one script handles.
const atOnce = 100

func (h *held) requeue(ctx context.Context, worker, mode string, tasks []any) (left []string, err error) {
	asynqKey := func(name string) string { return "asynq:{" + h.queue + "}:" + name }
	keys := []string{asynqKey("active"), asynqKey("lease"), asynqKey("pending"), h.key(worker)}
	for len(tasks) > 0 {
		n := min(len(tasks), atOnce)
		now := time.Now()
		arguments := append([]any{asynqKey("t:"), now.Unix(), now.UnixNano(), mode}, tasks[:n]...)
		kept, err := requeueScript.Run(ctx, h.redis, keys, arguments...).StringSlice()
		if err != nil {
			return nil, fmt.Errorf("put tasks of queue %q back: %w", h.queue, err)
		}
		left, tasks = append(left, kept...), tasks[n:]
	}
	return left, nil
}

// reap takes the tasks out of the index that asynq has concluded. A task whose handler has returned but which asynq could not
// conclude, because its lease was lost, goes back to the queue, where the next delivery finds the execution finished.
func (h *held) reap(ctx context.Context) error {
	for _, worker := range h.known() {
		tasks := h.tasks(worker, false)
		left, err := h.requeue(ctx, worker, requeueUnleased, tasks)
		if err != nil {
			return err
		}
		kept := map[string]bool{}
		for _, task := range left {
			kept[task] = true
		}
		h.mu.Lock()
		for _, task := range tasks {
			id, _ := task.(string)
			if h.terms[worker][id] == 0 && !kept[id] {
				delete(h.terms[worker], id)
			}
		}
		if len(h.terms[worker]) == 0 {
			delete(h.terms, worker)
		}
		h.mu.Unlock()
	}
	return nil
}

// restore writes the index down again, where Redis may have lost it.
func (h *held) restore(ctx context.Context) error {
	for _, worker := range h.known() {
		if tasks := h.tasks(worker, true); len(tasks) > 0 {
			if err := h.redis.SAdd(ctx, h.key(worker), tasks...).Err(); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeOver puts back what a dead worker held. The work is proportional to that.
func (h *held) takeOver(ctx context.Context, dead string) (total int, err error) {
	for {
		ids, err := h.redis.SRandMemberN(ctx, h.key(dead), atOnce).Result()
		if err != nil || len(ids) == 0 {
			return total, err
		}
		if _, err := h.requeue(ctx, dead, requeueAny, anys(ids)); err != nil {
			return total, err
		}
		total += len(ids)
	}
}

func anys(ids []string) []any {
	all := make([]any, len(ids))
	for i, id := range ids {
		all[i] = id
	}
	return all
}

// giveBack puts back what asynq has not concluded when the worker leaves.
func (h *held) giveBack(ctx context.Context) error {
	for _, worker := range h.known() {
		if _, err := h.requeue(ctx, worker, requeueAny, h.tasks(worker, false)); err != nil {
			return err
		}
	}
	return nil
}
