package attacks

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"
)

// Token is a forged or altered key. Every verifier refuses it.
type Token struct {
	Name, Text string
	// Codes are the codes with which it may be refused, separated by spaces.
	Codes string
}

// Workbench contains the keys from which tokens are made.
type Workbench struct {
	// Good is a valid key, KeyID the ID of the key that signed it.
	Good, KeyID string
	// Trusted is the key that verifiers trust. A token signed with it simulates a signer that makes mistakes.
	Trusted ed25519.PrivateKey
	// Audience and Leeway are the verifier's settings.
	Audience string
	Leeway   time.Duration

	own ed25519.PrivateKey // the attacker's
}

// NewWorkbench returns g with the attacker's own key.
func NewWorkbench(g Workbench) *Workbench {
	g.own = ed25519.NewKeyFromSeed([]byte("an attacker's seed of 32 bytes.."))
	return &g
}

// Tokens returns all tokens.
func (g *Workbench) Tokens() []Token {
	own := g.claims(nil)
	parts := strings.Split(g.Good, ".")
	now := time.Now().Unix()
	jwk := `{"kty":"OKP","crv":"Ed25519","x":"` + b64(g.OwnPublic()) + `"}`
	hs256 := `{"alg":"HS256","typ":"JWT","kid":"` + g.KeyID + `"}`
	tokens := []Token{
		{"alg none", b64([]byte(`{"alg":"none","typ":"JWT","kid":"`+g.KeyID+`"}`)) + "." + parts[1] + ".", "algorithm"},
		{"alg nOnE", b64([]byte(`{"alg":"nOnE","typ":"JWT","kid":"`+g.KeyID+`"}`)) + "." + parts[1] + ".", "algorithm"},
		{"alg none, signature kept", b64([]byte(`{"alg":"none","typ":"JWT","kid":"`+g.KeyID+`"}`)) + "." + parts[1] + "." +
			parts[2], "algorithm"},
		{"HS256, public key as secret", signHMAC(g.public(), hs256, own), "algorithm"},
		{"HS256, public PEM as secret", signHMAC([]byte(publicPEM(g.public())), hs256, own), "algorithm"},
		{"HS256, public JWK as secret", signHMAC([]byte(b64(g.public())), hs256, own), "algorithm"},
		{"ES256", b64([]byte(`{"alg":"ES256","kid":"`+g.KeyID+`"}`)) + "." + parts[1] + "." + parts[2], "algorithm"},
		{"Ed448 by name", b64([]byte(`{"alg":"Ed448","kid":"`+g.KeyID+`"}`)) + "." + parts[1] + "." + parts[2], "algorithm"},
		{"no alg", sign(g.Trusted, `{"kid":"`+g.KeyID+`"}`, own), "algorithm"},
		{"another's signature, our kid", sign(g.own, g.header(""), own), "signature"},
		{"another's kid", sign(g.own, `{"alg":"EdDSA","kid":"mallory"}`, own), "unknown_key"},
		{"no kid", sign(g.own, `{"alg":"EdDSA"}`, own), "unknown_key"},
		{"kid is a path", sign(g.own, `{"alg":"EdDSA","kid":"../../../../dev/null"}`, own), "unknown_key"},
		{"kid is a redis key", sign(g.own, `{"alg":"EdDSA","kid":"x}:key:{business-1"}`, own), "unknown_key"},
		{"kid is a number", sign(g.Trusted, `{"alg":"EdDSA","kid":1}`, own), "malformed"},
		{"jwk in the header", sign(g.own, g.header(`,"jwk":`+jwk), own), "malformed"},
		{"jku in the header", sign(g.own, g.header(`,"jku":"http://127.0.0.1:1/jwks.json"`), own), "malformed"},
		{"x5u in the header", sign(g.own, g.header(`,"x5u":"http://127.0.0.1:1/cert.pem"`), own), "malformed"},
		{"x5c in the header", sign(g.own, g.header(`,"x5c":["AAAA"]`), own), "malformed"},
		{"crit in the header", sign(g.Trusted, g.header(`,"crit":["exp"]`), own), "malformed"},
		{"b64=false in the header", sign(g.Trusted, g.header(`,"b64":false`), own), "malformed"},
		{"alg twice", sign(g.Trusted, `{"alg":"none","alg":"EdDSA","kid":"`+g.KeyID+`"}`, own), "malformed"},
		{"kid twice", sign(g.Trusted, g.header(`,"kid":"mallory"`), own), "malformed"},

		{"truncated by a byte", g.Good[:len(g.Good)-1], "malformed signature"},
		{"truncated by half", g.Good[:len(g.Good)/2], "malformed"},
		{"no signature", parts[0] + "." + parts[1], "malformed"},
		{"empty signature", parts[0] + "." + parts[1] + ".", "signature"},
		{"signature cut", parts[0] + "." + parts[1] + "." + parts[2][:40], "malformed signature"},
		{"a part more", g.Good + ".AAAA", "malformed"},
		{"in the form of an encrypted token", "a.b.c.d.e", "malformed"},
		{"payload of another token", parts[0] + "." + b64([]byte(g.claims(map[string]any{"sub": "account-9"}))) + "." +
			parts[2], "signature"},
		{"a space before", " " + g.Good, "malformed"},
		{"a line after", g.Good + "\n", "malformed"},
		{"as a bearer", "Bearer " + g.Good, "malformed"},
		{"padded", g.Good + "==", "malformed"},
		{"base64 with other bits", otherBits(g.Good), "malformed"},
		{"malleable signature", malleable(g.Good), "signature"},
		{"one megabyte", strings.Repeat("A", 1<<20), "malformed"},
		{"one megabyte of dots", strings.Repeat(".", 1<<20), "malformed"},
		{"one megabyte, well signed", sign(g.Trusted, g.header(""),
			g.claims(map[string]any{"pad": strings.Repeat("A", 1<<20)})), "malformed"},
		{"deep", sign(g.Trusted, g.header(""), `{"a":`+strings.Repeat("[", 1000)+strings.Repeat("]", 1000)+`}`), "malformed"},
		{"not JSON", sign(g.Trusted, g.header(""), `claims`), "malformed"},
		{"null", sign(g.Trusted, g.header(""), `null`), "malformed"},
		{"not UTF-8", sign(g.Trusted, g.header(""), strings.Replace(own, `"sub":"`, `"sub":"\xff`, 1)), "malformed"},

		{"sub twice", sign(g.Trusted, g.header(""), strings.Replace(own, `{`, `{"sub":"account-9",`, 1)), "malformed"},
		{"business twice", sign(g.Trusted, g.header(""), strings.TrimSuffix(own, "}")+`,"business_id":"business-9"}`),
			"malformed"},
		{"SUB for sub", sign(g.Trusted, g.header(""), strings.Replace(own, `"sub"`, `"SUB"`, 1)), "malformed"},
		{"other issuer", g.signed("iss", "mallory"), "issuer"},
		{"other audience", g.signed("aud", "kizen-admin"), "audience"},
		{"our audience among others", g.signed("aud", []string{"kizen-admin", g.Audience}), "malformed"},
		{"other business", g.signed("business_id", "business-9"), "business"},
		{"other account", g.signed("sub", "account-9"), "user"},
		{"other execution", g.signed("execution_id", "execution-9"), "revoked"},
		{"other type", g.signed("account_type", "service_integration"), "revoked"},
		{"id without a record", g.signed("jti", "AAAAAAAAAAAAAAAAAAAAAAAAAA"), "revoked"},
		{"business with a brace", g.signed("business_id", "business-1}:key:{x"), "malformed"},
		{"expired beyond leeway", g.signed("exp", now-int64(g.Leeway.Seconds())-1), "expired"},
		{"not yet valid, beyond leeway", g.signed("nbf", now+int64(g.Leeway.Seconds())+5), "not_yet_valid"},
		{"exp is a string", g.signed("exp", fmt.Sprint(now+60)), "malformed"},
		{"exp overflows", g.signed("exp", json.Number("1e300")), "malformed"},
		{"exp is negative", g.signed("exp", -1), "expired"},
	}
	for _, claim := range []string{"iss", "sub", "aud", "exp", "nbf", "jti", "business_id", "execution_id",
		"account_type"} {
		tokens = append(tokens, Token{"without " + claim, g.signed(claim, nil), "malformed issuer audience"})
	}
	return tokens
}

