package minter

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
)

const (
	// sealingKeySize is the key size of AES-256, in bytes.
	sealingKeySize = 32
	// memberFrom is the JWK member with the time from which a key is used, in RFC 3339. RFC 7517 section 4 allows
	// readers to ignore unknown members.
	memberFrom = "kizen_from"
)

// keyMaterial is one key as read or generated: a signing pair, only a public key, or a sealing secret.
type keyMaterial struct {
	id      string
	from    time.Time
	public  ed25519.PublicKey
	private ed25519.PrivateKey
	sealing []byte
}

// thumbprint returns the key's ID: the hash of RFC 7638 over the members that RFC 8037 section 2 names. An ID derived
// from the key itself cannot be claimed for another key.
func thumbprint(public ed25519.PublicKey) string {
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + base64.RawURLEncoding.EncodeToString(public) +
		`"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// parseKeys reads PEM (PKCS #8 and SubjectPublicKeyInfo), a JWK or a JWK set. Its errors never quote the input.
func parseKeys(text []byte) ([]keyMaterial, error) {
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		return parseJWKs(text)
	}
	return parsePEM(text)
}

func parsePEM(text []byte) (keys []keyMaterial, err error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		var parsed any
		switch block.Type {
		case "PRIVATE KEY":
			parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "PUBLIC KEY":
			parsed, err = x509.ParsePKIXPublicKey(block.Bytes)
		default:
			return nil, fmt.Errorf("a PEM block has type %q; use PRIVATE KEY (PKCS #8, not encrypted) or PUBLIC KEY", block.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("a PEM block of type %s cannot be parsed", block.Type)
		}
		key, err := newKeyMaterial(parsed)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	if keys == nil {
		return nil, errors.New("it contains neither PEM nor a JWK")
	}
	return keys, nil
}

func parseJWKs(text []byte) ([]keyMaterial, error) {
	set, err := jwk.Parse(text, jwk.WithRejectDuplicateKID(true))
	if err != nil {
		return nil, errors.New("it is neither a valid JWK nor a valid JWK set")
	}
	keys := make([]keyMaterial, 0, set.Len())
	for i := range set.Len() {
		parsed, _ := set.Key(i)
		key, err := parseJWK(parsed)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func parseJWK(parsed jwk.Key) (keyMaterial, error) {
	var raw any
	if err := jwk.Export(parsed, &raw); err != nil {
		return keyMaterial{}, errors.New("a JWK in it cannot be parsed")
	}
	key, err := newKeyMaterial(raw)
	if err != nil {
		return keyMaterial{}, err
	}
	if id, ok := parsed.KeyID(); ok {
		if err := validateKID(id); err != nil {
			return keyMaterial{}, err
		}
		key.id = id
	}
	if key.id == "" {
		return keyMaterial{}, errors.New("a sealing key in it has no kid")
	}
	if parsed.Has(memberFrom) {
		var from string
		err := parsed.Get(memberFrom, &from)
		if err == nil {
			key.from, err = time.Parse(time.RFC3339Nano, from)
		}
		if err != nil {
			return keyMaterial{}, fmt.Errorf("the %s of key %q is not a time in RFC 3339", memberFrom, key.id)
		}
	}
	return key, nil
}

func newKeyMaterial(raw any) (keyMaterial, error) {
	switch key := raw.(type) {
	case ed25519.PrivateKey:
		// Signing with a public key that does not match the private key would leak the private key.
		if !bytes.Equal(ed25519.NewKeyFromSeed(key.Seed()), key) {
			return keyMaterial{}, errors.New("the public and the private key of a pair in it do not match")
		}
		public := key.Public().(ed25519.PublicKey)
		return keyMaterial{id: thumbprint(public), public: public, private: key}, nil
	case ed25519.PublicKey:
		return keyMaterial{id: thumbprint(key), public: key}, nil
	case []byte:
		if len(key) != sealingKeySize {
			return keyMaterial{}, fmt.Errorf("a sealing key in it has %d bytes, not %d", len(key), sealingKeySize)
		}
		return keyMaterial{sealing: key}, nil
	}
	return keyMaterial{}, errors.New("it contains a key that is not Ed25519; use an Ed25519 key")
}

// encodeJWK writes a key as a JWK, its private part only if secret is true.
func encodeJWK(key keyMaterial, secret bool) (jwk.Key, error) {
	raw := any(key.public)
	use, algorithm := jwk.ForSignature, jwa.KeyAlgorithm(jwa.EdDSA())
	switch {
	case key.sealing != nil && !secret:
		return nil, errors.New("a sealing key has no public key")
	case key.sealing != nil:
		raw, use, algorithm = key.sealing, jwk.ForEncryption, jwa.A256GCM()
	case secret:
		raw = key.private
	}
	encoded, err := jwk.Import(raw)
	if err != nil {
		return nil, fmt.Errorf("write key %q as a JWK: %w", key.id, err)
	}
	members := map[string]any{jwk.KeyIDKey: key.id, jwk.KeyUsageKey: use, jwk.AlgorithmKey: algorithm}
	if secret && !key.from.IsZero() {
		members[memberFrom] = key.from.Format(time.RFC3339Nano)
	}
	for name, value := range members {
		if err := encoded.Set(name, value); err != nil {
			return nil, fmt.Errorf("write %s of key %q: %w", name, key.id, err)
		}
	}
	return encoded, nil
}

// JWKS returns the public keys that are valid now as a JWK set (RFC 7517 section 5, RFC 8037), for any JWT library.
func (s *KeySet) JWKS() ([]byte, error) {
	set := jwk.NewSet()
	state := s.state.Load()
	for _, info := range s.List() {
		public, ok := state.verifier(info.ID, time.Now())
		if info.Use == "seal" || !ok {
			continue
		}
		encoded, err := encodeJWK(keyMaterial{id: info.ID, public: public}, false)
		if err != nil {
			return nil, err
		}
		if err := set.AddKey(encoded); err != nil {
			return nil, fmt.Errorf("add key %q to the JWK set: %w", info.ID, err)
		}
	}
	return json.Marshal(set)
}

// encodePublished encodes the public key of a signing pair for Redis.
func encodePublished(key keyMaterial) ([]byte, error) {
	encoded, err := encodeJWK(key, false)
	if err != nil {
		return nil, err
	}
	return json.Marshal(encoded)
}

// parsePublished parses a public key that a minter published under id.
func parsePublished(id, text string) (ed25519.PublicKey, error) {
	keys, err := parseKeys([]byte(text))
	if err != nil || len(keys) != 1 || keys[0].public == nil || thumbprint(keys[0].public) != id {
		return nil, errors.New("the published key does not match its id")
	}
	return keys[0].public, nil
}
