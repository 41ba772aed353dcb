package main

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/minter"
)

// keysCommandLine runs kizen-sidecar keys within this process.
func keysCommandLine(t *testing.T, arguments ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), append([]string{"keys"}, arguments...), streams{strings.NewReader(""), &stdout, &stderr})
	return outcome{code, stdout.String(), stderr.String()}
}

// kid runs a command that prints one id.
func kid(t *testing.T, arguments ...string) string {
	t.Helper()
	done := keysCommandLine(t, arguments...)
	if done.code != exitOK || strings.Count(done.stdout, "\n") != 1 {
		t.Fatalf("keys %v: %+v", arguments, done)
	}
	return strings.TrimSpace(done.stdout)
}

// TestKeysAreGeneratedListedAndRotated: list and jwks read the key files that generate and rotate wrote, in their
// order, and the JWK set contains no private key.
func TestKeysAreGeneratedListedAndRotated(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	first := kid(t, "generate", "--keys", dir)
	sealing := kid(t, "generate", "--keys", dir, "--sealing")
	second := kid(t, "rotate", "--keys", dir)
	later := kid(t, "rotate", "--keys", dir, "--delay", "1h")

	var listed []minter.KeyInfo
	if done := keysCommandLine(t, "list", "--keys", dir, "--json"); json.Unmarshal([]byte(done.stdout), &listed) != nil {
		t.Fatalf("%+v", done)
	}
	want := []struct {
		id, use string
		current bool
	}{{first, "sign", false}, {second, "sign", true}, {later, "sign", false}, {sealing, "seal", true}}
	for i, key := range listed {
		if len(listed) != len(want) || key.ID != want[i].id || key.Use != want[i].use || key.Current != want[i].current {
			t.Fatalf("listed %+v, want %+v", listed, want)
		}
	}
	if table := keysCommandLine(t, "list", "--keys", dir).stdout; strings.Count(table, "\n") != 5 ||
		strings.Count(table, "yes") != 2 {
		t.Errorf("the table is\n%s", table)
	}
	set := keysCommandLine(t, "jwks", "--keys", dir)
	for id, public := range map[string]bool{first: true, second: true, later: true, sealing: false} {
		if strings.Contains(set.stdout, id) != public {
			t.Errorf("%s in the JWK set: want %v\n%s", id, public, set.stdout)
		}
	}
	if strings.Contains(set.stdout, `"d"`) || strings.Contains(set.stdout, `"k"`) {
		t.Errorf("the JWK set holds a private key\n%s", set.stdout)
	}
}

// TestGeneratedKeyIsPrintedForAnEnvironment: the output of keys generate is a valid value of the environment variable
// that lists and signs with it.
func TestGeneratedKeyIsPrintedForAnEnvironment(t *testing.T) {
	done := keysCommandLine(t, "generate")
	if done.code != exitOK || done.stderr != "" {
		t.Fatalf("%+v", done)
	}
	t.Setenv(signingKeysVariable, done.stdout)
	if listed := keysCommandLine(t, "list"); listed.code != exitOK || !strings.Contains(listed.stdout, "sign") {
		t.Errorf("%+v", listed)
	}
}

// TestMistakesWithKeysAreOneLine: each mistake with keys gives exit code 2 and one line that says what to do. An
// unreachable Redis gives the exit code of a sidecar's failure.
func TestMistakesWithKeysAreOneLine(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	kid(t, "generate", "--keys", dir)
	for name, row := range map[string]struct {
		arguments []string
		want      string
	}{
		"generate twice":      {[]string{"generate", "--keys", dir}, "already has such a key; use kizen-sidecar keys rotate"},
		"rotate nothing":      {[]string{"rotate", "--keys", other}, "has no such key yet; use kizen-sidecar keys generate"},
		"list nothing":        {[]string{"list"}, "no keys given"},
		"list an empty place": {[]string{"list", "--keys", other}, "it contains no key"},
		"list no place":       {[]string{"list", "--keys", filepath.Join(other, "none")}, "there are no keys at"},
		"revoke nothing":      {[]string{"revoke", "--redis-url", "redis://127.0.0.1:1"}, "--execution"},
		"revoke two things": {[]string{"revoke", "--redis-url", "redis://127.0.0.1:1", "--key", "a", "--execution", "b"},
			"--execution"},
		"revoke without id": {[]string{"revoke", "--redis-url", "redis://127.0.0.1:1", "--business-id", "b", "--execution",
			"a}b"}, "execution id"},
		"revoke nowhere": {[]string{"revoke", "--execution", "a", "--business-id", "b"}, "--redis-url"},
		"revoke whose": {[]string{"revoke", "--redis-url", "redis://127.0.0.1:1", "--execution", "a"},
			"--business-id"},
		"suspend whose": {[]string{"revoke", "--redis-url", "redis://127.0.0.1:1", "--suspend", "a"}, "--business-id"},
	} {
		done := keysCommandLine(t, row.arguments...)
		if done.code != exitUsage || !strings.Contains(done.stderr, row.want) ||
			strings.Count(strings.TrimSpace(done.stderr), "\n") != 0 {
			t.Errorf("%s: %+v, want exit code 2 and one line about %q", name, done, row.want)
		}
	}
	done := keysCommandLine(t, "revoke", "--redis-url", "redis://127.0.0.1:1", "--business-id", "b", "--execution", "a")
	if done.code != exitSidecar || !strings.Contains(done.stderr, "redis at 127.0.0.1:1 refused the connection") {
		t.Errorf("without redis: %+v", done)
	}
}

