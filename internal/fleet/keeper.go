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

// keepFleet is the loop of the one worker that looks after the fleet. It is apart from the loop that renews, so that however much
// there is to do, no lease runs out over it. Everything in it may be done twice.
func (w *Worker) keepFleet(ctx context.Context) {
	sweep := time.Time{}
	every(ctx, w.config.Lease/3, func() {
		if !w.members.keeper.Load() || w.members.current() == nil {
			return
		}
		for _, id := range w.members.deceased(ctx) {
			if err := w.takeOver(ctx, id); err != nil {
				w.config.Log.Error("the work of a dead worker could not be taken over; it is tried again", "worker", id, "error", err)
			}
		}
		if time.Since(sweep) < w.config.Lease {
			return
		}
		sweep = time.Now()
		for _, held := range w.held {
			if err := errors.Join(w.requeueStrays(ctx, held), w.requeueArchived(ctx, held.queue), w.warnOfFullArchive(ctx, held.queue)); err != nil {
				w.config.Log.Warn("the queue could not be searched for tasks that asynq has lost; it is tried again", "error", err)
			}
		}
	})
}

// takeOver puts the tasks of a dead worker back to the head of their queues, for any worker to take.
func (w *Worker) takeOver(ctx context.Context, id string) error {
	dead, err := w.members.declareDead(ctx, id)
	if err != nil || !dead {
		return err
	}
	total := 0
	for _, held := range w.held {
		n, err := held.takeOver(ctx, id)
		if err != nil {
			return err
		}
		total += n
	}
	w.config.Log.Warn("a worker has died; its work is taken over", "worker", id, "tasks", total)
	return w.members.forget(ctx, id)
}

// requeueStrays puts back what no worker has although asynq's queue calls it active: a task without a lease, which asynq never
// finds and whose id it blocks for good; one whose lease ran out but that is in no list; and one that Redis handed to a worker
// which never got the answer. The last is put back when two sweeps in a row have found it.
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
	w.config.Log.Warn("tasks are put back that asynq had given to a worker and no worker has", "queue", held.queue, "tasks", len(strays))
	_, err = held.requeue(ctx, "", requeueAny, anys(strays))
	return err
}

// pageSize is how many ids one command reads.
const pageSize = 1000

// unheld are the active tasks that are in the index of no worker.
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
	// The indexes are read after the list: what was taken before that is in one of them by now.
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

// strayAfter is how long after its lease asynq has moved an active task, as a rule.
const strayAfter = 2 * time.Minute

// unleased are those of ids without a lease, and what has a lease that ended long ago.
func (w *Worker) unleased(ctx context.Context, held *held, ids []string) ([]string, error) {
	lease := "asynq:{" + held.queue + "}:lease"
	ended, err := w.config.Redis.ZRangeByScore(ctx, lease, &redis.ZRangeBy{
		Min: "-inf", Max: strconv.FormatInt(time.Now().Add(-strayAfter).Unix(), 10), Count: pageSize,
	}).Result()
	if err != nil {
		return nil, err
	}
	for page := range slices.Chunk(ids, pageSize) {
		// ZMSCORE answers nil where there is no score, which go-redis cannot tell from zero; no lease ends in 1970.
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

// archivedWithin is how far back the keeper looks for tasks that asynq has archived by itself.
const archivedWithin = 24 * time.Hour

// requeueArchived has tasks delivered again that asynq archived by itself: their own number of retries was over, which says nothing
// about the execution, or their worker was lost. Retries are for workers to decide. What a worker archived has its mark, and
// what an operator archived has no error of the same moment.
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
		w.config.Log.Warn("asynq archived a task whose execution may not have ended; it is delivered again", "task", id, "reason", task.LastErr)
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

// warnOfFullArchive says once that each further dead letter has asynq delete the oldest.
func (w *Worker) warnOfFullArchive(ctx context.Context, queue string) error {
	n, err := w.config.Redis.ZCard(ctx, "asynq:{"+queue+"}:archived").Result()
	if err != nil {
		return err
	}
	full := n >= archiveLimit
	if full && !w.archiveFull[queue] {
		w.config.Log.Error("asynq keeps no more dead letters: with each further one it deletes the oldest, whose record still says so; "+
			"see kizen-sidecar queue list --state trimmed", "queue", queue, "dead_letters", n)
	}
	w.archiveFull[queue] = full
	return nil
}

// clockSkew bounds how far the clocks of two workers may differ.
const clockSkew = time.Minute

// archivedOnPurpose reports whether a worker or an operator archived a task at a time.
func (w *Worker) archivedOnPurpose(ctx context.Context, task *asynq.TaskInfo, at int64) (bool, error) {
	if strings.HasPrefix(task.LastErr, deadLetterMark) || task.LastErr == "" || task.LastFailedAt.Unix() != at {
		return true, nil
	}
	named, err := readNames(task.Payload)
	if task.Type != wire.ExecutionTask || err != nil {
		return false, nil
	}
	// A worker of an older version gave no mark.
	known, err := w.records.read(ctx, named.BusinessID, named.ExecutionID)
	return known.state == Finished && known.outcome == outcomes.NotStarted && known.deadLetter == "", err
}
