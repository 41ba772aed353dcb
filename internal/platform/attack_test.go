package platform

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/minter"
)

// attackedWorld is a platform in a process of its own, on a Redis that an attacker may write to. The attacker does not
// have the directory of keys.
func attackedWorld(t *testing.T) (w *world, bench *attacks.Workbench) {
	t.Helper()
	server, dir := redistest.Start(t), keyDirectory(t)
	w = sharing(t, startProcess(t, "--redis-url", server.URL(), "--keys", dir).ready, dir)
	files, err := filepath.Glob(filepath.Join(dir, "*.jwk"))
	must(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(t, err)
		var jwk struct{ Kty, Kid, D string }
		must(t, json.Unmarshal(text, &jwk))
		if jwk.Kty != "OKP" {
			continue
		}
		seed, err := base64.RawURLEncoding.DecodeString(jwk.D)
		must(t, err)
		bench = attacks.NewWorkbench(attacks.Workbench{
			Good: w.headers.Get(minter.HeaderKey), KeyID: jwk.Kid, Trusted: ed25519.NewKeyFromSeed(seed),
			Audience: minter.DefaultAudience, Leeway: minter.DefaultLeeway,
		})
	}
	if bench == nil {
		t.Fatal("there is no signing key")
	}
	return w, bench
}

// verifier returns the world at the root of the platform, where /verify is.
func (w *world) verifier() *world { return w.on(strings.TrimSuffix(w.root, apiRoot)) }

func (w *world) with(token string) http.Header {
	h := w.headers.Clone()
	h.Set(minter.HeaderKey, token)
	return h
}

// requireRefused fails unless the API and /verify refuse a token and accept the valid one.
func (w *world) requireRefused(what, token string) {
	w.t.Helper()
	for door, at := range map[string]*world{"the API": w, "/verify": w.verifier()} {
		path := map[string]string{"the API": "/custom-objects", "/verify": "/verify"}[door]
		if got := at.callAs(w.with(token), "GET", path, ""); got.status < 400 || got.status >= 500 {
			w.t.Errorf("%s at %s: %d %v", what, door, got.status, got.body)
		}
		if got := at.callAs(w.headers, "GET", path, ""); got.status != 200 {
			w.t.Errorf("after %s, the valid key at %s: %d %v", what, door, got.status, got.body)
		}
	}
}

// TestThePlatformRefusesForgedKeys sends every forged key of the corpus to the API and to /verify of a running
// platform.
func TestThePlatformRefusesForgedKeys(t *testing.T) {
	w, bench := attackedWorld(t)
	w.want(200, w.with(bench.Unchanged()), "GET", "/custom-objects", "")
	for _, token := range bench.Tokens() {
		if strings.TrimSpace(token.Text) != token.Text || len(token.Text) > 512<<10 { // HTTP strips or limits
			continue
		}
		w.requireRefused(token.Name, token.Text)
	}
}

