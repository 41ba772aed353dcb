package minter_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/tombstone"
	"github.com/kizen/kizen-sidecar/minter"
)

// documentedUsers reads the ACL of each role from docs/redis.md: the rules by user, except the one on a Sentinel.
func documentedUsers(t *testing.T) map[string][]string {
	t.Helper()
	users := documentedLines(t)
	delete(users, "kizen-sentinel")
	return users
}

func documentedLines(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	users := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "user" {
			users[fields[1]] = fields[2:]
		}
	}
	return users
}

// duties performs the operations of each role on a vault whose client is logged in as that role. boss may do
// everything.
var duties = map[string]func(t *testing.T, v, boss *vault) error{
	"kizen-sidecar": func(t *testing.T, v, boss *vault) error {
		fresh := on(t, v.redis) // publishes its public key
		for _, m := range []*minter.Minter{v.minter, fresh.minter} {
			lease, err := m.Lease(t.Context(), someone, time.Minute)
			if err != nil {
				return err
			}
			if err := lease.Close(t.Context()); err != nil {
				return err
			}
		}
		once := tombstone.Store{Redis: v.redis}
		if _, err := once.Begun(t.Context(), someone.BusinessID, someone.ExecutionID); err != nil {
			return err
		}
		_, err := once.Begin(t.Context(), someone.BusinessID, someone.ExecutionID, "digest")
		return err
	},
	"kizen-platform": func(t *testing.T, v, boss *vault) error {
		key := boss.mint(t, someone)
		_, err := v.verifier.Verify(t.Context(), key.Token.Reveal(), someone.BusinessID, someone.AccountID)
		if err != nil {
			return err
		}
		defer func() { _ = boss.stored.Delete(t.Context(), integration.BusinessID, integration.AccountID) }()
		stored := boss.create(t)
		_, err = v.verifier.Verify(t.Context(), stored.Token.Reveal(), integration.BusinessID, integration.AccountID)
		return err
	},
	"kizen-accounts": func(t *testing.T, v, boss *vault) error {
		defer func() { _ = boss.stored.Delete(t.Context(), integration.BusinessID, integration.AccountID) }()
		if _, err := v.stored.Create(t.Context(), integration, time.Time{}); err != nil {
			return err
		}
		if _, err := v.stored.Rotate(t.Context(), integration.BusinessID, integration.AccountID, time.Time{}); err != nil {
			return err
		}
		if _, err := v.stored.View(t.Context(), integration.BusinessID, integration.AccountID); err != nil {
			return err
		}
		if _, err := v.stored.Create(t.Context(), integration, time.Time{}); !errors.Is(err, minter.ErrStoredExists) {
			return err // gives up within a transaction, which is UNWATCH
		}
		return v.stored.Delete(t.Context(), integration.BusinessID, integration.AccountID)
	},
	"kizen-operator": func(t *testing.T, v, boss *vault) error {
		r := minter.NewRevoker(v.redis)
		var errs []error
		for _, revoke := range []func() (minter.Revocation, error){
			func() (minter.Revocation, error) { return r.Key(t.Context(), "business-1", boss.mint(t, someone).ID) },
			func() (minter.Revocation, error) { return r.Execution(t.Context(), "business-1", "execution-1") },
			func() (minter.Revocation, error) { return r.Account(t.Context(), "business-1", "account-1") },
			func() (minter.Revocation, error) { return r.Business(t.Context(), "business-1") },
			func() (minter.Revocation, error) { return r.Suspend(t.Context(), "business-1", "account-1") },
		} {
			boss.mint(t, someone) // for the revocation to count
			revoked, err := revoke()
			if err == nil {
				_, err = revoked.Ended(t.Context())
			}
			_, _, resumed := minter.NewRevoker(boss.redis).Resume(t.Context(), "business-1", "account-1")
			errs = append(errs, err, resumed)
		}
		_, _, err := r.Resume(t.Context(), "business-1", "account-1")
		return errors.Join(append(errs, err)...)
	},
}

// loggedIn returns the vault with a client that logs in by url.
func (v *vault) loggedIn(t *testing.T, url string) *vault {
	t.Helper()
	other := *v
	other.redis = open(t, url)
	var err error
	if other.minter, err = minter.New(minter.Config{Redis: other.redis, Keys: v.keys}); err != nil {
		t.Fatal(err)
	}
	if other.verifier, err = minter.NewVerifier(minter.VerifierConfig{Redis: other.redis, Keys: v.keys}); err != nil {
		t.Fatal(err)
	}
	if other.stored, err = minter.NewStoredKeys(other.redis, v.keys); err != nil {
		t.Fatal(err)
	}
	return &other
}

