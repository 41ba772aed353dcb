package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/client"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

// TestTortureAFleetUnderEveryFault runs 2,000 executions on three workers. Meanwhile it kills one worker, suspends one,
// cuts one off from Redis, kills Redis, and kills another worker. Each execution ends, no code starts twice, and every
// callback reports the outcome. Only executions that a lost worker was running may end as worker_died.
func TestTortureAFleetUnderEveryFault(t *testing.T) {
	const total, slots = 2000, 8
	server := redistest.StartAt(t, redistest.FreePort(t), "--appendonly", "yes", "--appendfsync", "everysec")
	store := redisClient(t, server.URL())
	at, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	api, callbacks := newTally(t, total), newReceiver(t)
	var bodies []step
	for i := range total {
		id := fmt.Sprintf("e-%04d", i)
		bodies = append(bodies, forFleet(id, "kizen.api.post('/ran/"+id+"').raise_for_status()").with("callback_url",
			callbacks.URL+"/hook"))
	}
	enqueue(t, store, bodies...)
	type connected struct {
		*served
		way *resetting
	}
	start := func() connected {
		way := newResetting(t, at.Host)
		return connected{startWorker(t, "redis://"+way.Addr().String()+"/0", api.URL+"/api", "--slots", fmt.Sprint(slots),
			"--lease", "5s"), way}
	}
	workers := []connected{start(), start(), start()}
	kill := func(i int) {
		_ = workers[i].Process.Signal(syscall.SIGKILL)
		<-workers[i].Ended
		workers[i] = start()
	}
	// others waits until the other workers have declared one dead.
	others := func(i int) {
		before := [3]int{}
		dead := func(j int) int { return strings.Count(workers[j].Log.String(), "a worker has died") }
		for j := range workers {
			before[j] = dead(j)
		}
		waitFor(t, func() bool {
			for j := range workers {
				if j != i && dead(j) > before[j] {
					return true
				}
			}
			return false
		})
	}
	told := 0
	until := func(n int) {
		for told < n { // each wait has its own timeout, because 2,000 Pythons start here
			waitFor(t, func() bool { return callbacks.count() > told || t.Failed() })
			told = callbacks.count()
		}
	}
	for i, fault := range []struct {
		name  string
		cause func()
	}{
		{"kill -9 of a worker", func() { kill(0) }},
		{"SIGSTOP of a worker", func() {
			_ = workers[1].Process.Signal(syscall.SIGSTOP)
			defer func() { _ = workers[1].Process.Signal(syscall.SIGCONT) }()
			others(1)
		}},
		{"a worker without Redis", func() {
			workers[2].way.part()
			defer workers[2].way.mend()
			others(2)
		}},
		{"kill -9 of Redis", func() {
			server.Stop()
			server.Restart(t)
		}},
		{"kill -9 of another worker", func() { kill(1) }},
	} {
		until(total * (i + 1) / 7)
		fault.cause()
		t.Logf("%s after %d callbacks", fault.name, told)
	}
	until(total)
	outcomes, starts := map[string]int{}, 0
	endings := endings(t, store)
	for id, outcome := range endings {
		outcomes[outcome]++
		ran := api.ran[id]
		starts += ran
		if ran > 1 || outcome == "ok" && ran != 1 {
			t.Errorf("%s ended %s and ran %d times", id, outcome, ran)
		}
		if callbacks.outcomes[id] != outcome {
			t.Errorf("%s ended %s, and its callback said %q", id, outcome, callbacks.outcomes[id])
		}
	}
	t.Logf("outcomes %v, %d starts, %d callbacks, %d late results", outcomes, starts, len(callbacks.outcomes),
		callbacks.late)
	const lost = 4 // workers that were killed, suspended or cut off
	if len(endings) != total || outcomes["ok"]+outcomes["worker_died"] != total || outcomes["worker_died"] > lost*slots {
		t.Errorf("%d ended, outcomes %v", len(endings), outcomes)
	}
	done := sidecar(t, "", nil, "queue", "list", "--redis-url", server.URL())
	if done.stdout != "kizen: 0 waiting, 0 put off, 0 active, 0 dead, 0 trimmed\n" {
		t.Errorf("left in the queue: %s", done.stdout)
	}
	for _, w := range workers {
		if code := w.Stop(); code != exitOK {
			t.Errorf("exit code %d", code)
		}
	}
}

// TestTortureAClusterThatLosesAMaster runs executions of 16 businesses on a Cluster of three masters, and kills each
// master in turn. Each master returns with its file, so nothing is lost: each execution runs once, and each callback
// arrives.
func TestTortureAClusterThatLosesAMaster(t *testing.T) {
	const businesses, each, queues = 16, 20, 16
	const total = businesses * each
	nodes := redistest.StartCluster(t, "--appendonly", "yes", "--appendfsync", "everysec",
		"--cluster-require-full-coverage", "no")
	store := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{nodes[0].Addr, nodes[1].Addr, nodes[2].Addr}})
	t.Cleanup(func() { _ = store.Close() })
	api, callbacks := newTally(t, total), newReceiver(t)
	orchestrator := client.Queue{Redis: store, Queues: queues}
	business := map[string]string{}
	for i := range total {
		id := fmt.Sprintf("e-%03d", i)
		business[id] = fmt.Sprint("b-", i%businesses)
		_, err := orchestrator.Enqueue(t.Context(), client.Request{
			BusinessID: business[id], UserID: "u", Runtime: "python-3-13",
			UserScript: "kizen.api.post('/ran/" + id + "').raise_for_status()", ExecutionID: id,
			CallbackURL: callbacks.URL,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	redisURL := "redis+cluster://" + nodes[0].Addr + "," + nodes[1].Addr + "," + nodes[2].Addr
	for range 2 {
		startWorker(t, redisURL, api.URL+"/api", "--slots", "4", "--queues", fmt.Sprint(queues), "--lease", "10s")
	}
	delivered := 0
	until := func(n int) {
		for delivered < n {
			waitFor(t, func() bool { return callbacks.count() > delivered || t.Failed() })
			delivered = callbacks.count()
		}
	}
	for i, node := range nodes {
		until(total * (i + 1) / 5)
		node.Stop()
		node.Restart(t)
		t.Logf("the master at %s was killed after %d callbacks", node.Addr, delivered)
	}
	until(total)
	for id := range business {
		finished, err := orchestrator.Get(context.Background(), business[id], id)
		if err != nil || finished.Outcome != client.OK || api.ran[id] != 1 || callbacks.outcomes[id] != "ok" {
			t.Errorf("%s ended %s (%v), ran %d times, its callback said %q", id, finished.Outcome, err, api.ran[id],
				callbacks.outcomes[id])
		}
	}
	// A callback may arrive before its task has left the queue, and a master that was killed may have lost that.
	waitFor(t, func() bool {
		done := sidecar(t, "", nil, "queue", "list", "--redis-url", redisURL, "--queues", fmt.Sprint(queues))
		return strings.HasPrefix(done.stdout, "all queues: 0 waiting, 0 put off, 0 active, 0 dead")
	})
}
