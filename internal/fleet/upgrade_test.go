package fleet

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// newerVersion is a version that this program does not understand.
var newerVersion = strconv.Itoa(wire.Version + 1)

// putOff returns how many tasks wait for a newer worker.
func (f *fleetOf) putOff() (n int) {
	tasks, err := asynq.NewInspectorFromRedisClient(f.store).ListRetryTasks(queue)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, task := range tasks {
		if strings.Contains(task.LastErr, "a newer version of kizen-sidecar wrote this") && task.Retried == 0 {
			n++
		}
	}
	return n
}

// TestATaskOfANewerVersionIsLeftToANewerWorker: all 20 are left, and the log and the queue give the reason.
func TestATaskOfANewerVersionIsLeftToANewerWorker(t *testing.T) {
	t.Parallel()
	const total = 20
	f := newFleet(t)
	f.lease = time.Minute // it returns after that
	client := asynq.NewClientFromRedisClient(f.store)
	for i := range total {
		payload, err := json.Marshal(map[string]any{"execution_id": fmt.Sprint("e", i), "business_id": "b",
			"colour": "green"})
		if err != nil {
			t.Fatal(err)
		}
		task := asynq.NewTaskWithHeaders(wire.ExecutionTask, payload, map[string]string{wire.VersionHeader: newerVersion})
		if _, err := client.EnqueueContext(t.Context(), task, asynq.Queue(queue)); err != nil {
			t.Fatal(err)
		}
	}
	f.worker(f.server.Addr, 1, fine)
	f.await("all to be delayed", func() bool { return f.putOff() == total })
	if n := len(f.store.Keys(t.Context(), "kizen:{b}:*").Val()); n != 0 {
		t.Errorf("%d records were made", n)
	}
	if n := strings.Count(f.log.String(), "a task is left to a newer worker"); n != total {
		t.Errorf("the log has the line %d times", n)
	}
}

// TestARecordOfANewerVersionIsLeftUnchanged: one record has a newer version, the other a state that this program does
// not know.
func TestARecordOfANewerVersionIsLeftUnchanged(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.lease = time.Minute
	records := map[string][]string{
		"versioned": {"state", string(Queued), "version", newerVersion},
		"unknown":   {"state", "paused", "owner", "gone/1"},
	}
	for id, fields := range records {
		if err := f.store.HSet(t.Context(), wire.RecordKey("b", id), fields).Err(); err != nil {
			t.Fatal(err)
		}
		f.enqueue(id, "")
	}
	f.worker(f.server.Addr, 1, fine)
	f.await("both to be delayed", func() bool { return f.putOff() == 2 })
	for id, fields := range records {
		kept := f.store.HGetAll(t.Context(), wire.RecordKey("b", id)).Val()
		if len(kept) != len(fields)/2 || kept["state"] != fields[1] {
			t.Errorf("%s: %v", id, kept)
		}
		f.requireRan(id, 0)
	}
}

// TestNothingIsRefusedWhileANewerWorkerLives: the newer worker may accept more than this one. Once it is gone, the
// execution is refused.
func TestNothingIsRefusedWhileANewerWorkerLives(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	other := members{queue: queue}
	f.store.SAdd(t.Context(), other.allKey(), "newer")
	f.store.Set(t.Context(), other.key("newer"), newerVersion, 0)
	f.worker(f.server.Addr, 1, fine)
	f.enqueueBody("e", map[string]string{"execution_id": "e", "business_id": "b", "colour": "green"})
	f.await("it to be delayed", func() bool {
		return strings.Contains(f.log.String(),
			"a newer version of kizen-sidecar wrote this")
	})
	if known, err := f.records.read(t.Context(), "b", "e"); err != nil || known.state == Finished {
		t.Errorf("it ended %s, %v", known.outcome, err)
	}
	f.store.Del(t.Context(), other.key("newer"))
	if known := f.ends("e"); known.outcome != outcomes.Refused || known.attempts != 1 ||
		!strings.Contains(string(known.result), "colour") {
		t.Errorf("ended %s after %d attempts: %s", known.outcome, known.attempts, known.result)
	}
}
