package revoke

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/minter"
)

// openStore returns a client of an embedded Redis.
func openStore(t *testing.T) redis.UniversalClient {
	t.Helper()
	embedded, err := redisconn.StartEmbedded()
	if err != nil {
		t.Fatal(err)
	}
	client, err := redisconn.Open(redisconn.Config{Embedded: embedded})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		embedded.Close()
	})
	return client
}

// newMinter returns a minter with its own keys.
func newMinter(t *testing.T, client redis.UniversalClient) *minter.Minter {
	t.Helper()
	keys, err := minter.GenerateKeySet()
	if err != nil {
		t.Fatal(err)
	}
	m, err := minter.New(minter.Config{Redis: client, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// do revokes a target, and returns the message or the error's text, with the exit code.
func do(t *testing.T, client redis.UniversalClient, target Target) (string, int) {
	t.Helper()
	said, err := target.Do(t.Context(), client, func(err error) { t.Errorf("missing in the timeline: %v", err) })
	if err != nil {
		said += err.Error()
	}
	return said, exit.Code(err)
}

func TestEveryMessageHasTheNumberOfRevokedKeys(t *testing.T) {
	client := openStore(t)
	m := newMinter(t, client)
	id := minter.Identity{AccountID: "a1", AccountType: "service_automation", BusinessID: "b1", ExecutionID: "e1"}
	for _, row := range []struct {
		target      Target
		done, again string
	}{
		{Target{Key: "KEY"}, `revoked 1 valid signed key of key "KEY" in business "b1"`,
			`no valid signed key of key "KEY" in business "b1"`},
		{Target{Execution: "e1"}, `revoked 2 valid signed keys of execution "e1" in business "b1"`,
			`no valid signed key of execution "e1"`},
		{Target{Account: "a1"}, `revoked 2 valid signed keys of account "a1" in business "b1"`,
			`no valid signed key of account "a1"`},
		{Target{Business: "b1"}, `revoked 2 valid signed keys of business "b1"`, `no valid signed key of business "b1"`},
		{
			Target{Suspend: "a1"}, `suspended account "a1" in business "b1", which revoked 2 valid signed keys`,
			`account "a1" in business "b1" is already suspended by an operator; nothing changed`,
		},
		{
			Target{Resume: "a1"}, `lifted the suspension of account "a1" in business "b1" by an operator`,
			`no operator has suspended account "a1" in business "b1", so nothing was lifted`,
		},
	} {
		target := row.target
		target.BusinessID = "b1"
		var key minter.Key
		for range 2 {
			var err error
			if key, err = m.Mint(t.Context(), id, time.Minute); err != nil && target.Resume == "" {
				t.Fatal(err)
			}
		}
		if target.Key != "" {
			target.Key = key.ID
		}
		named := strings.NewReplacer("KEY", key.ID)
		if said, code := do(t, client, target); code != exit.OK || said != named.Replace(row.done) {
			t.Errorf("%+v: %d, %q; want %q", target, code, said, named.Replace(row.done))
		}
		if said, code := do(t, client, target); code != exit.Nothing || !strings.Contains(said, named.Replace(row.again)) {
			t.Errorf("%+v again: %d, %q; want %q", target, code, said, named.Replace(row.again))
		}
		if target.Key != "" { // the other key of the execution stays valid
			if said, code := do(t, client, Target{BusinessID: "b1", Account: "a1"}); code != exit.OK {
				t.Errorf("the other key: %d %q", code, said)
			}
		}
	}
}

func TestResumingLiftsOnlyTheSuspensionOfAnOperator(t *testing.T) {
	client := openStore(t)
	if _, err := client.TxPipelined(t.Context(), func(pipe redis.Pipeliner) error {
		minter.SuspendIn(t.Context(), pipe, "b1", "a1", minter.ReasonDisabled)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	resume := Target{BusinessID: "b1", Resume: "a1"}
	const still = "it stays suspended: integration_disabled"
	if said, code := do(t, client, resume); code != exit.Nothing || !strings.Contains(said, still) {
		t.Errorf("%d %q", code, said)
	}
	if said, code := do(t, client, Target{BusinessID: "b1", Suspend: "a1"}); code != exit.OK ||
		!strings.Contains(said, "0 valid signed keys") {
		t.Errorf("%d %q", code, said)
	}
	if said, code := do(t, client, resume); code != exit.OK || !strings.Contains(said, still) {
		t.Errorf("%d %q", code, said)
	}
	reasons, err := minter.Suspensions(t.Context(), client, "b1", "a1")
	if err != nil || len(reasons[0]) != 1 || reasons[0][0] != minter.ReasonDisabled {
		t.Errorf("left: %v, %v", reasons, err)
	}
}

func TestAnInvalidIDIsWrongUsageAndAnUnavailableRedisIsNot(t *testing.T) {
	client := openStore(t)
	if said, code := do(t, client, Target{BusinessID: "b1", Execution: "a}b"}); code != exit.Usage ||
		!strings.Contains(said, "execution id") {
		t.Errorf("%d %q", code, said)
	}
	nowhere, err := redisconn.Open(redisconn.Config{URL: "redis://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nowhere.Close() }()
	for _, target := range []Target{{Key: "k"}, {Execution: "e"}, {Suspend: "a"}, {Resume: "a"}} {
		target.BusinessID = "b1"
		if said, code := do(t, nowhere, target); code != exit.Failed ||
			!strings.Contains(said, "redis at 127.0.0.1:1 refused the connection") {
			t.Errorf("%+v: %d %q", target, code, said)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Target{BusinessID: "b1", Key: "k"}).Do(cancelled, client, func(error) {}); exit.Code(err) != exit.Failed {
		t.Errorf("cancelled: exit code %d, %v", exit.Code(err), err)
	}
}
