package platform

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

func TestTokensAreViewedRotatedAndDeleted(t *testing.T) {
	w := start(t)
	id, first := w.integrationAccount(`{"name":"x"}`)
	path := "/service-accounts/" + id + "/tokens"
	if tokens := w.tokens(id); len(tokens) != 1 {
		t.Fatalf("a new account has %d tokens", len(tokens))
	}
	w.refused(404, "not_found", "", w.person(editor), "DELETE", path+"/secondary", "")

	rotated := w.want(201, w.person(editor), "POST", path+"/rotate", "")
	second := stored(id, text(rotated, "token"))
	tokens := w.tokens(id)
	if tokens["primary"] != second.Get(minter.HeaderKey) || tokens["secondary"] != first.Get(minter.HeaderKey) ||
		text(rotated, "kind") != "primary" {
		t.Errorf("after a rotation: %v", rotated.body)
	}
	for name, headers := range map[string]http.Header{"primary": second, "secondary": first} {
		if got := w.callAs(headers, "GET", "/custom-objects", ""); got.status != 200 ||
			got.body["performed_by"].(map[string]any)["id"] != id {
			t.Errorf("the %s: %d %v", name, got.status, got.body)
		}
	}
	third := stored(id, text(w.want(201, w.person(editor), "POST", path+"/rotate", ""), "token"))
	w.refused(401, minter.CodeRevoked, "", first, "GET", "/custom-objects", "") // the old secondary was deleted
	w.want(200, second, "GET", "/custom-objects", "")

	w.want(204, w.person(editor), "DELETE", path+"/secondary", "")
	w.refused(401, minter.CodeRevoked, "", second, "GET", "/custom-objects", "")
	w.want(200, third, "GET", "/custom-objects", "")
	if tokens := w.tokens(id); len(tokens) != 1 || tokens["primary"] != third.Get(minter.HeaderKey) {
		t.Error("the primary is not the only one left")
	}
	for name, got := range map[string]answer{
		"view":   w.want(200, w.person(viewer), "GET", path, ""),
		"rotate": w.want(201, w.person(editor), "POST", path+"/rotate", ""),
	} {
		if got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s may be cached: %v", name, got.header)
		}
	}
}

// TestProcessesThatRotateAtTheSameMomentLeaveAPrimaryAndASecondary lets two platforms on one Redis rotate the token of
// one account concurrently, again and again, while other callers read the tokens.
func TestProcessesThatRotateAtTheSameMomentLeaveAPrimaryAndASecondary(t *testing.T) {
	const rounds, atOnce = 25, 4
	server, dir := redistest.Start(t), keyDirectory(t)
	a := sharing(t, startProcess(t, "--redis-url", server.URL(), "--keys", dir).ready, dir)
	b := a.on(startProcess(t, "--redis-url", server.URL(), "--keys", dir).APIRoot)
	instances := []*world{a, b}
	id, first := a.integrationAccount(`{"name":"x"}`)
	path, editors, viewers := "/service-accounts/"+id+"/tokens", a.person(editor), a.person(viewer)
	a.want(201, editors, "POST", path+"/rotate", "")

	looking, stop := context.WithCancel(t.Context())
	var viewing sync.WaitGroup
	for _, w := range instances {
		viewing.Go(func() {
			for looking.Err() == nil {
				if got := column(w.want(200, viewers, "GET", path, ""), "kind"); !slices.Equal(got,
					[]string{"primary", "secondary"}) {
					t.Errorf("meanwhile the account has the tokens %v", got)
				}
			}
		})
	}
	made := []string{first.Get(minter.HeaderKey)}
	for range rounds {
		tokens := make([]string, atOnce)
		var rotating sync.WaitGroup
		for i := range tokens {
			rotating.Go(func() { tokens[i] = text(instances[i%2].want(201, editors, "POST", path+"/rotate", ""), "token") })
		}
		rotating.Wait()
		made = append(made, tokens...)
		left := a.tokens(id)
		if !slices.Contains(tokens, left["primary"]) || !slices.Contains(tokens, left["secondary"]) ||
			left["primary"] == left["secondary"] {
			t.Fatal("the remaining two tokens are not from this round")
		}
		for i, token := range tokens {
			want := 401
			if token == left["primary"] || token == left["secondary"] {
				want = 200
			}
			instances[i/2].want(want, stored(id, token), "GET", "/custom-objects", "")
		}
	}
	stop()
	viewing.Wait()

	left := b.tokens(id)
	for i, token := range made {
		if token != left["primary"] && token != left["secondary"] {
			instances[i%2].refused(401, minter.CodeRevoked, "", stored(id, token), "GET", "/custom-objects", "")
		}
	}
	if hashes := a.redis.Keys(t.Context(), "*:storedhash:*").Val(); len(left) != 2 || len(hashes) != 2 {
		t.Errorf("%d tokens and %d hashes in Redis are left", len(left), len(hashes))
	}
}

func TestAServiceAccountCannotCreateAKeyForItself(t *testing.T) {
	w := start(t)
	for _, kind := range policy.AccountTypes() {
		if kind.Service() {
			c := w.callerAt(kind, policy.Remove)
			if got := c.call("POST", "/api-keys", ""); got.status != 403 || got.body["policy"] != "guardrail.own_api_key" {
				t.Errorf("%s creates an API key: %d %v", kind.Name, got.status, got.body)
			}
			if got := c.call("POST", "/service-accounts/"+c.id+"/tokens/rotate", ""); got.status != 403 ||
				got.body["code"] != "guardrail" {
				t.Errorf("%s rotates its own token: %d %v", kind.Name, got.status, got.body)
			}
		}
	}
}

