package execution

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/proxy"
)

// TestNoKeyIsMintedForAnAccountThatMayNotAct covers every pair of reasons, types without signed keys, and an open
// lease whose account is suspended: its proxy answers 503 with the reasons.
func TestNoKeyIsMintedForAnAccountThatMayNotAct(t *testing.T) {
	host, client := admissionHost(t)
	id := minter.Identity{BusinessID: "b-1", AccountID: "a-1", AccountType: policy.ServiceAutomation, ExecutionID: "e-1"}
	reasons := map[minter.Reason]string{
		minter.ReasonOperator: "an operator suspended it", minter.ReasonDisabled: "its integration is disabled",
		minter.ReasonArchived: "archived",
	}
	change := func(do func(context.Context, redis.Pipeliner, string, string, minter.Reason), all ...minter.Reason) {
		t.Helper()
		if _, err := client.TxPipelined(t.Context(), func(pipe redis.Pipeliner) error {
			for _, reason := range all {
				do(t.Context(), pipe, id.BusinessID, id.AccountID, reason)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for first := range reasons {
		for second := range reasons {
			running, err := host.Open(t.Context(), id, Serving{KeyLifetime: 300 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			change(minter.SuspendIn, first, second)
			_, err = host.Open(t.Context(), id, Serving{KeyLifetime: time.Minute})
			var denied *minter.DeniedError
			if !errors.As(err, &denied) || !strings.Contains(denied.Reason, reasons[first]) && first != minter.ReasonArchived &&
				second != minter.ReasonArchived {
				t.Errorf("%s and %s: minting: %v", first, second, err)
			}
			body := awaitRefusal(t, running.URL()) // at the next renewal
			if !strings.Contains(body, "suspended") && !strings.Contains(body, "archived") {
				t.Errorf("%s and %s: the proxy answers %s", first, second, body)
			}
			running.Close(t.Context(), 0)
			change(minter.LiftIn, first, second)
		}
	}
	id.AccountType = policy.ServiceIntegration
	var denied *minter.DeniedError
	if _, err := host.Open(t.Context(), id, Serving{KeyLifetime: time.Minute}); !errors.As(err, &denied) ||
		denied.Code != policy.CodeKeyKind {
		t.Errorf("a signed key for an integration account: %v", err)
	}
}

func admissionHost(t *testing.T) (*Host, redis.UniversalClient) {
	t.Helper()
	store, err := redisconn.StartEmbedded()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	client, err := redisconn.Open(redisconn.Config{Embedded: store})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	keys, err := minter.GenerateKeySet()
	if err != nil {
		t.Fatal(err)
	}
	engine, err := policy.ForCalls()
	if err != nil {
		t.Fatal(err)
	}
	host, err := NewHost(Config{Redis: client, Keys: keys, Engine: engine,
		Proxy: proxy.Config{APIRoot: &url.URL{Scheme: "http", Host: "127.0.0.1:1"}}})
	if err != nil {
		t.Fatal(err)
	}
	return host, client
}

// awaitRefusal calls until the proxy refuses because it has no key, and returns its response.
func awaitRefusal(t *testing.T, base string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		answer, err := http.Get(base + "/custom-objects")
		if err != nil {
			t.Fatal(err)
		}
		text := new(strings.Builder)
		_ = answer.Write(text) // the test's own response, entirely in memory
		_ = answer.Body.Close()
		if answer.StatusCode == http.StatusServiceUnavailable {
			return text.String()
		}
	}
	t.Fatal("the proxy still uses the key of a suspended account")
	return ""
}