func TestDocumentedACLIsMinimal(t *testing.T) {
	server := redistest.Start(t)
	boss := newVault(t, server.URL())
	users := documentedUsers(t)
	if len(users) != len(duties) {
		t.Fatalf("docs/redis.md has the users %v", users)
	}
	logIn := func(t *testing.T, name string, rules []string) *vault {
		t.Helper()
		server.Do(t, append([]string{"ACL", "SETUSER", name, "reset"}, rules...)...)
		return boss.loggedIn(t, "redis://"+name+":PASSWORD@"+server.Addr)
	}
	for name, rules := range users {
		t.Run(name, func(t *testing.T) {
			v := logIn(t, name, rules)
			if err := duties[name](t, v, boss); err != nil {
				t.Fatalf("under its ACL: %v", err)
			}
			for _, command := range [][]any{{"FLUSHALL"}, {"KEYS", "*"}, {"SCAN", "0"}, {"CONFIG", "GET", "*"},
				{"SET", "other", "x"}, {"MGET", "other"}} {
				if command[0] == "SCAN" && slices.Contains(rules, "+scan") {
					continue // it shows only names of keys
				}
				if err := v.redis.Do(t.Context(), command...).Err(); err == nil ||
					!strings.Contains(err.Error(), "does not let this user do it; docs/redis.md names the ACL that is needed") {
					t.Errorf("%v: %v", command, err)
				}
			}
			for i, rule := range rules {
				if !strings.ContainsAny(rule[:1], "+%~") {
					continue
				}
				less := slices.Delete(slices.Clone(rules), i, i+1)
				server.Do(t, "ACL", "LOG", "RESET")
				// The client hides that UNWATCH was refused. Only the server's log shows it: the connection then fails
				// in its next transaction.
				if err := duties[name](t, logIn(t, name, less), boss); err == nil && server.Do(t, "ACL", "LOG") == "" {
					t.Errorf("%s is not needed", rule)
				}
			}
		})
	}
}

func TestSidecarCanNeitherResumeNorUnrevokeUnderItsACL(t *testing.T) {
	server := redistest.Start(t)
	server.Do(t, append([]string{"ACL", "SETUSER", "kizen-sidecar"}, documentedUsers(t)["kizen-sidecar"]...)...)
	r := minter.NewRevoker(open(t, "redis://kizen-sidecar:PASSWORD@"+server.Addr))
	for name, err := range map[string]error{
		"resume":  func() error { _, _, err := r.Resume(t.Context(), "business-1", "account-1"); return err }(),
		"suspend": errorOf(r.Suspend(t.Context(), "business-1", "account-1")),
		"revoke":  errorOf(r.Account(t.Context(), "business-1", "account-1")),
	} {
		if err == nil {
			t.Errorf("%s: allowed", name)
		}
	}
}

func TestDocumentedACLNeedsOneMoreWordOnACluster(t *testing.T) {
	t.Parallel()
	nodes := redistest.StartCluster(t)
	boss := newVault(t, "redis+cluster://"+nodes[0].Addr)
	for name, rules := range documentedUsers(t) {
		for _, node := range nodes {
			node.Do(t, append([]string{"ACL", "SETUSER", name}, append(rules, "+cluster|slots")...)...)
		}
		if err := duties[name](t, boss.loggedIn(t, "redis+cluster://"+name+":PASSWORD@"+nodes[0].Addr), boss); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDocumentedACLIsMinimalOnASentinel(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Do(t, append([]string{"ACL", "SETUSER", "kizen-sidecar"}, documentedUsers(t)["kizen-sidecar"]...)...)
	sentinel := redistest.StartSentinel(t, "main", server)
	rules := documentedLines(t)["kizen-sentinel"]
	if rules == nil {
		t.Fatal("docs/redis.md has no user kizen-sentinel")
	}
	use := func(rules []string) error {
		sentinel.Do(t, append([]string{"ACL", "SETUSER", "kizen-sentinel", "reset"}, rules...)...)
		url := "redis+sentinel://kizen-sidecar:PASSWORD@" + sentinel.Addr +
			"/main?sentinel_user=kizen-sentinel&sentinel_password=PASSWORD"
		boss := &vault{fixture: onRedis(t, url)}
		return duties["kizen-sidecar"](t, boss, boss)
	}
	if err := use(rules); err != nil {
		t.Fatalf("under its ACL: %v", err)
	}
	redistest.Await(t, "the client to listen for a failover", func() bool {
		return strings.Contains(sentinel.Do(t, "CLIENT", "LIST"), " sub=2 ")
	})
	for i, rule := range rules {
		if !strings.ContainsAny(rule[:1], "+%~&") {
			continue
		}
		sentinel.Do(t, "ACL", "LOG", "RESET")
		err := use(slices.Delete(slices.Clone(rules), i, i+1))
		// The client needs the other commands only at a failover, so only the Sentinel shows that one is refused.
		refused := func() bool { return sentinel.Do(t, "ACL", "LOG") != "" }
		if err == nil {
			redistest.Await(t, "a refusal of a command that needs "+rule, refused)
		}
	}
}

func TestDocumentedACLNeedsOneMoreWordInAnotherDatabase(t *testing.T) {
	server := redistest.Start(t)
	boss := newVault(t, server.URL()+"/3")
	for name, rules := range documentedUsers(t) {
		url := "redis://" + name + ":PASSWORD@" + server.Addr + "/3"
		server.Do(t, append([]string{"ACL", "SETUSER", name}, rules...)...)
		if err := duties[name](t, boss.loggedIn(t, url), boss); err == nil {
			t.Errorf("%s: +select is not needed", name)
		}
		server.Do(t, "ACL", "SETUSER", name, "+select")
		if err := duties[name](t, boss.loggedIn(t, url), boss); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
