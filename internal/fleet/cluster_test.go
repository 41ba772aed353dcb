package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/client"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// enqueueIn enqueues an execution as an orchestrator that knows n queues does.
func (f *fleetOf) enqueueIn(n int, business, id, callback string) {
	f.t.Helper()
	request := client.Request{
		Runtime: "python-3-13", UserScript: "pass", ExecutionID: id, BusinessID: business, UserID: "u", CallbackURL: callback,
	}
	if _, err := (&client.Queue{Redis: f.store, Name: queue, Queues: n}).Enqueue(f.t.Context(), request); err != nil {
		f.t.Fatal(err)
	}
}

// finished reports whether all executions have finished, according to their records.
func (f *fleetOf) finished(executions [][2]string) bool {
	return !slices.ContainsFunc(executions, func(e [2]string) bool {
		known, err := f.records.read(f.t.Context(), e[0], e[1])
		return err != nil || known.state != Finished
	})
}

// TestAFleetSharesItsQueuesAmongTheMastersOfACluster: each execution of 16 businesses runs once, its callback arrives,
// and every master has a part of the work.
func TestAFleetSharesItsQueuesAmongTheMastersOfACluster(t *testing.T) {
	receiver := newReceiver(t, 0)
	t.Parallel()
	nodes := redistest.StartCluster(t)
	f := newFleetOn(t, nodes[0])
	f.dial = func(address string) redis.UniversalClient {
		return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{address}})
	}
	store := f.dial(nodes[0].Addr)
	t.Cleanup(func() { _ = store.Close() })
	f.store, f.records, f.sender, f.queues = store, records{redis: store}, receiver.sender, 16
	for range 2 {
		f.worker(nodes[0].Addr, 5, fine)
	}
	const businesses, each = 16, 2
	var all [][2]string
	for i := range businesses * each {
		business, id := fmt.Sprint("b-", i%businesses), fmt.Sprint("e-", i)
		f.enqueueIn(f.queues, business, id, receiver.URL)
		all = append(all, [2]string{business, id})
	}
	f.await("the callbacks", func() bool { return len(receiver.outcomes()) == len(all) })
	f.await("the end of all", func() bool { return f.finished(all) })
	for _, e := range all {
		f.requireRan(e[1], 1)
	}
	for _, got := range receiver.outcomes() {
		if got != "execution.finished ok" {
			t.Errorf("got %s", got)
		}
	}
	for _, node := range nodes {
		// Each execution deletes its task and the task of its callback.
		if keys := node.Do(t, "INFO", "commandstats"); !strings.Contains(keys, "cmdstat_lrem") {
			t.Errorf("the master at %s has completed no task", node.Addr)
		}
	}
	operator := NewOperator(store, queue, f.queues)
	f.await("empty queues", func() bool {
		found, err := operator.List(t.Context(), false, "", 10)
		return err == nil && found.Active+found.Waiting+found.PutOff+found.Dead == 0
	})
	if shown, err := operator.Show(t.Context(), "b-3/e-3"); err != nil || shown.Record != Finished {
		t.Errorf("shown %+v, %v", shown, err)
	}
}

// TestTheNumberOfQueuesMayGrow: workers are restarted first, then orchestrators. Tasks that were enqueued before still
// run, and an id that is in two queues runs once.
func TestTheNumberOfQueuesMayGrow(t *testing.T) {
	t.Parallel()
	const before, after = 1, 4
	f := newFleet(t)
	var all [][2]string
	moved := 0
	for i := range 12 {
		business, id := fmt.Sprint("b-", i), fmt.Sprint("e-", i)
		f.enqueueIn(before, business, id, "")
		all = append(all, [2]string{business, id})
		if wire.QueueOf(queue, after, business) != wire.QueueOf(queue, before, business) {
			f.enqueueIn(after, business, id, "") // asynq does not compare ids of different queues
			f.enqueueIn(after, business, "new-"+id, "")
			all, moved = append(all, [2]string{business, "new-" + id}), moved+1
		}
	}
	f.worker(f.server.Addr, 5, fine) // it takes tasks only from the first queue
	f.await("an empty first queue", f.idle)
	for _, e := range all {
		if strings.HasPrefix(e[1], "new-") {
			f.requireRan(e[1], 0)
		}
	}
	operator := NewOperator(f.store, queue, after)
	if found, err := operator.List(t.Context(), false, "", 100); err != nil || found.Waiting != 2*moved || moved == 0 {
		t.Errorf("found %+v, %v", found, err)
	}
	f.queues = after
	f.worker(f.server.Addr, 5, fine)
	f.await("the start of all", func() bool { return f.started() == len(all) })
	f.await("the end of all", func() bool { return f.finished(all) })
	for _, e := range all {
		f.requireRan(e[1], 1)
	}
}

// TestABusinessWithManyExecutionsLeavesOtherQueuesTheirShare: the last execution, of another business, does not wait
// for all of them.
func TestABusinessWithManyExecutionsLeavesOtherQueuesTheirShare(t *testing.T) {
	t.Parallel()
	const many = 60
	f := newFleet(t)
	f.queues = 2
	if wire.QueueOf(queue, 2, "greedy") == wire.QueueOf(queue, 2, "modest") {
		t.Fatal("both businesses have the same queue")
	}
	for i := range many {
		f.enqueueIn(2, "greedy", fmt.Sprint("e-", i), "")
	}
	f.enqueueIn(2, "modest", "last", "")
	f.worker(f.server.Addr, 5, fine)
	f.await("the end of all", func() bool { return f.started() == many+1 })
	f.mu.Lock()
	defer f.mu.Unlock()
	if at := slices.Index(f.order, "last"); at > many/2 { // this fails by chance once in 2^30 runs
		t.Errorf("it was number %d of %d", at, len(f.order))
	}
}
