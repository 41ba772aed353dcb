package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// keepFleet is the loop of the keeper, the one worker that monitors the others. It is separate from the loop that
// renews leases, so that a slow sweep lets no lease expire. Every operation in it is idempotent.
func (w *Worker) keepFleet(ctx context.Context) {
	sweep := time.Time{}
	every(ctx, w.config.Lease/3, func() {
		if !w.members.keeper.Load() || w.members.current() == nil {
			return
		}
		for _, id := range w.members.deadWorkers(ctx) {
			if err := w.takeOver(ctx, id); err != nil {
				w.config.Log.Error("the work of a dead worker could not be taken over; the keeper will retry", "worker", id,
					"error", err)
			}
		}
		if time.Since(sweep) < w.config.Lease {
			return
		}
		sweep = time.Now()
		for _, held := range w.held {
			if err := errors.Join(w.requeueStrays(ctx, held), w.requeueArchived(ctx, held.queue), w.warnOfFullArchive(ctx, held.queue)); err != nil {
				w.config.Log.Warn("the queue could not be searched for tasks that asynq has lost; the keeper will retry", "error",
					err)
			}
		}
	})
}

// takeOver requeues the tasks of a dead worker at the head of their queues, for any worker to take.
func (w *Worker) takeOver(ctx context.Context, id string) error {
	dead, err := w.members.declareDead(ctx, id)
	if err != nil || !dead {
		return err
	}
	total := 0
	var errs []error
	for _, held := range w.held { // the queues may be on different masters
		n, err := held.takeOver(ctx, id)
		total, errs = total+n, append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	w.config.Log.Warn("a worker has died; its tasks were requeued", "worker", id, "tasks", total)
	return w.members.forget(ctx, id)
}

// requeueStrays requeues active tasks that no worker has: tasks without a lease, which asynq never recovers; tasks
// with an expired lease that are missing from asynq's list of active tasks; and tasks that Redis sent to a worker
// which never received the reply. The last kind has a valid lease, so it is requeued only if two sweeps in a row find
// it.
func (w *Worker) requeueStrays(ctx context.Context, held *held) error {
	suspects, err := w.unheld(ctx, held)
	if err != nil {
		return err
	}
	unleased, err := w.unleased(ctx, held, suspects)
	if err != nil {
		return err
	}
	strays := unleased
	for _, id := range suspects {
		if w.suspects[held.queue][id] && !slices.Contains(unleased, id) {
			strays = append(strays, id)
		}
	}
	next := map[string]bool{}
	for _, id := range suspects {
		next[id] = true
	}
	w.suspects[held.queue] = next
	if len(strays) == 0 {
		return nil
	}
	w.config.Log.Warn("requeued tasks that asynq lists as active but no worker has", "queue", held.queue, "tasks",
		len(strays))
	_, err = held.requeue(ctx, "", requeueAny, anys(strays))
	return err
}

// pageSize is how many ids one command reads.
const pageSize = 1000

// unheld returns the active tasks that are in no worker's index.
func (w *Worker) unheld(ctx context.Context, held *held) ([]string, error) {
	workers, err := w.config.Redis.SMembers(ctx, w.members.allKey()).Result()
	if err != nil {
		return nil, err
	}
	var active []string
	for start := int64(0); ; start += pageSize {
		page, err := w.config.Redis.LRange(ctx, "asynq:{"+held.queue+"}:active", start, start+pageSize-1).Result()
		if err != nil {
			return nil, err
		}
		if active = append(active, page...); len(page) < pageSize {
			break
		}
	}
	if len(active) == 0 {
		return nil, nil
	}
	// Read the indexes after the list: a task taken before that is in one of them by now.
	known := map[string]bool{}
	for _, worker := range workers {
		tasks, err := w.config.Redis.SMembers(ctx, held.key(worker)).Result()
		if err != nil {
			return nil, err
		}
		for _, task := range tasks {
			known[task] = true
		}
	}
	return slices.DeleteFunc(active, func(id string) bool { return known[id] }), nil
}

// strayAfter is how long after its lease expired a task is considered lost. asynq normally moves it before that.
const strayAfter = 2 * time.Minute

// unleased returns the given ids that have no lease, and all tasks whose lease expired long ago.
func (w *Worker) unleased(ctx context.Context, held *held, ids []string) ([]string, error) {
	lease := "asynq:{" + held.queue + "}:lease"
	ended, err := w.config.Redis.ZRangeByScore(ctx, lease, &redis.ZRangeBy{
		Min: "-inf", Max: strconv.FormatInt(time.Now().Add(-strayAfter).Unix(), 10), Count: pageSize,
	}).Result()
	if err != nil {
		return nil, err
	}
	for page := range slices.Chunk(ids, pageSize) {
		// ZMSCORE returns nil for a missing score, which go-redis does not distinguish from zero. No lease expired in
		// 1970.
		scores, err := w.config.Redis.ZMScore(ctx, lease, page...).Result()
		if err != nil {
			return nil, err
		}
		for i, id := range page {
			if scores[i] == 0 {
				ended = append(ended, id)
			}
		}
	}
	return ended, nil
}

// archivedWithin is how far back the keeper looks for tasks that asynq archived by itself.
const archivedWithin = 24 * time.Hour

// requeueArchived requeues tasks that asynq archived by itself, because its retries were used up or the task's worker
// was lost. Workers decide about retries, not asynq. A task that a worker archived has the worker's mark. A task that
// an operator archived has no error from the time of archiving.
func (w *Worker) requeueArchived(ctx context.Context, queue string) error {
	archived := "asynq:{" + queue + "}:archived"
	since := w.archivedSince[queue]
	if since == 0 {
		since = time.Now().Add(-archivedWithin).Unix()
	}
	letters, err := w.config.Redis.ZRangeByScoreWithScores(ctx, archived, &redis.ZRangeBy{
		Min: strconv.FormatInt(since, 10), Max: "+inf", Count: pageSize,
	}).Result()
	if err != nil {
		return err
	}
	for _, letter := range letters {
		id, _ := letter.Member.(string)
		task, err := taskInfo(ctx, w.config.Redis, w.inspector, queue, id)
		if err != nil {
			return err
		}
		if task == nil {
			continue
		}
		ours, err := w.archivedOnPurpose(ctx, task, int64(letter.Score))
		if err != nil {
			return err
		}
		if ours {
			continue
		}
		w.config.Log.Warn("asynq archived a task whose execution may not have ended; it was requeued", "task", id, "reason",
			task.LastErr)
		if err := w.inspector.RunTask(queue, id); err != nil {
			return fmt.Errorf("deliver the archived task %q again: %w", id, err)
		}
	}
	w.archivedSince[queue] = time.Now().Add(-clockSkew).Unix()
	if len(letters) == pageSize {
		w.archivedSince[queue] = int64(letters[pageSize-1].Score)
	}
	return nil
}

// archiveLimit is how many dead letters of a queue asynq keeps.
const archiveLimit = 9999

// warnOfFullArchive logs once that each further dead letter makes asynq delete the oldest.
func (w *Worker) warnOfFullArchive(ctx context.Context, queue string) error {
	n, err := w.config.Redis.ZCard(ctx, "asynq:{"+queue+"}:archived").Result()
	if err != nil {
		return err
	}
	full := n >= archiveLimit
	if full && !w.archiveFull[queue] {
		w.config.Log.Error("asynq's archive of dead letters is full: each further one deletes the oldest, but records remain; "+
			"see kizen-sidecar queue list --state trimmed", "queue", queue, "dead_letters", n)
	}
	w.archiveFull[queue] = full
	return nil
}

// clockSkew bounds how far the clocks of two workers may differ.
const clockSkew = time.Minute

// archivedOnPurpose reports whether a worker or an operator, rather than asynq, archived a task at the given time.
func (w *Worker) archivedOnPurpose(ctx context.Context, task *asynq.TaskInfo, at int64) (bool, error) {
	if strings.HasPrefix(task.LastErr, deadLetterMark) || task.LastErr == "" || task.LastFailedAt.Unix() != at {
		return true, nil
	}
	named, err := readReference(task.Payload)
	if task.Type != wire.ExecutionTask || err != nil {
		return false, nil
	}
	// A worker of an older version left no mark.
	known, err := w.records.read(ctx, named.BusinessID, named.ExecutionID)
	return known.state == Finished && known.outcome == outcomes.NotStarted && known.deadLetter == "", err
}
