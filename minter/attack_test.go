package minter_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/minter"
)

// forge is an attacker's workbench: a key set that a verifier trusts, a good key, and the means to bend it.
type forge struct {
	fixture
	private ed25519.PrivateKey // the trusted one; an attack that uses it plays a signer that makes mistakes
	public  ed25519.PublicKey
	kid     string
	good    minter.Key
	mallory ed25519.PrivateKey // the attacker's own
}

func newForge(t testing.TB) *forge {
	t.Helper()
	g := &forge{}
	g.public, g.private = pair(t)
	_, g.mallory = pair(t)
	keys := load(t, write(t, filepath.Join(t.TempDir(), "key.pem"), pemOf(t, g.private)))
	g.kid = keys.Current()
	g.fixture = withKeys(t, keys, keys)
	g.good = g.mint(t, someone)
	return g
}

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

func (g *forge) parts() []string { return strings.Split(g.good.Token.Reveal(), ".") }

// claims returns the good key's payload with changes; a nil value removes the claim.
func (g *forge) claims(t testing.TB, changes map[string]any) string {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(g.parts()[1])
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{}
	decoder := json.NewDecoder(strings.NewReader(string(payload)))
	decoder.UseNumber()
	if err := decoder.Decode(&claims); err != nil {
		t.Fatal(err)
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	text, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (g *forge) header(extra string) string {
	return `{"alg":"EdDSA","typ":"JWT","kid":"` + g.kid + `"` + extra + `}`
}

func sign(key ed25519.PrivateKey, header, claims string) string {
	text := b64([]byte(header)) + "." + b64([]byte(claims))
	return text + "." + b64(ed25519.Sign(key, []byte(text)))
}

func signHMAC(secret []byte, header, claims string) string {
	text := b64([]byte(header)) + "." + b64([]byte(claims))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(text))
	return text + "." + b64(mac.Sum(nil))
}

// malleable returns the token with the signature's S replaced by S plus the order of the group, which naive verifiers take.
func malleable(t testing.TB, token string) string {
	t.Helper()
	i := strings.LastIndexByte(token, '.') + 1
	signature, err := base64.RawURLEncoding.DecodeString(token[i:])
	if err != nil {
		t.Fatal(err)
	}
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	s := slices.Clone(signature[32:])
	slices.Reverse(s)
	sum := new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(make([]byte, 32))
	slices.Reverse(sum)
	return token[:i] + b64(append(signature[:32], sum...))
}

// attacks returns forged tokens by name, each with the codes with which it may be refused.
func (g *forge) attacks(t testing.TB) map[string]attack {
	t.Helper()
	own := g.claims(t, nil)
	parts := g.parts()
	now := time.Now().Unix()
	mallorys := g.mallory.Public().(ed25519.PublicKey)
	jwk := `{"kty":"OKP","crv":"Ed25519","x":"` + b64(mallorys) + `"}`
	hs256 := `{"alg":"HS256","typ":"JWT","kid":"` + g.kid + `"}`
	table := map[string]attack{
		"alg none":                     {b64([]byte(`{"alg":"none","typ":"JWT","kid":"`+g.kid+`"}`)) + "." + parts[1] + ".", minter.CodeAlgorithm},
		"alg nOnE":                     {b64([]byte(`{"alg":"nOnE","typ":"JWT","kid":"`+g.kid+`"}`)) + "." + parts[1] + ".", minter.CodeAlgorithm},
		"alg none, signature kept":     {b64([]byte(`{"alg":"none","typ":"JWT","kid":"`+g.kid+`"}`)) + "." + parts[1] + "." + parts[2], minter.CodeAlgorithm},
		"HS256, public key as secret":  {signHMAC(g.public, hs256, own), minter.CodeAlgorithm},
		"HS256, public PEM as secret":  {signHMAC([]byte(pemOf(t, g.public)), hs256, own), minter.CodeAlgorithm},
		"HS256, public JWK as secret":  {signHMAC([]byte(b64(g.public)), hs256, own), minter.CodeAlgorithm},
		"ES256":                        {b64([]byte(`{"alg":"ES256","kid":"`+g.kid+`"}`)) + "." + parts[1] + "." + parts[2], minter.CodeAlgorithm},
		"Ed448 by name":                {b64([]byte(`{"alg":"Ed448","kid":"`+g.kid+`"}`)) + "." + parts[1] + "." + parts[2], minter.CodeAlgorithm},
		"no alg":                       {sign(g.private, `{"kid":"`+g.kid+`"}`, own), minter.CodeAlgorithm},
		"another's signature, our kid": {sign(g.mallory, g.header(""), own), minter.CodeSignature},
		"another's kid":                {sign(g.mallory, `{"alg":"EdDSA","kid":"mallory"}`, own), minter.CodeUnknownKey},
		"no kid":                       {sign(g.mallory, `{"alg":"EdDSA"}`, own), minter.CodeUnknownKey},
		"kid is a path":                {sign(g.mallory, `{"alg":"EdDSA","kid":"../../../../dev/null"}`, own), minter.CodeUnknownKey},
		"kid is a redis key":           {sign(g.mallory, `{"alg":"EdDSA","kid":"x}:key:{business-1"}`, own), minter.CodeUnknownKey},
		"kid is a number":              {sign(g.private, `{"alg":"EdDSA","kid":1}`, own), minter.CodeMalformed},
		"jwk in the header":            {sign(g.mallory, g.header(`,"jwk":`+jwk), own), minter.CodeMalformed},
		"jku in the header":            {sign(g.mallory, g.header(`,"jku":"http://127.0.0.1:1/jwks.json"`), own), minter.CodeMalformed},
		"x5u in the header":            {sign(g.mallory, g.header(`,"x5u":"http://127.0.0.1:1/cert.pem"`), own), minter.CodeMalformed},
		"x5c in the header":            {sign(g.mallory, g.header(`,"x5c":["AAAA"]`), own), minter.CodeMalformed},
		"crit in the header":           {sign(g.private, g.header(`,"crit":["exp"]`), own), minter.CodeMalformed},
		"b64=false in the header":      {sign(g.private, g.header(`,"b64":false`), own), minter.CodeMalformed},
		"alg twice":                    {sign(g.private, `{"alg":"none","alg":"EdDSA","kid":"`+g.kid+`"}`, own), minter.CodeMalformed},
		"kid twice":                    {sign(g.private, g.header(`,"kid":"mallory"`), own), minter.CodeMalformed},

		"truncated by a byte":       {g.good.Token.Reveal()[:len(g.good.Token.Reveal())-1], "malformed signature"},
		"truncated by half":         {g.good.Token.Reveal()[:len(g.good.Token.Reveal())/2], minter.CodeMalformed},
		"no signature":              {parts[0] + "." + parts[1], minter.CodeMalformed},
		"empty signature":           {parts[0] + "." + parts[1] + ".", minter.CodeSignature},
		"signature cut":             {parts[0] + "." + parts[1] + "." + parts[2][:40], "malformed signature"},
		"a part more":               {g.good.Token.Reveal() + ".AAAA", minter.CodeMalformed},
		"encrypted in form":         {"a.b.c.d.e", minter.CodeMalformed},
		"payload of another":        {parts[0] + "." + b64([]byte(g.claims(t, map[string]any{"sub": "account-9"}))) + "." + parts[2], minter.CodeSignature},
		"a space before":            {" " + g.good.Token.Reveal(), minter.CodeMalformed},
		"a line after":              {g.good.Token.Reveal() + "\n", minter.CodeMalformed},
		"as a bearer":               {"Bearer " + g.good.Token.Reveal(), minter.CodeMalformed},
		"padded":                    {g.good.Token.Reveal() + "==", minter.CodeMalformed},
		"base64 with other bits":    {otherBits(g.good.Token.Reveal()), minter.CodeMalformed},
		"malleable signature":       {malleable(t, g.good.Token.Reveal()), minter.CodeSignature},
		"one megabyte":              {strings.Repeat("A", 1<<20), minter.CodeMalformed},
		"one megabyte of dots":      {strings.Repeat(".", 1<<20), minter.CodeMalformed},
		"one megabyte, well signed": {sign(g.private, g.header(""), g.claims(t, map[string]any{"pad": strings.Repeat("A", 1<<20)})), minter.CodeMalformed},
		"deep":                      {sign(g.private, g.header(""), `{"a":`+strings.Repeat("[", 1000)+strings.Repeat("]", 1000)+`}`), minter.CodeMalformed},
		"not JSON":                  {sign(g.private, g.header(""), `claims`), minter.CodeMalformed},
		"null":                      {sign(g.private, g.header(""), `null`), minter.CodeMalformed},
		"not UTF-8":                 {sign(g.private, g.header(""), strings.Replace(own, "account-1", "account-\xff", 1)), minter.CodeMalformed},

		"sub twice":              {sign(g.private, g.header(""), strings.Replace(own, `{`, `{"sub":"account-9",`, 1)), minter.CodeMalformed},
		"business twice":         {sign(g.private, g.header(""), strings.TrimSuffix(own, "}")+`,"business_id":"business-1"}`), minter.CodeMalformed},
		"SUB for sub":            {sign(g.private, g.header(""), strings.Replace(own, `"sub"`, `"SUB"`, 1)), minter.CodeMalformed},
		"other issuer":           {g.signed(t, "iss", "mallory"), minter.CodeIssuer},
		"other audience":         {g.signed(t, "aud", "kizen-admin"), minter.CodeAudience},
		"ours among audiences":   {g.signed(t, "aud", []string{"kizen-admin", minter.DefaultAudience}), minter.CodeMalformed},
		"other business":         {g.signed(t, "business_id", "business-2"), minter.CodeBusiness},
		"other account":          {g.signed(t, "sub", "account-2"), minter.CodeUser},
		"other execution":        {g.signed(t, "execution_id", "execution-2"), minter.CodeRevoked},
		"other type":             {g.signed(t, "account_type", "service_integration"), minter.CodeRevoked},
		"id without a record":    {g.signed(t, "jti", "AAAAAAAAAAAAAAAAAAAAAAAAAA"), minter.CodeRevoked},
		"business with a brace":  {g.signed(t, "business_id", "business-1}:key:{x"), minter.CodeMalformed},
		"expired beyond leeway":  {g.signed(t, "exp", now-int64(minter.DefaultLeeway.Seconds())-1), minter.CodeExpired},
		"not yet, beyond leeway": {g.signed(t, "nbf", now+int64(minter.DefaultLeeway.Seconds())+5), minter.CodeNotYetValid},
		"exp is a string":        {g.signed(t, "exp", fmt.Sprint(now+60)), minter.CodeMalformed},
		"exp overflows":          {g.signed(t, "exp", json.Number("1e300")), minter.CodeMalformed},
		"exp is negative":        {g.signed(t, "exp", -1), minter.CodeExpired},
	}
	for _, claim := range []string{"iss", "sub", "aud", "exp", "nbf", "jti", "business_id", "execution_id", "account_type"} {
		table["without "+claim] = attack{g.signed(t, claim, nil), "malformed issuer audience"}
	}
	return table
}

type attack struct {
	token string
	codes string // one of these
}

// signed is the good key with one claim changed, signed by the trusted key.
func (g *forge) signed(t testing.TB, claim string, value any) string {
	t.Helper()
	return sign(g.private, g.header(""), g.claims(t, map[string]any{claim: value}))
}

// otherBits sets the bits of the last character that base64 does not use.
func otherBits(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last^1])
}

