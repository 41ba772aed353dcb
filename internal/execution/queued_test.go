package execution

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
)

func TestABodyFromTheQueueBecomesARequest(t *testing.T) {
	engine, err := forCalls()
	if err != nil {
		t.Fatal(err)
	}
	secrets, err := ParseSecrets([]byte(`{"b1": {"KEY": "hunter2"}}`))
	if err != nil {
		t.Fatal(err)
	}
	prepare := Queued(engine, secrets, runner.Limits{Wall: time.Minute})
	ms := int64(2000)
	request, err := prepare(Body{
		Runtime: "python-3-13", UserScript: "pass", Secrets: []string{"KEY"}, BusinessID: "b1", UserID: "u1",
		ExecutionID: "e1", Name: "step", TimeoutMS: &ms,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := minter.Identity{BusinessID: "b1", AccountID: "u1", AccountType: "service_automation", ExecutionID: "e1"}
	if request.Identity != want || request.Name != "step" || request.Limits.Wall != 2*time.Second ||
		request.Job.Secrets["KEY"].Reveal() != "hunter2" {
		t.Errorf("%+v", request)
	}
}

func TestEveryMistakeInABodyFromTheQueueIsReported(t *testing.T) {
	engine, err := forCalls()
	if err != nil {
		t.Fatal(err)
	}
	ms := int64(0)
	_, err = Queued(engine, noSecrets, runner.Limits{})(Body{
		Runtime: "ruby", AccountType: "robot", UserID: "a b", BusinessID: "b1", Secrets: []string{"KEY"}, TimeoutMS: &ms,
		CallbackURL: "ftp://x",
	})
	refused, err := json.Marshal(err)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(refused, &fields); err != nil {
		t.Fatalf("%v: %s", err, refused)
	}
	for _, field := range []string{"runtime", "account_type", "user_id", "user_script", "secrets", "timeout_ms",
		"callback_url"} {
		if fields[field] == nil {
			t.Errorf("%s is missing in %s", field, refused)
		}
	}
}