// TestWritingToRedisMakesNoKeyValid: an attacker who can write anything to Redis lacks the keys that sign and seal.
func TestWritingToRedisMakesNoKeyValid(t *testing.T) {
	w, bench := attackedWorld(t)
	prefix := "kizen:{" + testBusiness + "}:"
	set := func(name, value string) {
		t.Helper()
		must(t, w.redis.Set(t.Context(), prefix+name, value, time.Minute).Err())
	}
	records := w.redis.Keys(t.Context(), prefix+"key:*").Val()
	var record string
	for _, name := range records {
		if value := w.redis.Get(t.Context(), name).Val(); strings.Contains(value, testAccount) {
			record = value
		}
	}
	if record == "" {
		t.Fatal("the valid key has no record")
	}

	// Records for the attacker's own keys, and the attacker's public key.
	claims := map[string]any{"jti": "MALLORY"}
	set("key:MALLORY", record)
	set("jwk:mallory",
		`{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","kid":"mallory","x":"`+base64.RawURLEncoding.EncodeToString(bench.OwnPublic())+`"}`)
	set("jwk:"+bench.KeyID,
		`{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","kid":"`+bench.KeyID+`","x":"`+base64.RawURLEncoding.EncodeToString(bench.OwnPublic())+`"}`)
	w.requireRefused("a record and our key's id", bench.Own(bench.KeyID, claims))
	w.requireRefused("a record and a published key", bench.Own("mallory", claims))
	w.requireRefused("a record and no signature", bench.Unsigned(claims))

	// The record of the most privileged account, as the record of a key of the least privileged one.
	least, mighty := w.person(unprivileged), w.person(admin)
	w.want(403, least, "POST", "/service-accounts", `{"name":"x"}`)
	var ofMighty, nameOfLeast string
	for _, name := range w.redis.Keys(t.Context(), prefix+"key:*").Val() {
		switch value := w.redis.Get(t.Context(), name).Val(); {
		case strings.Contains(value, admin):
			ofMighty = value
		case strings.Contains(value, unprivileged):
			nameOfLeast = name
		}
	}
	if ofMighty == "" || nameOfLeast == "" {
		t.Fatal("the keys of people have no records")
	}
	must(t, w.redis.Set(t.Context(), nameOfLeast, ofMighty, time.Minute).Err())
	w.want(401, least, "POST", "/service-accounts", `{"name":"x"}`)
	asMighty := least.Clone()
	asMighty.Set(minter.HeaderUser, admin)
	w.want(401, asMighty, "POST", "/service-accounts", `{"name":"x"}`)

	// The stored keys of one account in place of another's, and a lifetime longer than the sealed one.
	id, headers := w.integrationAccount(`{"name":"Sync"}`)
	other, otherHeaders := w.integrationAccount(`{"name":"Stock"}`)
	sealed := w.redis.Get(t.Context(), prefix+"stored:"+id).Val()
	must(t, w.redis.Set(t.Context(), prefix+"stored:"+other, sealed, 0).Err())
	if got := w.callAs(mighty, "GET", "/service-accounts/"+other+"/tokens", ""); got.status < 400 {
		t.Errorf("the keys of another account are shown: %v", got.body)
	}
	swapped := stored(other, headers.Get(minter.HeaderKey))
	w.refused(401, minter.CodeUser, "", swapped, "GET", "/custom-objects", "")
	hashes := w.redis.Keys(t.Context(), prefix+"storedhash:*").Val()
	if len(hashes) != 2 {
		t.Fatalf("hashes %v", hashes)
	}
	first, second := w.redis.Get(t.Context(), hashes[0]).Val(), w.redis.Get(t.Context(), hashes[1]).Val()
	must(t, w.redis.MSet(t.Context(), hashes[0], second, hashes[1], first).Err())
	for _, h := range []http.Header{headers, otherHeaders, swapped, stored(id, otherHeaders.Get(minter.HeaderKey))} {
		w.refused(401, minter.CodeRevoked, "", h, "GET", "/custom-objects", "")
	}
	must(t, w.redis.MSet(t.Context(), hashes[0], first, hashes[1], second).Err())
	w.want(200, headers, "GET", "/custom-objects", "")
}

// TestNonsenseInRedisDoesNotCrashThePlatform replaces each value that the platform stores by nonsense, and by values of
// other types.
func TestNonsenseInRedisDoesNotCrashThePlatform(t *testing.T) {
	w, _ := attackedWorld(t)
	id, headers := w.integrationAccount(`{"name":"Sync"}`)
	people := w.person(admin)
	w.want(200, headers, "GET", "/custom-objects", "")
	// An unknown key, which no value in Redis may make valid.
	stranger := stored(id, "kizen_"+strings.Repeat("A", 43)+"000000")
	tamper := map[string]func(name string) error{
		"a list instead": func(name string) error { return w.redis.RPush(t.Context(), name, "x").Err() },
		"a hash instead": func(name string) error { return w.redis.HSet(t.Context(), name, "x", "y").Err() },
	}
	for what, value := range attacks.Nonsense() {
		tamper[what] = func(name string) error { return w.redis.Set(t.Context(), name, value, time.Minute).Err() }
	}
	names := w.redis.Keys(t.Context(), "*").Val()
	if len(names) < 6 {
		t.Fatalf("the platform keeps %v", names)
	}
	for _, name := range names {
		kept, err := w.redis.Dump(t.Context(), name).Bytes()
		if err != nil {
			continue // it has expired
		}
		for what, put := range tamper {
			must(t, w.redis.Del(t.Context(), name).Err())
			must(t, put(name))
			for _, call := range []struct {
				as     http.Header
				method string
				path   string
				body   string
			}{
				{headers, "GET", "/custom-objects", ""}, {w.headers, "GET", "/custom-objects", ""},
				{people, "GET", "/service-accounts", ""},
				{people, "GET", "/service-accounts/" + id, ""}, {people, "GET", "/service-accounts/" + id + "/tokens", ""},
				{people, "GET", "/timeline?account=" + id, ""},
				{people, "PATCH", "/service-accounts/" + id, `{"name":"Sync"}`},
			} {
				if got := w.callAs(call.as, call.method, call.path, call.body); got.status == 0 || got.body == nil {
					t.Errorf("%s for %s: %s %s: %d %v", what, name, call.method, call.path, got.status, got.body)
				}
			}
			if got := w.callAs(stranger, "GET", "/custom-objects", ""); got.status == 200 {
				t.Errorf("%s for %s makes an unknown key valid", what, name)
			}
			must(t, w.redis.Del(t.Context(), name).Err())
			must(t, w.redis.RestoreReplace(t.Context(), name, 0, string(kept)).Err())
		}
	}
	w.want(200, headers, "GET", "/custom-objects", "")
	w.want(200, people, "GET", "/service-accounts/"+id+"/tokens", "")
}

