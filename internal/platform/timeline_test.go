package platform

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

func TestTimelineShowsWhatAnAccountDidNewestFirst(t *testing.T) {
	w := start(t)
	execution := func(id string) http.Header {
		return w.headersFor(w.mint(minter.Identity{AccountID: testAccount, AccountType: policy.ServiceAutomation,
			BusinessID: testBusiness, ExecutionID: id}))
	}
	one, two := execution("one"), execution("two")
	w.want(200, one, "GET", "/custom-objects", "")
	w.want(201, one, "POST", "/records/deals", `{"fields":[]}`)
	w.refused(403, "guardrail", "guardrail.own_api_key", two, "POST", "/api-keys", "")
	w.want(404, two, "GET", "/records/deals/a%2Fb?q=secret", "")
	w.callAs(two, "GET", "/records/deals/"+two.Get(minter.HeaderKey), "")

	calls := func(query string) (calls []string) {
		got := w.want(200, w.person(unprivileged), "GET", "/timeline?account="+testAccount+query, "")
		if about := got.body["account"].(map[string]any); about["name"] != "Agentic Workflow Code Account" ||
			about["account_type"] != policy.ServiceAutomation {
			t.Errorf("the timeline is about %v", about)
		}
		for _, e := range list(got, "results") {
			calls = append(calls, fmt.Sprint(e["execution_id"], " ", e["method"], " ", e["path"], " ", e["status"]))
		}
		return calls
	}
	want := []string{
		"two GET /records/deals/[REDACTED] 404", "two GET /records/deals/a%2Fb 404", "two POST /api-keys 403",
		"one POST /records/deals 201", "one GET /custom-objects 200",
	}
	if got := calls(""); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := calls("&execution=one"); !slices.Equal(got, want[3:]) {
		t.Errorf("of one execution: %q", got)
	}
	if got := calls("&execution=three"); len(got) > 0 {
		t.Errorf("of an unknown execution: %q", got)
	}
}

// ownCalls returns the paths of the account's own calls.
func ownCalls(a answer) (paths []string) {
	for _, e := range list(a, "results") {
		if e["by"] == nil {
			paths = append(paths, e["path"].(string))
		}
	}
	return paths
}

// timelinePages follows next, beginning with the first page.
func timelinePages(w *world, path string) (ids []string, pages int) {
	w.t.Helper()
	for ; path != "" && pages < 50; pages++ {
		got := w.want(200, w.person(unprivileged), "GET", path, "")
		ids = append(ids, column(got, "id")...)
		path = text(got, "next")
	}
	return ids, pages
}

func TestTimelineIsPagedAndCapped(t *testing.T) {
	server := redistest.Start(t)
	at, _ := startPlatform(t, "--redis-url", server.URL())
	w := newWorld(t, at)
	w.want(200, w.headers, "GET", "/custom-objects", "")
	events := timeline{w.redis}
	for i := range 2 * minter.TimelineLength {
		id := identity()
		id.ExecutionID = fmt.Sprint("e", i%10)
		must(t, events.add(t.Context(), id, event{Method: "GET", Path: fmt.Sprint("/x/", i), Status: 200}))
	}
	ids, pages := timelinePages(w, "/timeline?page_size=100&account="+testAccount)
	// Redis drops whole nodes of a stream, of 100 entries each.
	if len(ids) < minter.TimelineLength || len(ids) > minter.TimelineLength+100 || pages < 10 {
		t.Errorf("%d events on %d pages are kept", len(ids), pages)
	}
	if sorted := slices.Compact(slices.Sorted(slices.Values(ids))); len(sorted) != len(ids) {
		t.Errorf("%d of %d events are on two pages", len(ids)-len(sorted), len(ids))
	}
	one, _ := timelinePages(w, "/timeline?page_size=7&execution=e3&account="+testAccount)
	if len(one) < minter.TimelineLength/10 || len(one) > minter.TimelineLength/10+10 {
		t.Errorf("%d events of one execution", len(one))
	}
	for _, path := range []string{"/x/1999", "/x/1990"} {
		if first := w.want(200, w.person(unprivileged), "GET", "/timeline?account="+testAccount, ""); !slices.Contains(column(first, "path"), path) {
			t.Errorf("%s is not among the newest", path)
		}
	}
}

