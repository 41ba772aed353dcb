package fleet

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/execution"
)

// letters lists the executions that were given up, by the ids of their tasks, in kizen:fleet:{QUEUE}:letters. asynq
// keeps at most 10,000 of the tasks themselves, for 90 days, and silently deletes the oldest. This list keeps their
// ids.
type letters struct{ redis redis.UniversalClient }

// letterLimit is how long a dead letter is listed and its record kept.
const letterLimit = 90 * 24 * time.Hour

func (letters) key(queue string) string { return "kizen:fleet:{" + queue + "}:letters" }

func (l letters) add(ctx context.Context, queue, task string) error {
	now := time.Now()
	pipe := l.redis.Pipeline()
	pipe.ZAdd(ctx, l.key(queue), redis.Z{Score: float64(now.Unix()), Member: task})
	pipe.ZRemRangeByScore(ctx, l.key(queue), "-inf", fmt.Sprint(now.Add(-letterLimit).Unix()))
	pipe.Expire(ctx, l.key(queue), letterLimit)
	_, err := pipe.Exec(ctx)
	return err
}

// remove deletes the entry of a task that runs again or is discarded, and reports whether it existed.
func (l letters) remove(ctx context.Context, queue, task string) (existed bool, err error) {
	n, err := l.redis.ZRem(ctx, l.key(queue), task).Result()
	return n > 0, err
}

// trimmed returns the dead letters that asynq has deleted, oldest first and at most limit, and their total number.
func (l letters) trimmed(ctx context.Context, queue string, limit int) (tasks []Task, total int, err error) {
	for start := int64(0); ; start += pageSize {
		page, err := l.redis.ZRangeWithScores(ctx, l.key(queue), start, start+pageSize-1).Result()
		if err != nil {
			return nil, 0, fmt.Errorf("read the dead letters of queue %q: %w", queue, err)
		}
		pipe := l.redis.Pipeline()
		kept := make([]*redis.IntCmd, len(page))
		for i, letter := range page {
			kept[i] = pipe.Exists(ctx, fmt.Sprintf("asynq:{%s}:t:%s", queue, letter.Member))
		}
		if _, err := pipe.Exec(ctx); len(page) > 0 && err != nil {
			return nil, 0, fmt.Errorf("find the dead letters of queue %q: %w", queue, err)
		}
		for i, letter := range page {
			if kept[i].Val() > 0 {
				continue
			}
			if total++; total <= limit {
				id, _ := letter.Member.(string)
				since := time.Unix(int64(letter.Score), 0)
				tasks = append(tasks, Task{ID: id, State: TaskTrimmed, Since: &since})
			}
		}
		if len(page) < pageSize {
			return tasks, total, nil
		}
	}
}

// cancellations lists the executions that an operator has cancelled and a worker may be running, in
// kizen:fleet:{QUEUE}:cancelled.
type cancellations struct {
	redis redis.UniversalClient
	queue string
}

// cancellationLimit is how long a cancellation waits for the worker: longer than any step runs.
const cancellationLimit = 10 * time.Minute

func (c cancellations) key() string { return "kizen:fleet:{" + c.queue + "}:cancelled" }

func (c cancellations) add(ctx context.Context, business, id string) error {
	pipe := c.redis.Pipeline()
	pipe.SAdd(ctx, c.key(), business+"/"+id)
	pipe.Expire(ctx, c.key(), cancellationLimit)
	_, err := pipe.Exec(ctx)
	return err
}

// apply ends the cancelled executions that run on this worker.
func (c cancellations) apply(ctx context.Context, running func(business, id string) *attempt) error {
	wanted, err := c.redis.SMembers(ctx, c.key()).Result()
	if err != nil {
		return fmt.Errorf("read the cancelled executions: %w", err)
	}
	for _, name := range wanted {
		business, id, _ := strings.Cut(name, "/")
		if a := running(business, id); a != nil {
			a.stop(execution.ErrCancelled)
			if err := c.redis.SRem(ctx, c.key(), name).Err(); err != nil {
				return err
			}
		}
	}
	return nil
}
