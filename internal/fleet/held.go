package fleet

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// held is this worker's index of the tasks that it has from one queue, in kizen:fleet:{QUEUE}:held:WORKER. To requeue
// the tasks of a dead worker, the keeper reads only this index, never the list of all active tasks. A task stays in
// the index until asynq has recorded its end.
type held struct {
	redis redis.UniversalClient
	queue string // asynq's name for it

	mu sync.Mutex
	// terms has the tasks of each term, and for each task the number of handlers that run it now.
	terms map[string]map[string]int
}

func newHeld(client redis.UniversalClient, queue string) *held {
	return &held{redis: client, queue: queue, terms: map[string]map[string]int{}}
}

func (h *held) key(worker string) string { return "kizen:fleet:{" + h.queue + "}:held:" + worker }

// add records that a worker has a task.
func (h *held) add(ctx context.Context, worker, task string) error {
	h.mu.Lock()
	if h.terms[worker] == nil {
		h.terms[worker] = map[string]int{}
	}
	h.terms[worker][task]++
	h.mu.Unlock()
	return h.redis.SAdd(ctx, h.key(worker), task).Err()
}

// returned records that a handler of a task has returned.
func (h *held) returned(worker, task string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.terms[worker][task] > 0 {
		h.terms[worker][task]--
	}
}

// tasks returns the tasks of a term: those whose handler runs, or if running is false, those whose handler has
// returned.
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

// known returns the terms of this worker that have tasks.
func (h *held) known() (workers []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for worker := range h.terms {
		workers = append(workers, worker)
	}
	return workers
}

// requeueScript moves active tasks to the head of their queue. It changes asynq's keys exactly as asynq's own Requeue
// does, which only the server with the lease can call. A task that is not active has been completed, so the script
// only removes it from the index. In the mode "unleased" the script leaves an active task whose lease is valid,
// because a worker has it. It returns the tasks that it left.
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

// The modes of requeue.
const (
	requeueAny      = "any"      // tasks of a dead worker
	requeueUnleased = "unleased" // only tasks that asynq has lost
)

// tasksPerScript bounds the tasks that one script handles.
const tasksPerScript = 100

func (h *held) requeue(ctx context.Context, worker, mode string, tasks []any) (left []string, err error) {
	asynqKey := func(name string) string { return "asynq:{" + h.queue + "}:" + name }
	keys := []string{asynqKey("active"), asynqKey("lease"), asynqKey("pending"), h.key(worker)}
	for len(tasks) > 0 {
		n := min(len(tasks), tasksPerScript)
		now := time.Now()
		arguments := append([]any{asynqKey("t:"), now.Unix(), now.UnixNano(), mode}, tasks[:n]...)
		kept, err := requeueScript.Run(ctx, h.redis, keys, arguments...).StringSlice()
		if err != nil {
			return nil, fmt.Errorf("requeue tasks of queue %q: %w", h.queue, err)
		}
		left, tasks = append(left, kept...), tasks[n:]
	}
	return left, nil
}

// reap removes from the index the tasks that asynq has completed. If the handler of a task has returned but asynq
// could not complete the task because its lease was lost, reap requeues it. The next delivery then finds the execution
// finished.
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

// restore writes the index again, in case Redis has lost it.
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

// takeOver requeues the tasks of a dead worker. The work is proportional to their number.
func (h *held) takeOver(ctx context.Context, dead string) (total int, err error) {
	for {
		ids, err := h.redis.SRandMemberN(ctx, h.key(dead), tasksPerScript).Result()
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

// giveBack requeues the tasks that asynq has not completed. The worker calls it when it leaves.
func (h *held) giveBack(ctx context.Context) error {
	for _, worker := range h.known() {
		if _, err := h.requeue(ctx, worker, requeueAny, h.tasks(worker, false)); err != nil {
			return err
		}
	}
	return nil
}
