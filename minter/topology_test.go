package minter_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/minter"
)

// useEverything mints, verifies and revokes for several businesses, which lie in different slots of a cluster.
func useEverything(t *testing.T, f fixture) {
	t.Helper()
	revoker := minter.NewRevoker(f.redis)
	for i := range 12 {
		id := someone
		id.BusinessID = fmt.Sprint("business-", i)
		key, sibling := f.mint(t, id), f.mint(t, id)
		if code := f.verify(t, key); code != "" {
			t.Fatalf("%s: refused: %s", id.BusinessID, code)
		}
		if err := f.minter.Revoke(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		if code := f.verify(t, key); code != minter.CodeRevoked {
			t.Fatalf("%s: revoked: %q", id.BusinessID, code)
		}
		revoked, err := revoker.Suspend(t.Context(), id.BusinessID, id.AccountID)
		if err != nil {
			t.Fatal(err)
		}
		if ended, err := revoked.Ended(t.Context()); len(ended) != 1 || err != nil {
			t.Errorf("%s: suspending revoked %d keys, %v; want 1", id.BusinessID, len(ended), err)
		}
		if code := f.verify(t, sibling); code != minter.CodeSuspended {
			t.Fatalf("%s: suspended: %q", id.BusinessID, code)
		}
		if _, _, err := revoker.Resume(t.Context(), id.BusinessID, id.AccountID); err != nil {
			t.Fatal(err)
		}
		if code := f.verify(t, f.mint(t, id)); code != "" {
			t.Fatalf("%s: resumed: %s", id.BusinessID, code)
		}
	}
}

func TestWorksOnACluster(t *testing.T) {
	t.Parallel()
	nodes := redistest.StartCluster(t)
	f := onRedis(t, "redis+cluster://"+nodes[0].Addr+","+nodes[1].Addr)
	useEverything(t, f)
	for _, node := range nodes {
		if n := node.Do(t, "DBSIZE"); n == "0" {
			t.Errorf("%s holds nothing: the businesses are not spread over the nodes", node.Addr)
		}
	}
	single := onRedis(t, nodes[0].URL())
	var failed *redisconn.Error
	for i := range 12 { // some of them are on another node
		id := someone
		id.BusinessID = fmt.Sprint("business-", i)
		if _, err := single.minter.Mint(t.Context(), id, time.Minute); err != nil &&
			(!errors.As(err, &failed) || failed.Reason != "is part of a cluster; use redis+cluster://") {
			t.Errorf("a client for a single server, on a cluster: %v", err)
		}
	}
	if failed == nil {
		t.Error("a client for a single server wrote every key to a cluster")
	}
}

func TestMintingSurvivesASentinelFailover(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t)
	replica := redistest.Start(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(master.Port), "--repl-diskless-sync-delay", "0")
	sentinel := redistest.StartSentinel(t, "main", master,
		"sentinel down-after-milliseconds main 300", "sentinel failover-timeout main 3000")
	redistest.Await(t, "the sentinel to know the replica", func() bool {
		return strings.Contains(replica.Do(t, "INFO", "replication"), "master_link_status:up") &&
			strings.Contains(sentinel.Do(t, "SENTINEL", "replicas", "main"), strconv.Itoa(replica.Port))
	})
	f := onRedis(t, "redis+sentinel://"+sentinel.Addr+"/main")
	lease, err := f.minter.Lease(t.Context(), someone, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var minting sync.WaitGroup
	defer minting.Wait()
	defer stop()
	minted := make(chan minter.Key, 1<<16)
	for range 2 {
		minting.Go(func() {
			for ctx.Err() == nil {
				key, err := f.minter.Mint(ctx, someone, time.Minute)
				var failed *redisconn.Error
				switch {
				case err == nil:
					minted <- key
				case !errors.As(err, &failed) && ctx.Err() == nil:
					t.Errorf("Mint = %v, want an error of redisconn", err)
				case !strings.HasPrefix(failed.Error(), `redis master "main" of the sentinels at `+sentinel.Addr):
					t.Errorf("Mint = %v: it does not name the server", err)
				}
				if _, err := lease.Key(ctx); err != nil && ctx.Err() == nil {
					t.Errorf("Key = %v although the leased key is valid", err)
				}
			}
		})
	}
	<-minted
	master.Stop()
	redistest.Await(t, "the replica to become master", func() bool { // it closes connections during the promotion
		return strings.Contains(sentinel.Do(t, "SENTINEL", "get-master-addr-by-name", "main"), strconv.Itoa(replica.Port))
	})
	for len(minted) > 0 {
		<-minted
	}
	key := <-minted // minted after the failover, by the client from before it
	if code := f.verify(t, key); code != "" {
		t.Errorf("a key minted after the failover is refused: %s", code)
	}
	stop()
	minting.Wait()
	if err := lease.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