func TestTimelineOutlivesTheAccount(t *testing.T) {
	w := start(t)
	id, headers := w.integrationAccount(`{"name":"Sync"}`)
	w.want(200, headers, "GET", "/team", "")
	w.want(204, w.person(admin), "DELETE", "/service-accounts/"+id, "")
	if got := ownCalls(w.want(200, w.person(unprivileged), "GET", "/timeline?account="+id, "")); !slices.Equal(got,
		[]string{"/team"}) {
		t.Errorf("got %v", got)
	}
	if got := column(w.want(200, w.person(unprivileged), "GET", "/timeline?account="+admin, ""), "path"); !strings.HasPrefix(got[0], "/service-accounts/") {
		t.Errorf("of a person: %v", got)
	}
	w.refused(404, "not_found", "", w.person(unprivileged), "GET", "/timeline?account=stranger", "")
}

func TestTimelineShowsWhatAnOperatorDid(t *testing.T) {
	w := start(t)
	w.want(200, w.headers, "GET", "/custom-objects", "")
	id, _ := w.integrationAccount(`{"name":"Sync"}`)
	r := minter.NewRevoker(w.redis).As("jo@host", func(err error) { t.Error(err) })
	for range 2 { // the second time changes nothing
		_, err := r.Suspend(t.Context(), testBusiness, id)
		must(t, err)
	}
	for range 2 {
		_, _, err := r.Resume(t.Context(), testBusiness, id)
		must(t, err)
	}
	// Revoke the keys of two executions of the account that runs code, then all of its keys. A revocation that ends no
	// key is not shown.
	var keys []minter.Key
	for _, execution := range []string{"e-1", "e-1", "e-2", "e-3"} {
		who := identity()
		who.ExecutionID = execution
		keys = append(keys, w.mint(who))
	}
	for _, revoke := range []func() (minter.Revocation, error){
		func() (minter.Revocation, error) { return r.Execution(t.Context(), testBusiness, "e-1") },
		func() (minter.Revocation, error) { return r.Execution(t.Context(), testBusiness, "e-1") },
		func() (minter.Revocation, error) { return r.Key(t.Context(), testBusiness, keys[2].ID) },
		func() (minter.Revocation, error) { return r.Account(t.Context(), testBusiness, testAccount) },
		func() (minter.Revocation, error) { return r.Account(t.Context(), testBusiness, id) },
	} {
		revoked, err := revoke()
		must(t, err)
		ended, err := revoked.Ended(t.Context())
		must(t, err)
		r.AddToTimelines(t.Context(), revoked, ended)
	}
	var ended []string
	for _, e := range list(w.want(200, w.person(unprivileged), "GET", "/timeline?account="+testAccount, ""), "results") {
		if e["action"] == "operator_revoke" {
			by := e["by"].(map[string]any)
			ended = append(ended, fmt.Sprint(e["execution_id"], " by ", by["name"], by["execution_id"]))
		}
	}
	if want := []string{" by jo@host<nil>", "e-2 by jo@host<nil>", "e-1 by jo@host<nil>"}; !slices.Equal(ended, want) {
		t.Errorf("revocations %q, want %q", ended, want)
	}
	var done []string
	for _, e := range list(w.want(200, w.person(unprivileged), "GET", "/timeline?account="+id, ""), "results") {
		if by, ok := e["by"].(map[string]any); ok && by["account_type"] == "operator" {
			done = append(done, fmt.Sprint(e["action"], " by ", by["name"]))
		}
	}
	if want := []string{"operator_resume by jo@host", "operator_suspend by jo@host"}; !slices.Equal(done, want) {
		t.Errorf("got %q, want %q", done, want)
	}
}