func TestForgedTokensAreRefused(t *testing.T) {
	g := newForge(t)
	// What the table changes must be the reason: signed again without a change, the key is good.
	if _, err := g.verifier.Verify(t.Context(), sign(g.private, g.header(""), g.claims(t, nil)), "business-1", "account-1"); err != nil {
		t.Fatal(err)
	}
	for name, attack := range g.attacks(t) {
		t.Run(name, func(t *testing.T) {
			id, err := g.verifier.Verify(t.Context(), attack.token, "business-1", "account-1")
			var denied *minter.DeniedError
			if !errors.As(err, &denied) || id != (minter.Identity{}) {
				t.Fatalf("Verify = %v, %v; want a refusal", id, err)
			}
			if !slices.Contains(strings.Fields(attack.codes), denied.Code) {
				t.Errorf("refused as %s (%v), want %s", denied.Code, denied.Err, attack.codes)
			}
			if strings.Contains(denied.Error(), attack.token) || strings.Contains(denied.Reason, "\n") {
				t.Errorf("the reason quotes the token: %s", denied.Reason)
			}
		})
	}
	if code := g.verify(t, g.good); code != "" {
		t.Errorf("after all that the good key is refused: %s", code)
	}
}

func TestHeadersMustBeTheKeysOwn(t *testing.T) {
	g := newForge(t)
	for name, row := range map[string]struct{ business, user, want string }{
		"other business": {"business-2", "account-1", minter.CodeBusiness},
		"no business":    {"", "account-1", minter.CodeBusiness},
		"other user":     {"business-1", "account-2", minter.CodeUser},
		"no user":        {"business-1", "", minter.CodeUser},
		"swapped":        {"account-1", "business-1", minter.CodeBusiness},
		"case":           {"Business-1", "account-1", minter.CodeBusiness},
	} {
		_, err := g.verifier.Verify(t.Context(), g.good.Token.Reveal(), row.business, row.user)
		var denied *minter.DeniedError
		if !errors.As(err, &denied) || denied.Code != row.want {
			t.Errorf("%s: %v, want %s", name, err, row.want)
		}
	}
}

