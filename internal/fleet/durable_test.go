package fleet

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// TestAStartWaitsUntilItIsAsDurableAsConfigured also checks that a Redis older than 7.2 gets a clear error for "disk".
func TestAStartWaitsUntilItIsAsDurableAsConfigured(t *testing.T) {
	t.Parallel()
	claimed := func(t *testing.T, server *redistest.Server, d Durability, id string) (records, ticket) {
		t.Helper()
		client := redis.NewClient(&redis.Options{Addr: server.Addr, ReadTimeout: 2 * durableLimit})
		t.Cleanup(func() { _ = client.Close() })
		r, own := records{redis: client, durable: d}, newTicket("b", id, "w")
		if c, err := r.claim(t.Context(), own, "digest", ""); err != nil || c.owner != own.owner {
			t.Fatalf("%+v, %v", c, err)
		}
		return r, own
	}
	t.Run("replica", func(t *testing.T) {
		t.Parallel()
		master := redistest.Start(t, "--repl-diskless-sync-delay", "0")
		replica := redistest.Start(t, "--replicaof", "127.0.0.1", strconv.Itoa(master.Port))
		redistest.Await(t, "the replica to follow",
			func() bool { return strings.Contains(master.Do(t, "INFO", "replication"), "state=online") })
		r, own := claimed(t, master, DurabilityReplica, "e")
		if err := r.durable.Check(t.Context(), r.redis); err != nil {
			t.Fatal(err)
		}
		if ours, err := r.start(t.Context(), own); !ours || err != nil {
			t.Errorf("started: %v, %v", ours, err)
		}
		if state := replica.Do(t, "HGET", wire.RecordKey("b", "e"), "state"); state != string(Started) {
			t.Errorf("the replica has the state %q", state)
		}
		done := ending{outcome: "ok", at: time.Now(), begun: true}
		if _, _, err := r.finish(t.Context(), own, "digest", done, time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := r.awaitDurable(t.Context(), own, time.Hour); err != nil {
			t.Error(err)
		}
		if state := replica.Do(t, "HGET", wire.RecordKey("b", "e"), "state"); state != string(Finished) {
			t.Errorf("the replica has the state %q", state)
		}
		if ours, err := r.start(t.Context(), newTicket("b", "e", "other")); ours || err != nil {
			t.Errorf("another attempt started: %v, %v", ours, err)
		}
		replica.Stop()
		r, own = claimed(t, master, DurabilityReplica, "e2")
		if _, err := r.start(t.Context(), own); !errors.Is(err, errNotDurable) {
			t.Errorf("the code started without a replica: %v", err)
		}
	})
	t.Run("disk", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t, "--dir", t.TempDir(), "--appendonly", "yes", "--appendfsync", "everysec")
		r, own := claimed(t, server, DurabilityDisk, "e")
		if err := r.durable.Check(t.Context(), r.redis); err != nil {
			if !strings.Contains(err.Error(), "needs WAITAOF of Redis 7.2") ||
				!strings.Contains(err.Error(), "appendfsync always") {
				t.Error(err)
			}
			if _, err := r.start(t.Context(), own); !errors.Is(err, errNotDurable) {
				t.Errorf("the code started although Redis cannot confirm anything: %v", err)
			}
			t.Logf("only the refusal was tested: %v", err)
			return
		}
		if ours, err := r.start(t.Context(), own); !ours || err != nil {
			t.Errorf("started: %v, %v", ours, err)
		}
		if err := r.awaitDurable(t.Context(), own, time.Hour); err != nil {
			t.Error(err)
		}
		server.Do(t, "CONFIG", "SET", "appendonly", "no")
		if err := r.durable.Check(t.Context(), r.redis); err == nil || !strings.Contains(err.Error(), "appendonly yes") {
			t.Errorf("without appendonly: %v", err)
		}
		if _, err := r.start(t.Context(), own); !errors.Is(err, errNotDurable) {
			t.Errorf("the code started without appendonly: %v", err)
		}
	})
}
