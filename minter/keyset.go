package minter

import (
	"bytes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// retireGrace is how long a signer may keep signing with an old key before it notices the new one.
const retireGrace = time.Minute

// ErrNoSigningKey is the error of minting with a key set that can only verify.
var ErrNoSigningKey = errors.New("the key set has no private signing key; create one with kizen-sidecar keys generate")

// KeySet holds the Ed25519 keys that sign and verify signed keys (RFC 8037), and the keys that seal stored keys. One of
// each kind is current; the others only verify, or open what they sealed earlier. A KeySet is safe for concurrent use,
// and every use sees one consistent set, even during a reload.
type KeySet struct {
	state atomic.Pointer[keySetState]

	source KeySetConfig
	mu     sync.Mutex // serialises reloads
	loaded time.Time  // when the last load began
	stamp  time.Time  // the source's modification time at that load
}

// keySetState is one consistent set.
type keySetState struct {
	signing []signingKey         // each signs from its time until the next one's
	public  map[string]publicKey // by key ID, including those of signing
	sealing []sealingKey         // the last one seals
	publish []byte               // the public key as a JWK, to publish in Redis; nil for configured keys
}

type signingKey struct {
	id      string
	private ed25519.PrivateKey
	from    time.Time // zero: always
}

// publicKey verifies the signatures of one key.
type publicKey struct {
	key   ed25519.PublicKey
	until time.Time // zero: no end
}

type sealingKey struct {
	id   string
	aead cipher.AEAD // AES-256-GCM with random nonces
	find []byte      // key of the lookup hash
}

// GenerateKeySet returns a key set with new keys, for use without configured keys. A [Minter] publishes the public
// signing key in Redis beside the records, with their lifetime, so that a [Verifier] on the same Redis that trusts
// published keys can verify them. Only this process can open what the set has sealed.
func GenerateKeySet() (*KeySet, error) {
	signing, err := generateSigning(time.Time{})
	if err != nil {
		return nil, err
	}
	state, err := newKeySetState([]keyMaterial{signing, generateSealing(time.Time{})})
	if err != nil {
		return nil, err
	}
	if state.publish, err = encodePublished(signing); err != nil {
		return nil, err
	}
	set := &KeySet{}
	set.state.Store(state)
	return set, nil
}

func generateSigning(from time.Time) (keyMaterial, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return keyMaterial{}, fmt.Errorf("generate an Ed25519 key pair: %w", err)
	}
	return keyMaterial{id: thumbprint(public), from: from, public: public, private: private}, nil
}

func generateSealing(from time.Time) keyMaterial {
	secret := make([]byte, sealingKeySize)
	_, _ = rand.Read(secret) // never fails
	return keyMaterial{id: rand.Text(), from: from, sealing: secret}
}

// newKeySetState orders keys by their start time; keys without one come first, in the given order.
func newKeySetState(keys []keyMaterial) (*keySetState, error) {
	if len(keys) == 0 {
		return nil, errors.New("it contains no key; create one with kizen-sidecar keys generate")
	}
	keys = slices.Clone(keys)
	slices.SortStableFunc(keys, func(a, b keyMaterial) int { return a.from.Compare(b.from) })
	state := &keySetState{public: map[string]publicKey{}}
	for _, key := range keys {
		if err := state.add(key); err != nil {
			return nil, err
		}
	}
	for i, key := range state.signing[:max(len(state.signing)-1, 0)] {
		if next := state.signing[i+1].from; !next.IsZero() {
			state.public[key.id] = publicKey{key: state.public[key.id].key, until: next.Add(MaxLifetime + retireGrace)}
		}
	}
	return state, nil
}

// add appends a key. It ignores a copy of a key in the set, which would otherwise retire its original.
func (s *keySetState) add(key keyMaterial) error {
	if key.sealing != nil {
		sealing, err := newSealingKey(key.id, key.sealing)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(s.sealing, func(k sealingKey) bool { return k.id == key.id })
		switch {
		case i < 0:
			s.sealing = append(s.sealing, sealing)
		case !bytes.Equal(s.sealing[i].find, sealing.find):
			return fmt.Errorf("two keys have the id %q", key.id)
		}
		return nil
	}
	if known, ok := s.public[key.id]; ok && !known.key.Equal(key.public) {
		return fmt.Errorf("two keys have the id %q", key.id)
	}
	s.public[key.id] = publicKey{key: key.public}
	if key.private != nil && !slices.ContainsFunc(s.signing, func(k signingKey) bool { return k.id == key.id }) {
		s.signing = append(s.signing, signingKey{key.id, key.private, key.from})
	}
	return nil
}

// signer returns the key that signs at now: the last one whose start time has passed.
func (s *keySetState) signer(now time.Time) (signingKey, error) {
	for _, key := range slices.Backward(s.signing) {
		if !key.from.After(now) {
			return key, nil
		}
	}
	if len(s.signing) == 0 {
		return signingKey{}, ErrNoSigningKey
	}
	return s.signing[0], nil // this clock is behind that of the machine that made the key
}

// verifier returns the key that verifies signatures by id at now.
func (s *keySetState) verifier(id string, now time.Time) (ed25519.PublicKey, bool) {
	public, ok := s.public[id]
	if !ok || !public.until.IsZero() && !now.Before(public.until) {
		return nil, false
	}
	return public.key, true
}

// lookup returns the key that verifies signatures by id at now. A signer may have loaded a key before this process, so
// lookup checks the files again before it refuses an unknown ID.
func (s *KeySet) lookup(id string, now time.Time) (ed25519.PublicKey, bool) {
	if s == nil {
		return nil, false
	}
	if key, ok := s.state.Load().verifier(id, now); ok {
		return key, true
	}
	if !s.refresh() {
		return nil, false
	}
	return s.state.Load().verifier(id, now)
}

// Current returns the ID (the JWT's kid) of the key that signs now, or "" if the set can only verify.
func (s *KeySet) Current() string {
	key, _ := s.state.Load().signer(time.Now())
	return key.id
}

// sealer returns the ID of the key that seals, or "" if the set has none.
func (s *KeySet) sealer() string {
	sealing := s.state.Load().sealing
	if len(sealing) == 0 {
		return ""
	}
	return sealing[len(sealing)-1].id
}

// KeyInfo describes one key of a set. It contains no secrets.
type KeyInfo struct {
	ID      string    `json:"kid"`
	Use     string    `json:"use"`            // "sign", "verify" or "seal"
	Current bool      `json:"current"`        // it signs, or seals, now
	From    time.Time `json:"from,omitzero"`  // when its use starts; zero: always
	Until   time.Time `json:"until,omitzero"` // when it stops verifying; zero: not known yet
}

// List describes the keys of the set in the order of their use, sealing keys last.
func (s *KeySet) List() []KeyInfo {
	state := s.state.Load()
	current := s.Current()
	var list []KeyInfo
	for _, key := range state.signing {
		list = append(list, KeyInfo{ID: key.id, Use: "sign", Current: key.id == current, From: key.from,
			Until: state.public[key.id].until})
	}
	for id := range state.public {
		if !slices.ContainsFunc(state.signing, func(k signingKey) bool { return k.id == id }) {
			list = append(list, KeyInfo{ID: id, Use: "verify"})
		}
	}
	slices.SortStableFunc(list, func(a, b KeyInfo) int { return a.From.Compare(b.From) })
	for i, key := range state.sealing {
		list = append(list, KeyInfo{ID: key.id, Use: "seal", Current: i == len(state.sealing)-1})
	}
	return list
}