// TestKeysAreRevokedFromTheCommandLine: keys revoke makes a minted key invalid for every verifier, by key, execution,
// account or business. The command, a real Redis and the verifier meet.
func TestKeysAreRevokedFromTheCommandLine(t *testing.T) {
	url := redistest.Start(t).URL()
	client, err := redisconn.Open(redisconn.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	keys, err := minter.GenerateKeySet()
	if err != nil {
		t.Fatal(err)
	}
	m, err := minter.New(minter.Config{Redis: client, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	v, err := minter.NewVerifier(minter.VerifierConfig{Redis: client, TrustPublished: true})
	if err != nil {
		t.Fatal(err)
	}
	id := minter.Identity{AccountID: "a1", AccountType: "service_automation", BusinessID: "b1", ExecutionID: "e1"}
	for _, what := range [][]string{{"--key", ""}, {"--execution", "e1"}, {"--account", "a1"}, {"--business", "b1"},
		{"--suspend", "a1"}} {
		key, err := m.Mint(t.Context(), id, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(t.Context(), key.Token.Reveal(), "b1", "a1"); err != nil {
			t.Fatal(err)
		}
		if what[0] == "--key" {
			what[1] = key.ID
		}
		command := append([]string{"revoke", "--redis-url", url, "--business-id", "b1"}, what...)
		if done := keysCommandLine(t, command...); done.code != exitOK ||
			!strings.Contains(done.stdout, "1 valid signed key") {
			t.Fatalf("%v: %+v", what, done)
		}
		if _, err := v.Verify(t.Context(), key.Token.Reveal(), "b1", "a1"); err == nil {
			t.Errorf("%v: the key is still good", what)
		}
		if done := keysCommandLine(t, command...); done.code != exitNothing || done.stdout != "" ||
			strings.Count(done.stderr, "\n") != 1 {
			t.Errorf("%v once more: %+v, want exit code 1 and one line that nothing was found", what, done)
		}
	}
	resume := []string{"revoke", "--redis-url", url, "--business-id", "b1", "--resume", "a1"}
	if done := keysCommandLine(t, resume...); done.code != exitOK {
		t.Fatalf("%+v", done)
	}
	if _, err := m.Mint(t.Context(), id, time.Minute); err != nil {
		t.Errorf("after --resume: %v", err)
	}
	if done := keysCommandLine(t, resume...); done.code != exitNothing ||
		!strings.Contains(done.stderr, "no operator has suspended") {
		t.Errorf("%+v, want exit code 1", done)
	}
}

// TestSealingKeysHaveNoJWKSet: keys jwks publishes nothing about sealing keys, and says so with exit code 1.
func TestSealingKeysHaveNoJWKSet(t *testing.T) {
	dir := t.TempDir()
	kid(t, "generate", "--keys", dir, "--sealing")
	if done := keysCommandLine(t, "jwks", "--keys", dir); done.code != exitNothing || done.stdout != "" ||
		!strings.Contains(done.stderr, "no public key to print") {
		t.Errorf("%+v, want exit code 1 and a line", done)
	}
}

// TestAProcessGeneratesKeysIfNoneAreConfigured: without --keys and the environment variable, a command signs with a key
// pair of its own.
func TestAProcessGeneratesKeysIfNoneAreConfigured(t *testing.T) {
	t.Setenv(signingKeysVariable, "")
	keys, own, err := keySetFlags{}.open()
	if err != nil || !own || keys.Current() == "" {
		t.Errorf("open = %v, %v, %v", keys, own, err)
	}
	if err := keys.Watch(context.Background(), nil); err != nil {
		t.Error(err)
	}
}