// TestConcurrentRotationsDeletionsAndChecksAgree uses two platforms. After one has answered a change, both must apply
// it. A check must succeed or refuse the key; it must not fail otherwise.
func TestConcurrentRotationsDeletionsAndChecksAgree(t *testing.T) {
	const rounds = 40
	server, dir := redistest.Start(t), keyDirectory(t)
	a := sharing(t, startProcess(t, "--redis-url", server.URL(), "--keys", dir).ready, dir)
	b := a.on(startProcess(t, "--redis-url", server.URL(), "--keys", dir).APIRoot)
	doors := []*world{a, b}
	id, first := a.integrationAccount(`{"name":"x"}`)
	path, editors, admins := "/service-accounts/"+id, a.person(editor), a.person(admin)

	var mu sync.Mutex
	dead := map[string]bool{} // tokens that an answer has reported as ended
	live := map[string]bool{first.Get(minter.HeaderKey): true}
	looking, stop := context.WithCancel(t.Context())
	var checking sync.WaitGroup
	for i := range 6 {
		checking.Go(func() {
			for looking.Err() == nil {
				mu.Lock()
				wasDead := maps.Clone(dead)
				all := slices.Concat(slices.Collect(maps.Keys(live)), slices.Collect(maps.Keys(dead)))
				mu.Unlock()
				for _, token := range all[max(0, len(all)-8):] {
					got := doors[i%2].callAs(stored(id, token), "GET", "/custom-objects", "")
					switch {
					case wasDead[token] && got.status != 401:
						t.Errorf("the check of an ended token answers %d %v", got.status, got.body)
					case got.status != 200 && got.status != 401:
						t.Errorf("a check answers %d %v", got.status, got.body)
					}
				}
			}
		})
	}
	primary, secondary := first.Get(minter.HeaderKey), ""
	for round := range rounds {
		at, other := doors[round%2], doors[(round+1)%2]
		token := text(at.want(201, editors, "POST", path+"/tokens/rotate", ""), "token")
		mu.Lock()
		if secondary != "" {
			dead[secondary] = true
			delete(live, secondary)
		}
		live[token] = true
		mu.Unlock()
		primary, secondary = token, primary
		other.want(200, stored(id, primary), "GET", "/custom-objects", "")
		other.want(200, stored(id, secondary), "GET", "/custom-objects", "")
		switch round % 4 {
		case 1: // the secondary is deleted while the integration is disabled
			var both sync.WaitGroup
			both.Go(func() { at.want(204, editors, "DELETE", path+"/tokens/secondary", "") })
			both.Go(func() { other.switchIntegration(id, false) })
			both.Wait()
			mu.Lock()
			dead[secondary] = true
			delete(live, secondary)
			mu.Unlock()
			at.refused(401, minter.CodeSuspended, "", stored(id, primary), "GET", "/custom-objects", "")
			at.want(401, stored(id, secondary), "GET", "/custom-objects", "")
			at.switchIntegration(id, true)
			other.want(200, stored(id, primary), "GET", "/custom-objects", "")
			other.want(401, stored(id, secondary), "GET", "/custom-objects", "")
			secondary = ""
		case 3: // an operator revokes signed keys while stored keys are checked
			person := a.mint(minter.Identity{AccountID: admin, AccountType: "employee", BusinessID: testBusiness,
				ExecutionID: "execution-race"})
			headers := a.headersFor(person)
			other.want(200, headers, "GET", "/service-accounts", "")
			must(t, a.minter.Revoke(t.Context(), person))
			other.want(401, headers, "GET", "/service-accounts", "")
			at.want(401, headers, "GET", "/service-accounts", "")
		}
	}
	a.want(204, admins, "DELETE", path, "")
	mu.Lock()
	for token := range live {
		dead[token] = true
	}
	mu.Unlock()
	for token := range dead {
		b.want(401, stored(id, token), "GET", "/custom-objects", "")
	}
	stop()
	checking.Wait()
}