func TestClocksMayDifferByTheLeewayAndNoMore(t *testing.T) {
	g := newForge(t)
	keys, err := minter.LoadKeySet(minter.KeySetConfig{Text: minter.NewToken(pemOf(t, g.private))})
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		ahead time.Duration // by how much the verifier's clock is ahead of the minter's
		want  string
	}{
		"same clock":             {0, ""},
		"ahead within leeway":    {time.Minute + 4*time.Second, ""},
		"ahead beyond leeway":    {time.Minute + 7*time.Second, minter.CodeExpired},
		"behind within leeway":   {-9 * time.Second, ""}, // keys are dated back by as much again
		"behind beyond leeway":   {-12 * time.Second, minter.CodeNotYetValid},
		"a year behind":          {-365 * 24 * time.Hour, minter.CodeNotYetValid},
		"ahead, almost expired":  {time.Minute - 2*time.Second, ""},
		"ahead, a year too late": {365 * 24 * time.Hour, minter.CodeExpired},
	} {
		var err error
		g.verifier, err = minter.NewVerifier(minter.VerifierConfig{Redis: g.redis, Keys: keys, Now: func() time.Time { return time.Now().Add(row.ahead) }})
		if err != nil {
			t.Fatal(err)
		}
		if got := g.verify(t, g.mint(t, someone)); got != row.want {
			t.Errorf("%s: %q, want %q", name, got, row.want)
		}
	}
}