// OwnPublic returns the public half of the attacker's key.
func (g *Workbench) OwnPublic() ed25519.PublicKey { return g.own.Public().(ed25519.PublicKey) }

// Own returns a token with changed claims that the attacker signs as the key with this id. A nil value removes a
// claim.
func (g *Workbench) Own(keyID string, changes map[string]any) string {
	return sign(g.own, `{"alg":"EdDSA","typ":"JWT","kid":"`+keyID+`"}`, g.claims(changes))
}

// Unsigned returns a token with changed claims and no signature.
func (g *Workbench) Unsigned(changes map[string]any) string {
	return b64([]byte(g.header(""))) + "." + b64([]byte(g.claims(changes))) + "."
}

// Unchanged returns the valid key, signed again. If a verifier accepts it, it refuses the other tokens only because of
// their changes.
func (g *Workbench) Unchanged() string { return sign(g.Trusted, g.header(""), g.claims(nil)) }

func (g *Workbench) public() ed25519.PublicKey { return g.Trusted.Public().(ed25519.PublicKey) }

// claims returns the valid key's payload with changes; a nil value removes the claim.
func (g *Workbench) claims(changes map[string]any) string {
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(g.Good, ".")[1])
	claims := map[string]any{}
	decoder := json.NewDecoder(strings.NewReader(string(payload)))
	decoder.UseNumber()
	if err == nil {
		err = decoder.Decode(&claims)
	}
	if err != nil {
		panic(err) // the valid key can be parsed
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	text, err := json.Marshal(claims)
	if err != nil {
		panic(err) // the test passed a claim that has no JSON form
	}
	return string(text)
}

func (g *Workbench) header(extra string) string {
	return `{"alg":"EdDSA","typ":"JWT","kid":"` + g.KeyID + `"` + extra + `}`
}

// signed returns the valid key with one claim changed, signed by the trusted key.
func (g *Workbench) signed(claim string, value any) string {
	return sign(g.Trusted, g.header(""), g.claims(map[string]any{claim: value}))
}

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

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

func publicPEM(key ed25519.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic(err) // every Ed25519 key can be marshalled
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// malleable returns the token with the signature's S replaced by S plus the order of the group, which naive verifiers
// accept.
func malleable(token string) string {
	i := strings.LastIndexByte(token, '.') + 1
	signature, err := base64.RawURLEncoding.DecodeString(token[i:])
	if err != nil {
		panic(err) // the valid key can be parsed
	}
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	s := slices.Clone(signature[32:])
	slices.Reverse(s)
	sum := new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(make([]byte, 32))
	slices.Reverse(sum)
	return token[:i] + b64(append(signature[:32], sum...))
}

// otherBits sets the unused bits of the last base64 character.
func otherBits(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last^1])
}
