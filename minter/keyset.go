package minter

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
)

// KeySet holds the Ed25519 keys that signed keys are signed and checked with: one current, which signs, and any number
// of others, which only verify. It is safe for concurrent use, and every use sees one consistent set.
type KeySet struct {
	state atomic.Pointer[keySetState]
}

type keySetState struct {
	current signingKey
	public  map[string]publicKey // by key id, the current one's included
	jwk     []byte               // the current public key, when it has to be published in Redis
}

type signingKey struct {
	id      string
	private crypto.Signer
}

// GenerateKeySet makes a key set of one fresh key pair, for when none is configured. A [Minter] publishes its public half
// in Redis beside the records, with their lifetime, so that a [Verifier] on the same Redis that trusts published keys can
// verify.
func GenerateKeySet() (*KeySet, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate an Ed25519 key pair: %w", err)
	}
	id := thumbprint(public)
	jwk, err := json.Marshal(newJWK(public))
	if err != nil {
		return nil, fmt.Errorf("write key %q as a JWK: %w", id, err)
	}
	set := &KeySet{}
	set.state.Store(&keySetState{
		current: signingKey{id: id, private: private},
		public:  map[string]publicKey{id: {key: public}},
		jwk:     jwk,
	})
	return set, nil
}

// Current returns the id (the JWT's kid) of the key that signs now.
func (s *KeySet) Current() string { return s.state.Load().current.id }

// jwk is an Ed25519 public key as RFC 8037 section 2 writes it.
type jwk struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	KeyID     string `json:"kid"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
}

func newJWK(public ed25519.PublicKey) jwk {
	return jwk{
		KeyType: "OKP", Curve: "Ed25519", X: base64.RawURLEncoding.EncodeToString(public),
		KeyID: thumbprint(public), Use: "sig", Algorithm: "EdDSA",
	}
}

// thumbprint is the key's id: the hash of RFC 7638 over the members that RFC 8037 section 2 names. An id made from the
// key itself cannot be claimed for another key.
func thumbprint(public ed25519.PublicKey) string {
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + base64.RawURLEncoding.EncodeToString(public) + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// parsePublished reads a public key that a minter published under id.
func parsePublished(id, text string) (ed25519.PublicKey, error) {
	var j jwk
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return nil, fmt.Errorf("read the published key %q: %w", id, err)
	}
	public, err := base64.RawURLEncoding.DecodeString(j.X)
	if err != nil || len(public) != ed25519.PublicKeySize || j != newJWK(public) || j.KeyID != id {
		return nil, errors.New("the published key is not the one its id names")
	}
	return public, nil
}

// lookup returns the key that verifies signatures by id at now.
func (s *KeySet) lookup(id string, now time.Time) (ed25519.PublicKey, bool) {
	if s == nil {
		return nil, false
	}
	public, ok := s.state.Load().public[id]
	if !ok || !public.until.IsZero() && !now.Before(public.until) {
		return nil, false
	}
	return public.key, true
}
