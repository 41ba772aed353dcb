package platform

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

// outside returns a world whose paths begin at the root of the platform.
func (w *world) outside() *world { return w.on(strings.TrimSuffix(w.root, apiRoot)) }

// entries are the two places that check a key. Each returns the code of the refusal, or "" if the key is accepted.
var entries = map[string]func(w *world, headers http.Header) string{
	"API": func(w *world, headers http.Header) string {
		return text(w.callAs(headers, "GET", "/custom-objects", ""), "code")
	},
	"/verify": func(w *world, headers http.Header) string {
		return text(w.outside().callAs(headers, "GET", "/verify", ""), "error")
	},
}

// TestEveryPairOfReasonsSuspendsAtEveryEntryUntilBothAreLifted sets every pair of reasons in both orders, and lifts
// them in both orders.
func TestEveryPairOfReasonsSuspendsAtEveryEntryUntilBothAreLifted(t *testing.T) {
	w := start(t)
	id, headers := w.integrationAccount(`{"name":"x"}`)
	revoker := minter.NewRevoker(w.redis)
	type reason struct {
		name      minter.Reason
		set, lift func()
	}
	operator := reason{
		minter.ReasonOperator,
		func() { _, err := revoker.Suspend(t.Context(), testBusiness, id); must(t, err) },
		func() { _, _, err := revoker.Resume(t.Context(), testBusiness, id); must(t, err) },
	}
	disabled := reason{minter.ReasonDisabled, func() { w.switchIntegration(id, false) },
		func() { w.switchIntegration(id, true) }}
	expect := func(step string, want ...minter.Reason) {
		t.Helper()
		code, status := "", statusActive
		if len(want) > 0 {
			code, status = policy.CodeSuspended, statusSuspended
		}
		for entry, ask := range entries {
			if got := ask(w, headers); got != code {
				t.Errorf("%s: %s answers %q, want %q", step, entry, got, code)
			}
		}
		signed := identity()
		signed.AccountID = id
		if _, err := w.minter.Mint(t.Context(), signed, time.Minute); (err != nil) != (code != "") {
			t.Errorf("%s: minting: %v", step, err)
		}
		got := w.want(200, w.person(viewer), "GET", "/service-accounts/"+id, "")
		var reasons []minter.Reason
		for _, name := range got.body["suspended_for"].([]any) {
			reasons = append(reasons, minter.Reason(name.(string)))
		}
		slices.Sort(reasons)
		slices.Sort(want)
		if text(got, "status") != status || !slices.Equal(reasons, want) {
			t.Errorf("%s: the account is %v for %v, want %s for %v", step, got.body["status"], reasons, status, want)
		}
	}
	for _, first := range []reason{operator, disabled} {
		for _, second := range []reason{operator, disabled} {
			for _, lifted := range []reason{first, second} {
				left := second
				if lifted.name == second.name {
					left = first
				}
				name := string(first.name + ", " + second.name + ", lifting " + lifted.name)
				expect(name + ": before")
				first.set()
				expect(name+": the first", first.name)
				second.set()
				if first.name != second.name {
					expect(name+": both", first.name, second.name)
				}
				lifted.lift()
				if first.name != second.name {
					expect(name+": one", left.name)
				}
				left.lift()
				expect(name + ": none")
			}
		}
	}
}

func TestANoOpChangeOfAnIntegrationLiftsNothing(t *testing.T) {
	w := start(t)
	id, headers := w.integrationAccount(`{"name":"x"}`)
	_, err := minter.NewRevoker(w.redis).Suspend(t.Context(), testBusiness, id)
	must(t, err)
	w.switchIntegration(id, true) // it is enabled
	for entry, ask := range entries {
		if got := ask(w, headers); got != policy.CodeSuspended {
			t.Errorf("%s answers %q", entry, got)
		}
	}
	if got := w.callAs(headers, "GET", "/custom-objects", ""); !strings.Contains(text(got, "detail"),
		"an operator suspended it") {
		t.Errorf("the refusal does not say why: %v", got.body)
	}
}

// TestEveryEntryRefusesTheSameKeys sends the keys of accounts that may not act to the API and to /verify.
func TestEveryEntryRefusesTheSameKeys(t *testing.T) {
	w := start(t)
	w.want(200, w.headers, "GET", "/custom-objects", "") // the business has its Code Account
	id, _ := w.integrationAccount(`{"name":"x"}`)
	archived, keyOfArchived := w.integrationAccount(`{"name":"y"}`)
	w.want(204, w.person(admin), "DELETE", "/service-accounts/"+archived, "")
	for name, row := range map[string]struct {
		headers http.Header
		want    string
	}{
		"a signed key of an integration account": {w.signed(id, policy.ServiceIntegration), policy.CodeKeyKind},
		"a second Code Account":                  {w.signed("another", policy.ServiceAutomation), policy.CodeUnknownAccount},
		"an unknown employee":                    {w.signed("somebody", policy.Employee), policy.CodeUnknownAccount},
		"an unknown type":                        {w.signed("robot", "service_robot"), policy.CodeUnknownAccount},
		"another type than the account's":        {w.signed(id, policy.ServicePlugin), policy.CodeUnknownAccount},
		"an archived account":                    {keyOfArchived, minter.CodeRevoked},
		"the Code Account":                       {w.headers, ""},
		"an employee":                            {w.person(unprivileged), ""},
	} {
		for entry, ask := range entries {
			if got := ask(w, row.headers); got != row.want {
				t.Errorf("%s at %s: %q, want %q", name, entry, got, row.want)
			}
		}
	}
}

func TestVerifyReturnsNoIdentityOfAnAccountThatMayNotAct(t *testing.T) {
	w := start(t)
	id, headers := w.integrationAccount(`{"name":"x"}`)
	w.switchIntegration(id, false)
	_, _, err := minter.NewRevoker(w.redis).Resume(t.Context(), testBusiness, id)
	must(t, err)
	got := w.outside().callAs(headers, "GET", "/verify", "")
	if got.status != 401 || got.header.Get(minter.HeaderVerifiedBusiness) != "" ||
		got.header.Get(minter.HeaderAccount) != "" {
		t.Errorf("%d %v", got.status, got.header)
	}
}
