package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/tombstone"
)

// TestAnIDRunsOnceInEveryServeOfARedis submits each id to two of them at the same time, and later to a third.
func TestAnIDRunsOnceInEveryServeOfARedis(t *testing.T) {
	t.Parallel()
	const total = 12
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	api := newTally(t, total)
	start := func() *served { return startServe(t, "--redis-url", redisURL, "--api-root", api.URL+"/api") }
	first, second := start(), start()
	body := func(i int) step {
		return script(fmt.Sprintf("kizen.api.post('/ran/e-%d')", i)).with("execution_id", fmt.Sprint("e-", i))
	}
	var callers sync.WaitGroup
	for i := range total {
		for _, s := range []*served{first, second} {
			callers.Go(func() {
				if got, err := s.try(context.Background(), "b-1", "POST", "/executions", body(i)); err != nil ||
					got.status != 202 && got.status != 409 {
					t.Errorf("%+v, %v", got, err)
				}
			})
		}
	}
	callers.Wait()
	ended := func(s *served, i int) (outcome string) {
		answer := s.ask("GET", fmt.Sprint("/executions/e-", i), nil)
		if answer.status == 404 {
			return "unknown" // it had run before it was submitted here
		}
		if !strings.Contains(answer.body, `"state":"finished"`) {
			return ""
		}
		for _, outcome := range []string{"ok", "refused"} {
			if strings.Contains(answer.body, `"outcome":"`+outcome+`"`) {
				return outcome
			}
		}
		return answer.body
	}
	for i := range total {
		waitFor(t, func() bool { return ended(first, i) != "" && ended(second, i) != "" })
		outcomes := map[string]bool{ended(first, i): true, ended(second, i): true}
		if !outcomes["ok"] || len(outcomes) != 2 || !outcomes["refused"] && !outcomes["unknown"] {
			t.Errorf("e-%d ended as %v", i, outcomes)
		}
	}
	third := start()
	for i := range total {
		if again := third.ask("POST", "/executions", body(i)); again.status != 409 ||
			!strings.Contains(again.body, "has run") {
			t.Errorf("e-%d in a process that was started later: %d %s", i, again.status, again.body)
		}
		if ttl := store.TTL(t.Context(), tombstone.Key("b-1", fmt.Sprint("e-", i))).Val(); ttl > tombstone.Limit ||
			ttl < tombstone.Limit-tombstone.Limit/100 {
			t.Errorf("the tombstone of e-%d has the TTL %s", i, ttl)
		}
	}
	api.mu.Lock()
	defer api.mu.Unlock()
	for id, ran := range api.ran {
		if ran != 1 {
			t.Errorf("%s ran %d times", id, ran)
		}
	}
	if len(api.ran) != total {
		t.Errorf("%d executions ran, want %d", len(api.ran), total)
	}
}