func TestAPersonCreatesAnAPIKeyThatWorks(t *testing.T) {
	w := start(t)
	created := w.want(201, w.person(unprivileged), "POST", "/api-keys", "")
	own := stored(unprivileged, text(created, "token"))
	if got := w.want(200, own, "GET", "/custom-objects", ""); got.body["performed_by"].(map[string]any)["name"] != "Edsger Dijkstra" {
		t.Errorf("the key acts as %v", got.body["performed_by"])
	}
	own.Set(minter.HeaderUser, admin)
	w.refused(401, minter.CodeUser, "", own, "GET", "/custom-objects", "")
}

func TestAnEndedKeyIsRefusedOnTheNextRequest(t *testing.T) {
	const objects = "/custom-objects"
	for name, c := range map[string]struct {
		code string
		act  func(w *world, id string, headers http.Header)
	}{
		"suspended": {minter.CodeSuspended, func(w *world, id string, _ http.Header) { w.switchIntegration(id, false) }},
		"archived": {"", func(w *world, id string, _ http.Header) {
			w.want(204, w.person(admin), "DELETE", "/service-accounts/"+id, "")
		}},
		"rotated out": {minter.CodeRevoked, func(w *world, id string, _ http.Header) {
			for range 2 {
				w.want(201, w.person(editor), "POST", "/service-accounts/"+id+"/tokens/rotate", "")
			}
		}},
		"deleted as secondary": {minter.CodeRevoked, func(w *world, id string, _ http.Header) {
			w.want(201, w.person(editor), "POST", "/service-accounts/"+id+"/tokens/rotate", "")
			w.want(204, w.person(editor), "DELETE", "/service-accounts/"+id+"/tokens/secondary", "")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t)
			id, headers := w.integrationAccount(`{"name":"x"}`)
			w.want(200, headers, "GET", objects, "")
			c.act(w, id, headers)
			got := w.callAs(headers, "GET", objects, "")
			if got.status != 401 || c.code != "" && got.body["code"] != c.code {
				t.Errorf("the next request: %d %v", got.status, got.body)
			}
			w.root = strings.TrimSuffix(w.root, apiRoot)
			if got := w.callAs(headers, "GET", "/verify", ""); got.status != 401 {
				t.Errorf("the next check: %d %v", got.status, got.body)
			}
		})
	}
	t.Run("signed keys", func(t *testing.T) {
		w := start(t)
		revoker := minter.NewRevoker(w.redis)
		for name, revoke := range map[string]func(key minter.Key) error{
			"the key": func(key minter.Key) error { return w.minter.Revoke(t.Context(), key) },
			"the execution": func(key minter.Key) error {
				_, err := revoker.Execution(t.Context(), testBusiness, key.Identity.ExecutionID)
				return err
			},
			"the account": func(minter.Key) error {
				_, err := revoker.Account(t.Context(), testBusiness, testAccount)
				return err
			},
			"the business": func(minter.Key) error {
				_, err := revoker.Business(t.Context(), testBusiness)
				return err
			},
			"suspension": func(minter.Key) error {
				_, err := revoker.Suspend(t.Context(), testBusiness, testAccount)
				return err
			},
		} {
			_, _, err := revoker.Resume(t.Context(), testBusiness, testAccount)
			must(t, err)
			key := w.mint(identity())
			w.want(200, w.headersFor(key), "GET", objects, "")
			must(t, revoke(key))
			if got := w.callAs(w.headersFor(key), "GET", objects, ""); got.status != 401 {
				t.Errorf("after %s was revoked: %d", name, got.status)
			}
		}
	})
}

func TestAResumedAccountKeepsItsToken(t *testing.T) {
	w := start(t)
	id, headers := w.integrationAccount(`{"name":"x"}`)
	w.switchIntegration(id, false)
	w.refused(401, minter.CodeSuspended, "", headers, "GET", "/custom-objects", "")
	w.switchIntegration(id, true)
	w.want(200, headers, "GET", "/custom-objects", "")
	if got := w.want(200, w.person(viewer), "GET", "/service-accounts/"+id, ""); text(got, "status") != statusActive {
		t.Errorf("status %v", got.body["status"])
	}
}

// TestNoTokenIsEverLogged runs the platform at its most verbose log level.
func TestNoTokenIsEverLogged(t *testing.T) {
	t.Setenv("KIZEN_LOG", "debug")
	w := start(t)
	id, headers := w.integrationAccount(`{"name":"x"}`)
	token := headers.Get(minter.HeaderKey)
	w.callAs(headers, "GET", "/custom-objects?page="+token, "")
	w.callAs(headers, "GET", "/records/deals/"+token, "")
	w.want(201, w.person(admin), "POST", "/service-accounts/"+id+"/tokens/rotate", "")
	signed := w.headers.Get(minter.HeaderKey)
	w.call("GET", "/custom-objects?page="+signed, "")
	w.call("GET", "/"+signed, "")
	log := w.log.String()
	if !strings.Contains(log, `"route":"/api/custom-objects"`) {
		t.Fatalf("the log does not contain the calls:\n%s", log)
	}
	for _, secret := range append([]string{token, signed}, w.tokens(id)["primary"]) {
		if strings.Contains(log, secret) {
			t.Error("the log contains a token")
		}
	}
}