func TestReplayIsRefused(t *testing.T) {
	g := newForge(t)
	if err := g.minter.Revoke(t.Context(), g.good); err != nil {
		t.Fatal(err)
	}
	if got := g.verify(t, g.good); got != minter.CodeRevoked {
		t.Errorf("after a revocation: %q", got)
	}
	// The record ends with the lifetime, whatever leeway the clocks are given.
	short, err := g.minter.Mint(t.Context(), someone, 30*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(short.ExpiresAt.Add(time.Millisecond)))
	if got := g.verify(t, short); got != minter.CodeRevoked {
		t.Errorf("after its lifetime: %q", got)
	}
}

func TestWritingToRedisIsNotEnough(t *testing.T) {
	g := newForge(t)
	value := g.redis.Get(t.Context(), g.redis.Keys(t.Context(), "*:key:*").Val()[0]).Val()
	forged := strings.Replace(value, "execution-1", "execution-9", 1)
	set := func(key, value string) {
		if err := g.redis.Set(t.Context(), key, value, time.Minute).Err(); err != nil {
			t.Fatal(err)
		}
	}
	set("kizen:{business-1}:key:MALLORY", forged)
	jwk := `{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","kid":"mallory","x":"` + b64(g.mallory.Public().(ed25519.PublicKey)) + `"}`
	set("kizen:{business-1}:jwk:mallory", jwk)
	claims := g.claims(t, map[string]any{"jti": "MALLORY", "execution_id": "execution-9"})
	for name, row := range map[string]struct{ token, want string }{
		"a record and our kid":             {sign(g.mallory, g.header(""), claims), minter.CodeSignature},
		"a record and a published key":     {sign(g.mallory, `{"alg":"EdDSA","kid":"mallory"}`, claims), minter.CodeUnknownKey},
		"a record and no signature at all": {b64([]byte(g.header(""))) + "." + b64([]byte(claims)) + ".", minter.CodeSignature},
	} {
		_, err := g.verifier.Verify(t.Context(), row.token, "business-1", "account-1")
		var denied *minter.DeniedError
		if !errors.As(err, &denied) || denied.Code != row.want {
			t.Errorf("%s: %v, want %s", name, err, row.want)
		}
	}
	// Nor does a record serve another key than its own.
	set("kizen:{business-1}:key:"+g.good.ID, forged)
	if got := g.verify(t, g.good); got != minter.CodeRevoked {
		t.Errorf("a record of another identity: %q", got)
	}
	for _, broken := range []string{"", "null", "{}", "[]", "\xff"} {
		set("kizen:{business-1}:key:"+g.good.ID, broken)
		if got := g.verify(t, g.good); got != minter.CodeRevoked {
			t.Errorf("record %q: %q", broken, got)
		}
	}
}

