package platform

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

func TestARefusalNamesThePermissionAndTheLevel(t *testing.T) {
	w := start(t)
	id, _ := w.integrationAccount(`{"name":"x"}`)
	for _, row := range []struct{ as, method, path, needs, has string }{
		{unprivileged, "GET", "/service-accounts", "read", "none"},
		{unprivileged, "GET", "/permission-groups", "read", "none"},
		{viewer, "POST", "/service-accounts/" + id + "/tokens/rotate", "write", "read"},
		{editor, "DELETE", "/service-accounts/" + id, "remove", "write"},
	} {
		got := w.callAs(w.person(row.as), row.method, row.path, "")
		want := fmt.Sprintf("this needs the %s level of the permission MANAGE_SERVICE_ACCOUNTS, and the account's level is %s", row.needs, row.has)
		if got.status != 403 || text(got, "detail") != want {
			t.Errorf("%s %s: %d %v, want %q", row.method, row.path, got.status, got.body, want)
		}
	}
}

func TestAChangeMayContainUnchangedFields(t *testing.T) {
	w := start(t)
	w.want(200, w.headers, "GET", "/custom-objects", "")
	code := w.want(200, w.person(admin), "GET", "/service-accounts/"+testAccount, "")
	same := fmt.Sprintf(`{"name":%q,"api_name":%q,"permission_groups":[],"description":"new"}`, text(code, "name"),
		text(code, "api_name"))
	if got := w.want(200, w.person(editor), "PATCH", "/service-accounts/"+testAccount, same); text(got,
		"description") != "new" {
		t.Errorf("%v", got.body)
	}
	w.refused(403, "guardrail", "guardrail.rename_provisioned_account", w.person(admin), "PATCH",
		"/service-accounts/"+testAccount, `{"api_name":"other"}`)
}

func TestPermissionGroupsArePatchedUnderTheRulesOfPUT(t *testing.T) {
	w := start(t)
	id, headers := w.integrationAccount(`{"name":"x","permission_groups":["service-account-editors"]}`)
	path := "/service-accounts/" + id
	w.refused(403, "guardrail", "guardrail.grant_beyond_own", w.person(editor), "PATCH", path,
		`{"permission_groups":["service-account-admins"]}`)
	w.refused(403, "guardrail", "guardrail.own_permissions", headers, "PATCH", path, `{"permission_groups":[]}`)
	w.want(200, w.person(admin), "PATCH", path, `{"permission_groups":["service-account-admins"]}`)
	w.want(200, w.person(editor), "PATCH", path,
		`{"permission_groups":["service-account-admins"],"description":"unchanged groups"}`)
	if got := w.callAs(w.person(admin), "PATCH", path, `{"permission_groups":["none"]}`); got.status != 400 {
		t.Errorf("an unknown group: %d", got.status)
	}
	got := w.want(200, w.person(admin), "PATCH", path, `{"permission_groups":["everyone","service-account-viewers"]}`)
	if groups := fmt.Sprint(got.body["permission_groups"]); groups != "[everyone service-account-viewers]" {
		t.Errorf("%s", groups)
	}
	all := column(w.want(200, w.person(viewer), "GET", "/permission-groups", ""), "id")
	if !slices.Equal(all, []string{"everyone", "service-account-viewers", "service-account-editors",
		"service-account-admins"}) {
		t.Errorf("the groups are %v", all)
	}
}

func TestNamesHoldNoControlCharacters(t *testing.T) {
	w := start(t)
	for _, name := range []string{`a\u0007b`, `a\nb`, `a\tb`, `a\u001b[31m`, `a\u0085b`, `a\u009bb`, `a\u2028b`,
		`a\u202eb`, `a\u2066b`, `\u0000`} {
		got := w.callAs(w.person(admin), "POST", "/service-accounts", `{"name":"`+name+`"}`)
		if got.status != 400 || got.body["name"] == nil {
			t.Errorf("%s: %d %v", name, got.status, got.body)
		}
	}
	w.want(201, w.person(admin), "POST", "/service-accounts", `{"name":"Zoë \u0e01 日本","description":"two\nlines"}`)
	if got := w.callAs(w.person(admin), "POST", "/service-accounts", `{"name":"x","description":"a\u001bb"}`); got.status != 400 || got.body["description"] == nil {
		t.Errorf("description: %d %v", got.status, got.body)
	}
}

func TestTheDomainOfAddressesIsConfigured(t *testing.T) {
	at, _ := startPlatform(t, "--email-domain", "accounts.example.com")
	w := newWorld(t, at)
	got := w.want(201, w.person(admin), "POST", "/service-accounts", `{"name":"x"}`)
	if email := text(got, "email"); !strings.HasSuffix(email, "@accounts.example.com") {
		t.Errorf("%s", email)
	}
}

// TestHEADAnswersWhatGETDoes requests every readable route, as a caller who may read it and as one who may not.
func TestHEADAnswersWhatGETDoes(t *testing.T) {
	w := start(t)
	id, _ := w.integrationAccount(`{"name":"x"}`)
	integration := w.want(200, w.person(admin), "GET", "/service-accounts/"+id,
		"").body["integration"].(map[string]any)["id"].(string)
	record := text(w.want(201, w.person(admin), "POST", "/records/deals", `{"fields":[]}`), "id")
	outside := strings.TrimSuffix(w.root, apiRoot)
	for route := range describe(t).routes() {
		method, path, _ := strings.Cut(route, " ")
		if method != "GET" {
			continue
		}
		path = strings.NewReplacer("{account}", id, "{integration}", integration, "{object}", "deals", "/team/{id}",
			"/team/"+id, "{id}", record).Replace(path)
		if strings.HasSuffix(path, "/timeline") {
			path += "?account=" + id
		}
		for _, headers := range []http.Header{w.person(admin), w.person(unprivileged)} {
			var answers [2]*http.Response
			for i, method := range []string{"GET", "HEAD"} {
				request, err := http.NewRequestWithContext(t.Context(), method, outside+path, nil)
				must(t, err)
				request.Header = headers
				answers[i], err = http.DefaultClient.Do(request)
				must(t, err)
				must(t, answers[i].Body.Close())
			}
			get, head := answers[0], answers[1]
			if get.StatusCode != head.StatusCode || get.Header.Get("Content-Type") != head.Header.Get("Content-Type") ||
				get.Header.Get("ETag") != head.Header.Get("ETag") {
				t.Errorf("%s: GET answers %d, HEAD %d", path, get.StatusCode, head.StatusCode)
			}
		}
	}
}

