package minter_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/minter"
)

func pemOf(t testing.TB, key any) string {
	t.Helper()
	var block pem.Block
	var err error
	switch key := key.(type) {
	case ed25519.PublicKey:
		block.Type = "PUBLIC KEY"
		block.Bytes, err = x509.MarshalPKIXPublicKey(key)
	default:
		block.Type = "PRIVATE KEY"
		block.Bytes, err = x509.MarshalPKCS8PrivateKey(key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&block))
}

func pair(t testing.TB) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

// rotate writes a signing key into dir that signs from the given time, and returns its ID.
func rotate(t testing.TB, dir string, from time.Time) string {
	t.Helper()
	key, err := minter.NewSigningKey(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := minter.WriteKey(dir, key); err != nil {
		t.Fatal(err)
	}
	return key.ID
}

func load(t testing.TB, path string) *minter.KeySet {
	t.Helper()
	set, err := minter.LoadKeySet(minter.KeySetConfig{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func write(t testing.TB, file, text string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// withKeys is a fixture whose minter signs with one key set and whose verifier trusts another.
func withKeys(t testing.TB, sign, verify *minter.KeySet) fixture {
	t.Helper()
	f := onRedis(t, embedded(t).URL())
	var err error
	if f.minter, err = minter.New(minter.Config{Redis: f.redis, Keys: sign}); err != nil {
		t.Fatal(err)
	}
	if f.verifier, err = minter.NewVerifier(minter.VerifierConfig{Redis: f.redis, Keys: verify}); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestKeysAreReadFromEveryForm(t *testing.T) {
	public, private := pair(t)
	_, second := pair(t)
	jwk, err := minter.NewSigningKey(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		text    string
		kinds   string // how the keys are used, in the order of List
		current string // the id that signs; "" for none, "?" for one whose id is not known here
	}{
		"PEM":              {pemOf(t, private), "sign", "?"},
		"PEM, two of them": {pemOf(t, second) + pemOf(t, private), "sign sign", "?"},
		"PEM, public":      {pemOf(t, public), "verify", ""},
		"PEM, both halves": {pemOf(t, private) + pemOf(t, public), "sign", "?"},
		"JWK":              {jwk.JWK().Reveal(), "sign", jwk.ID},
		"JWK set":          {`{"keys":[` + jwk.JWK().Reveal() + `]}`, "sign", jwk.ID},
		// RFC 8037, appendix A.1 and A.2; without a kid the id is the thumbprint of appendix A.3
		"JWK of RFC 8037": {`{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`, "sign", "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"},
		"public JWK of RFC 8037": {`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`,
			"verify", ""},
		"JWK with its own kid": {`{"kid":"ours","kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`, "sign", "ours"},
	} {
		t.Run(name, func(t *testing.T) {
			fromText, err := minter.LoadKeySet(minter.KeySetConfig{Text: minter.NewToken(row.text)})
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			fromFile := load(t, write(t, filepath.Join(dir, "keys.pem"), row.text))
			write(t, filepath.Join(dir, "README"), "not a key")
			write(t, filepath.Join(dir, ".new-1.pem"), "half a k")
			for source, set := range map[string]*minter.KeySet{"text": fromText, "file": fromFile, "directory": load(t, dir)} {
				var kinds []string
				for _, info := range set.List() {
					kinds = append(kinds, info.Use)
				}
				if got := strings.Join(kinds, " "); got != row.kinds {
					t.Errorf("%s: %s, want %s", source, got, row.kinds)
				}
				if got := set.Current(); got != row.current && (row.current != "?" || got == "") {
					t.Errorf("%s: %q signs, want %q", source, got, row.current)
				}
			}
		})
	}
}

func TestErrorsForUnusableKeysDoNotQuoteThem(t *testing.T) {
	public, private := pair(t)
	foreign, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	const canary = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
	for name, row := range map[string]struct{ text, want string }{
		"nothing":     {"canary", "neither PEM nor a JWK"},
		"broken JSON": {`{"kty":"OKP","d":"` + canary, "neither a valid JWK nor a valid JWK set"},
		"RSA":         {pemOf(t, foreign), "not Ed25519"},
		"encrypted": {"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
			"not encrypted"},
		"wrong content for its label": {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
			"of type PRIVATE KEY cannot be parsed"},
		"empty set": {`{"keys":[]}`, "it contains no key"},
		"halves do not match": {`{"kty":"OKP","crv":"Ed25519","d":"` + canary +
			`","x":"AAAAAAKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`, ""},
		"X25519": {`{"kty":"OKP","crv":"X25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`,
			"not Ed25519"},
		"kid with a brace":    {`{"kid":"a}b","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`, "kid"},
		"invalid time":        {`{"kizen_from":"tomorrow","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`, "not a time"},
		"short secret":        {`{"kid":"s","kty":"oct","k":"AAAA"}`, "has 3 bytes, not 32"},
		"one id for two keys": {`{"keys":[{"kid":"a","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},{"kid":"a","kty":"OKP","crv":"Ed25519","x":"` + encodedKey(public) + `"}]}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := minter.LoadKeySet(minter.KeySetConfig{Path: write(t, filepath.Join(t.TempDir(), "keys.pem"), row.text)})
			if err == nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "keys.pem") {
				t.Fatalf("LoadKeySet = %v; want an error about %q that names the file", err, row.want)
			}
			if strings.Contains(err.Error(), canary[:8]) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error quotes the key: %v", err)
			}
		})
	}
	shown := fmt.Sprintf("%v %+v %#v", minter.KeySetConfig{Text: minter.NewToken(pemOf(t, private))},
		minter.KeySetConfig{Text: minter.NewToken("canary")}, minter.KeySetConfig{Text: minter.NewToken("canary")})
	if strings.Contains(shown, "PRIVATE") || strings.Contains(shown, "canary") {
		t.Errorf("the configuration shows its keys: %s", shown)
	}
}

// encodedKey returns public as a JWK writes it, in base64url.
func encodedKey(public ed25519.PublicKey) string {
	encoded, _ := json.Marshal([]byte(public))
	return strings.NewReplacer("+", "-", "/", "_", "=", "", `"`, "").Replace(string(encoded))
}

func TestMintNeedsAPrivateKey(t *testing.T) {
	public, _ := pair(t)
	set, err := minter.LoadKeySet(minter.KeySetConfig{Text: minter.NewToken(pemOf(t, public))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := withKeys(t, set, set).minter.Mint(t.Context(), someone, time.Minute); err == nil ||
		!strings.Contains(err.Error(), "no private signing key") {
		t.Errorf("Mint = %v", err)
	}
}

func TestConfiguredKeysAreNotPublished(t *testing.T) {
	dir := t.TempDir()
	rotate(t, dir, time.Now())
	set := load(t, dir)
	f := withKeys(t, set, set)
	if code := f.verify(t, f.mint(t, someone)); code != "" {
		t.Errorf("refused: %s", code)
	}
	if names := f.redis.Keys(t.Context(), "*:jwk:*").Val(); len(names) != 0 {
		t.Errorf("redis holds %v", names)
	}
}

func TestNewKeySignsFromItsTimeOn(t *testing.T) {
	dir := t.TempDir()
	now := rotate(t, dir, time.Now().Add(-time.Second))
	later := rotate(t, dir, time.Now().Add(time.Hour))
	set := load(t, dir)
	if got := set.Current(); got != now {
		t.Errorf("%q signs, want %q", got, now)
	}
	jwks, err := set.JWKS()
	if err != nil || !strings.Contains(string(jwks), later) {
		t.Errorf("the JWK set %s, %v does not announce %q", jwks, err, later)
	}
}

func TestRetiredKeyVerifiesUntilTheLastKeyItSignedHasExpired(t *testing.T) {
	for name, row := range map[string]struct {
		retired time.Duration // how long ago
		want    string
	}{
		"just now":                   {time.Second, ""},
		"just under a lifetime ago":  {minter.MaxLifetime - time.Second, ""},
		"longer ago than a lifetime": {minter.MaxLifetime + 2*time.Minute, minter.CodeUnknownKey},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			old := rotate(t, dir, time.Now().Add(-24*time.Hour))
			before := load(t, dir)
			current := rotate(t, dir, time.Now().Add(-row.retired))
			after := load(t, dir)
			f := withKeys(t, before, after)
			if got := f.verify(t, f.mint(t, someone)); got != row.want {
				t.Errorf("a key signed by the retired one: %q, want %q", got, row.want)
			}
			jwks, err := after.JWKS()
			if err != nil || strings.Contains(string(jwks), old) != (row.want == "") ||
				!strings.Contains(string(jwks), current) {
				t.Errorf("JWKS = %s, %v", jwks, err)
			}
			pruned, err := minter.PruneKeys(dir, time.Now())
			if err != nil || slices.Contains(pruned, old) != (row.want != "") || slices.Contains(pruned, current) {
				t.Errorf("pruned %v, %v", pruned, err)
			}
			if got := load(t, dir).Current(); got != current {
				t.Errorf("after pruning %q signs, want %q", got, current)
			}
		})
	}
}

func TestConcurrentRotationsAgreeOnOneCurrentKeyAndLoseNone(t *testing.T) {
	dir := t.TempDir()
	first := rotate(t, dir, time.Now().Add(-time.Minute))
	old := load(t, dir)
	const n = 16
	ids := make([]string, n)
	var rotations sync.WaitGroup
	for i := range n {
		rotations.Go(func() {
			ids[i] = rotate(t, dir, time.Now())
			if _, err := minter.PruneKeys(dir, time.Now()); err != nil {
				t.Error(err)
			}
		})
	}
	rotations.Wait()
	a, b := load(t, dir), load(t, dir)
	if a.Current() != b.Current() || !slices.Contains(ids, a.Current()) {
		t.Errorf("two readers sign with %q and %q", a.Current(), b.Current())
	}
	if got := len(a.List()); got != n+1 {
		t.Errorf("%d keys are left of %d", got, n+1)
	}
	f := withKeys(t, old, a)
	if code := f.verify(t, f.mint(t, someone)); code != "" {
		t.Errorf("a key that %q signed before the rotations is refused: %s", first, code)
	}
}

func TestCopyOfAKeyDoesNotRetireIt(t *testing.T) {
	dir := t.TempDir()
	id := rotate(t, dir, time.Now().Add(-24*time.Hour))
	text, err := os.ReadFile(filepath.Join(dir, id+".jwk"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "a-copy.jwk"), string(text))
	keys := load(t, dir)
	if list := keys.List(); len(list) != 1 || !list[0].Until.IsZero() {
		t.Errorf("List = %+v, want one key without an end", list)
	}
	f := withKeys(t, keys, keys)
	if code := f.verify(t, f.mint(t, someone)); code != "" {
		t.Errorf("a key signed by the current key is refused: %s", code)
	}
}

func TestTwoKeysWithOneIDAreRefused(t *testing.T) {
	const x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
	public, _ := pair(t)
	zeros := strings.Repeat("A", 43)
	for name, keys := range map[string][2]string{
		"signing": {`{"kid":"a","kty":"OKP","crv":"Ed25519","x":"` + x + `"}`,
			`{"kid":"a","kty":"OKP","crv":"Ed25519","x":"` + b64(public) + `"}`},
		"sealing": {`{"kid":"a","kty":"oct","k":"` + zeros + `"}`, `{"kid":"a","kty":"oct","k":"` + x + `"}`},
	} {
		dir := t.TempDir()
		for i, text := range keys {
			write(t, filepath.Join(dir, fmt.Sprint(i, ".jwk")), text)
		}
		if _, err := minter.LoadKeySet(minter.KeySetConfig{Path: dir}); err == nil ||
			!strings.Contains(err.Error(), `two keys have the id "a"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReloadOfGeneratedKeysChangesNothing(t *testing.T) {
	keys, err := minter.GenerateKeySet()
	if err != nil {
		t.Fatal(err)
	}
	before := keys.Current()
	if err := keys.Reload(); err != nil || keys.Current() != before {
		t.Errorf("Reload = %v; %q signs, want %q", err, keys.Current(), before)
	}
}

func TestPruneKeysRemovesNoFileOutsideItsDirectory(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "keys")
	rotate(t, dir, time.Now().Add(-24*time.Hour))
	outside := write(t, filepath.Join(parent, "precious.jwk"), "precious")
	write(t, filepath.Join(dir,
		"a.jwk"),
		`{"kid":"../precious","kizen_from":"2001-01-01T00:00:00Z","kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`)
	pruned, err := minter.PruneKeys(dir, time.Now())
	if _, lost := os.Stat(outside); err != nil || len(pruned) != 0 || lost != nil {
		t.Errorf("PruneKeys = %v, %v; the file outside: %v", pruned, err, lost)
	}
}

func TestReloadThatFailsChangesNothing(t *testing.T) {
	dir := t.TempDir()
	id := rotate(t, dir, time.Now())
	set := load(t, dir)
	write(t, filepath.Join(dir, "broken.pem"), "half a k")
	if err := set.Reload(); err == nil || !strings.Contains(err.Error(), "broken.pem") {
		t.Errorf("Reload = %v, want an error that names the file", err)
	}
	if set.Current() != id {
		t.Errorf("%q signs, want %q", set.Current(), id)
	}
	if err := os.Remove(filepath.Join(dir, id+".jwk")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "broken.pem")); err != nil {
		t.Fatal(err)
	}
	if err := set.Reload(); err == nil || set.Current() != id {
		t.Errorf("Reload of an empty directory = %v, %q signs; want an error and %q", err, set.Current(), id)
	}
}

func TestNothingFailsWhileKeysAreRotated(t *testing.T) {
	dir := t.TempDir()
	rotate(t, dir, time.Now())
	signing, verifying := load(t, dir), load(t, dir)
	f := withKeys(t, signing, verifying)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	reloaded := make(chan struct{}, 1024)
	running.Go(func() {
		// Only the signer watches: the verifier meets each new key by its id.
		if err := signing.Watch(ctx, func(err error) {
			if err != nil {
				t.Error(err)
			}
			reloaded <- struct{}{}
		}); err != nil {
			t.Error(err)
		}
	})
	var calls atomic.Int64
	signers := sync.Map{}
	for range 4 {
		running.Go(func() {
			for ctx.Err() == nil {
				key, err := f.minter.Mint(t.Context(), someone, time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				signers.Store(signing.Current(), true)
				if _, err := f.verifier.Verify(t.Context(), key.Token.Reveal(), someone.BusinessID, someone.AccountID); err != nil {
					t.Error(err)
					return
				}
				calls.Add(1)
			}
		})
	}
	for range 3 {
		id := rotate(t, dir, time.Now())
		for signing.Current() != id {
			select {
			case <-reloaded:
			case <-time.After(5 * time.Minute):
				t.Fatal("the watch did not see the new key")
			}
		}
		for before := calls.Load(); calls.Load() < before+50 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
}

func TestWatchSeesAFileThatIsReplaced(t *testing.T) {
	_, first := pair(t)
	file := write(t, filepath.Join(t.TempDir(), "key.pem"), pemOf(t, first))
	set := load(t, file)
	before := set.Current()
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	reloaded := make(chan error, 1024)
	running.Go(func() {
		if err := set.Watch(ctx, func(err error) { reloaded <- err }); err != nil {
			t.Error(err)
		}
	})
	_, second := pair(t)
	next := write(t, file+".next", pemOf(t, second))
	if err := os.Rename(next, file); err != nil {
		t.Fatal(err)
	}
	for set.Current() == before {
		select {
		case <-reloaded:
		case <-time.After(5 * time.Minute):
			t.Fatal("the watch did not see the replaced file")
		}
	}
}

func TestWatchSeesASecretThatKubernetesUpdates(t *testing.T) {
	mount := t.TempDir()
	// The kubelet lays out a secret like this: the names point into ..data, which it replaces as a whole.
	lay := func(version string) string {
		id := rotate(t, filepath.Join(mount, version), time.Now())
		if err := os.Rename(filepath.Join(mount, version, id+".jwk"), filepath.Join(mount, version, "signing.jwk")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(version, filepath.Join(mount, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(mount, "..data_tmp"), filepath.Join(mount, "..data")); err != nil {
			t.Fatal(err)
		}
		return id
	}
	first := lay("..1")
	file := filepath.Join(mount, "signing.jwk")
	if err := os.Symlink(filepath.Join("..data", "signing.jwk"), file); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{mount, file} {
		set := load(t, path)
		if set.Current() != first {
			t.Fatalf("%q signs, want %q", set.Current(), first)
		}
		ctx, stop := context.WithCancel(t.Context())
		reloaded, stopped := make(chan error, 1024), make(chan error, 1)
		go func() { stopped <- set.Watch(ctx, func(err error) { reloaded <- err }) }()
		<-reloaded // the watch is active
		first = lay("..2" + filepath.Base(path))
		for set.Current() != first {
			select {
			case <-reloaded:
			case <-time.After(5 * time.Minute):
				t.Fatal("the watch did not see the update")
			}
		}
		stop()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}
}

func TestOnlyTheOwnerCanReadWrittenKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	id := rotate(t, dir, time.Now())
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, id+".jwk"): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
}

func TestJWKSContainsNoSecret(t *testing.T) {
	dir := t.TempDir()
	rotate(t, dir, time.Now())
	seal, err := minter.NewSealingKey(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := minter.WriteKey(dir, seal); err != nil {
		t.Fatal(err)
	}
	jwks, err := load(t, dir).JWKS()
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal(jwks, &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("JWKS = %s, %v; want the one signing key", jwks, err)
	}
	want := map[string]string{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": set.Keys[0]["kid"],
		"x": set.Keys[0]["x"]}
	if fmt.Sprint(set.Keys[0]) != fmt.Sprint(want) {
		t.Errorf("the key is %v, want %v", set.Keys[0], want)
	}
}

// TestHasKeyDistinguishesSigningAndSealing: a directory with one kind of key must lack the other kind, and an
// unreadable directory must lack both.
func TestHasKeyDistinguishesSigningAndSealing(t *testing.T) {
	for _, sealing := range []bool{false, true} {
		dir := t.TempDir()
		generate := minter.NewSigningKey
		if sealing {
			generate = minter.NewSealingKey
		}
		key, err := generate(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := minter.WriteKey(dir, key); err != nil {
			t.Fatal(err)
		}
		if !minter.HasKey(dir, sealing) || minter.HasKey(dir, !sealing) {
			t.Errorf("sealing %v: got %v and %v", sealing, minter.HasKey(dir, sealing), minter.HasKey(dir, !sealing))
		}
		if err := os.WriteFile(filepath.Join(dir, "broken.jwk"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if minter.HasKey(dir, sealing) || minter.HasKey(filepath.Join(dir, "missing"), sealing) {
			t.Error("an unreadable directory has a key")
		}
	}
}