func TestPublishedKeyServesItsBusinessAlone(t *testing.T) {
	f := onRedis(t, embedded(t).URL())
	key := f.mint(t, someone)
	name := f.redis.Keys(t.Context(), "*:jwk:*").Val()[0]
	jwk := f.redis.Get(t.Context(), name).Val()
	other := onRedis(t, embedded(t).URL())
	elsewhere := other.mint(t, minter.Identity{AccountID: "account-1", AccountType: "service_automation", BusinessID: "business-2", ExecutionID: "execution-1"})
	if _, err := f.verifier.Verify(t.Context(), elsewhere.Token.Reveal(), "business-2", "account-1"); err == nil {
		t.Error("a key whose public half is not published here is accepted")
	}
	// A published key under an id that is not its own thumbprint.
	_, mallory := pair(t)
	forged := strings.Replace(jwk, jwk[strings.Index(jwk, `"x":"`)+5:][:43], b64(mallory.Public().(ed25519.PublicKey)), 1)
	if err := f.redis.Set(t.Context(), name, forged, time.Minute).Err(); err != nil || forged == jwk {
		t.Fatal(err, forged)
	}
	var denied *minter.DeniedError
	if _, err := f.verifier.Verify(t.Context(), key.Token.Reveal(), "business-1", "account-1"); !errors.As(err, &denied) {
		t.Errorf("Verify with a swapped published key = %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	g := newForge(f)
	good := g.good.Token.Reveal()
	f.Add(good)
	for _, attack := range g.attacks(f) {
		if len(attack.token) < 1<<12 {
			f.Add(attack.token)
		}
	}
	f.Fuzz(func(t *testing.T, token string) {
		id, err := g.verifier.Verify(t.Context(), token, "business-1", "account-1")
		var denied *minter.DeniedError
		switch {
		case err == nil && (token != good || id != someone):
			t.Errorf("accepted %q as %v", token, id)
		case err != nil && !errors.As(err, &denied):
			t.Errorf("Verify(%q) = %v, want a refusal", token, err)
		}
	})
}

func FuzzLoadKeySet(f *testing.F) {
	_, private := pair(f)
	f.Add(pemOf(f, private))
	f.Add(pemOf(f, private.Public().(ed25519.PublicKey)))
	key, err := minter.NewSigningKey(time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(key.JWK().Reveal())
	f.Add(`{"keys":[` + key.JWK().Reveal() + `]}`)
	f.Fuzz(func(t *testing.T, text string) {
		set, err := minter.LoadKeySet(minter.KeySetConfig{Text: minter.NewToken(text)})
		if err != nil {
			return
		}
		jwks, err := set.JWKS()
		if err != nil || strings.Contains(string(jwks), `"d"`) || strings.Contains(string(jwks), `"k"`) {
			t.Errorf("JWKS = %s, %v", jwks, err)
		}
	})
}