func TestTokensExpireAndShowTheirLastUse(t *testing.T) {
	w := start(t)
	id, _ := w.integrationAccount(`{"name":"x"}`)
	tokens := "/service-accounts/" + id + "/tokens"
	unused := list(w.want(200, w.person(viewer), "GET", tokens, ""), "results")[0]
	if unused["last_used_at"] != nil || unused["expires_at"] != nil {
		t.Errorf("a fresh token is %v", unused)
	}
	for body, field := range map[string]string{
		`{"expires_at":"tomorrow"}`: "expires_at", `{"expires_at":"2001-01-01T00:00:00Z"}`: "expires_at",
		`{"expires":1}`: "expires",
	} {
		if got := w.callAs(w.person(admin), "POST", tokens+"/rotate", body); got.status != 400 || got.body[field] == nil {
			t.Errorf("%s: %d %v", body, got.status, got.body)
		}
	}
	expires := time.Now().Add(1500 * time.Millisecond).UTC()
	rotated := w.want(201, w.person(admin), "POST", tokens+"/rotate",
		`{"expires_at":"`+expires.Format(time.RFC3339Nano)+`"}`)
	headers := stored(id, text(rotated, "token"))
	began := time.Now().Add(-time.Second)
	if got := w.callAs(headers, "GET", "/custom-objects", ""); got.status != 200 && time.Now().Before(expires) {
		t.Errorf("before the token expires: %d %v", got.status, got.body)
	}
	views := list(w.want(200, w.person(viewer), "GET", tokens, ""), "results")
	used, err := time.Parse(time.RFC3339, fmt.Sprint(views[0]["last_used_at"]))
	if err != nil || used.Before(began) || used.After(time.Now()) || views[0]["expires_at"] == nil ||
		views[1]["last_used_at"] != nil {
		t.Errorf("the tokens are %v", views)
	}
	for w.callAs(headers, "GET", "/custom-objects", "").status == 200 {
		if time.Now().After(expires.Add(20 * time.Second)) {
			t.Fatal("the token does not expire")
		}
	}
	w.refused(401, minter.CodeExpired, "", headers, "GET", "/custom-objects", "")
}

func TestAPersonDeletesTheirOwnKeys(t *testing.T) {
	w := start(t)
	first := w.want(201, w.person(admin), "POST", "/api-keys", "")
	second := w.want(201, w.person(admin), "POST", "/api-keys", `{"expires_at":null}`)
	w.want(204, w.person(admin), "DELETE", "/api-keys/"+text(second, "id"), "")
	w.refused(401, minter.CodeRevoked, "", stored(admin, text(second, "token")), "GET", "/custom-objects", "")
	w.want(200, stored(admin, text(first, "token")), "GET", "/custom-objects", "")
	w.want(404, w.person(admin), "DELETE", "/api-keys/"+text(second, "id"), "")
	w.want(404, w.person(viewer), "DELETE", "/api-keys/"+text(first, "id"), "") // the key is not the viewer's
	id, headers := w.integrationAccount(`{"name":"x"}`)
	key := list(w.want(200, w.person(viewer), "GET", "/service-accounts/"+id+"/tokens", ""), "results")[0]["id"].(string)
	w.refused(403, "guardrail", "guardrail.delete_own_api_key", headers, "DELETE", "/api-keys/"+key, "")
}

func TestATimelineShowsChangesToTheAccountAndTheirAuthors(t *testing.T) {
	w := start(t)
	id, _ := w.integrationAccount(`{"name":"x"}`)
	path := "/service-accounts/" + id
	w.want(200, w.person(editor), "PATCH", path, `{"name":"y"}`)
	w.want(201, w.person(editor), "POST", path+"/tokens/rotate", "")
	w.want(204, w.person(admin), "DELETE", path+"/tokens/secondary", "")
	w.want(200, w.person(admin), "PUT", path+"/permission-groups", `{"permission_groups":[]}`)
	w.switchIntegration(id, false)
	w.switchIntegration(id, false) // no change, so no event
	w.switchIntegration(id, true)
	w.refused(403, policy.CodeNotPermitted, "", w.person(editor), "DELETE", path, "") // refused, so no event
	w.want(204, w.person(admin), "DELETE", path, "")
	var got []string
	for _, e := range list(w.want(200, w.person(unprivileged), "GET", "/timeline?account="+id, ""), "results") {
		by, _ := e["by"].(map[string]any)
		got = append(got, fmt.Sprint(e["action"], " ", by["name"]))
	}
	slices.Reverse(got)
	want := []string{
		"create_service_account Ada Lovelace", "update_service_account Grace Hopper", "rotate_token Grace Hopper",
		"delete_secondary_token Ada Lovelace",
		"set_permission_groups Ada Lovelace", "disable_integration Ada Lovelace", "enable_integration Ada Lovelace",
		"archive_service_account Ada Lovelace",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
