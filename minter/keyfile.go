package minter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/kizen/kizen-sidecar/internal/wholefile"
)

// maxKeyFile is the maximal size of a key file, in bytes.
const maxKeyFile = 1 << 20

// keyFileExtensions are the extensions of key files. Other files in a key directory are ignored.
var keyFileExtensions = []string{".jwk", ".jwks", ".json", ".pem", ".key", ".pub"}

// KeySetConfig names the source of a key set: a file, a directory of files, or Text. Each source holds PEM (PKCS #8, or
// SubjectPublicKeyInfo for keys that only verify), a JWK or a JWK set.
//
// [NewSigningKey] writes the JWK member "kizen_from", the time from which a key signs. The key is current until the
// next key's time, and verifies until the last key that it can have signed has expired. Among keys without this member,
// the last one by file name, and the last one within a file, is current; the others verify for as long as they are in
// the set.
type KeySetConfig struct {
	Path string // a file or a directory
	Text Token  // the keys themselves, for example from the environment
}

// LoadKeySet reads a key set.
func LoadKeySet(config KeySetConfig) (*KeySet, error) {
	set := &KeySet{source: config}
	if err := set.reload(); err != nil {
		return nil, err
	}
	return set, nil
}

// Reload reads the set again from its source. If that fails, the set stays unchanged. For a generated set it does
// nothing.
func (s *KeySet) Reload() error {
	if s.source == (KeySetConfig{}) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reload()
}

func (s *KeySet) reload() error {
	s.loaded = time.Now()
	s.stamp = s.source.modified()
	name, keys, err := s.source.read()
	if err != nil {
		return err
	}
	state, err := newKeySetState(keys)
	if err != nil {
		return fmt.Errorf("read keys from %s: %w", name, err)
	}
	s.state.Store(state)
	return nil
}

// refresh reloads the set if its source may have changed since the last load, and reports whether it did. An invented
// key ID therefore costs no more than a stat. Changes just before and just after a load may have the same modification
// time.
func (s *KeySet) refresh() bool {
	if s.source.Path == "" {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := !s.source.modified().Equal(s.stamp) || s.loaded.Sub(s.stamp).Abs() < time.Second
	return changed && s.reload() == nil
}

// modified returns the modification time of the file or directory, or zero if it does not exist.
func (c KeySetConfig) modified() time.Time {
	info, err := os.Stat(c.Path)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// Watch reloads the set whenever its files change, until ctx ends, and calls report with the result of each attempt. If
// the set does not come from a file, Watch returns at once.
func (s *KeySet) Watch(ctx context.Context, report func(error)) error {
	if s.source.Path == "" {
		return nil
	}
	dir := s.source.Path
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		// a watch on a file does not notice that the file is replaced; a watch on its directory does
		dir = filepath.Dir(dir)
	}
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		defer func() { _ = watcher.Close() }()
		err = watcher.Add(dir)
	}
	if err != nil {
		return fmt.Errorf("watch the keys in %q: %w", dir, err)
	}
	// Neither the last load nor the watch has seen changes between the two.
	report(s.Reload())
	debounce := time.NewTimer(0)
	<-debounce.C
	defer debounce.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
			debounce.Reset(20 * time.Millisecond) // one change causes several events
		case <-watcher.Errors: // events were lost
			debounce.Reset(0)
		case <-debounce.C:
			report(s.Reload())
		}
	}
}

// read returns the keys and the name of their source, for messages.
func (c KeySetConfig) read() (string, []keyMaterial, error) {
	switch {
	case (c.Path == "") == (c.Text.Reveal() == ""):
		return "", nil, errors.New("a key set needs either a path or a text")
	case c.Path == "":
		keys, err := parseKeys([]byte(c.Text.Reveal()))
		if err != nil {
			return "", nil, fmt.Errorf("read keys from the environment: %w", err)
		}
		return "the environment", keys, nil
	}
	name := fmt.Sprintf("%q", c.Path)
	info, err := os.Stat(c.Path)
	if err != nil {
		return "", nil, fmt.Errorf("read keys: %w", err)
	}
	files := []string{c.Path}
	if info.IsDir() {
		if files, err = keyFiles(c.Path); err != nil {
			return "", nil, fmt.Errorf("read keys from %s: %w", name, err)
		}
	}
	var keys []keyMaterial
	for _, file := range files {
		found, err := readKeyFile(file)
		if errors.Is(err, fs.ErrNotExist) && info.IsDir() {
			continue // pruned by a rotation since the directory was listed
		}
		if err != nil {
			return "", nil, fmt.Errorf("read keys from %q: %w", file, err)
		}
		keys = append(keys, found...)
	}
	return name, keys, nil
}

// keyFiles lists the key files of a directory by name. It skips names that begin with a dot: temporary files, and the
// internal files of Kubernetes volumes.
func keyFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), ".") && slices.Contains(keyFileExtensions, filepath.Ext(entry.Name())) {
			files = append(files, filepath.Join(dir, entry.Name()))
		}
	}
	return files, nil
}

func readKeyFile(file string) ([]keyMaterial, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return nil, fmt.Errorf("it is not a file of at most %d bytes", maxKeyFile)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseKeys(text)
}

// NewKey is a generated key that has not been written yet.
type NewKey struct {
	ID  string // the kid
	jwk Token
}

// JWK returns the private key as a JWK. It is a secret.
func (k NewKey) JWK() Token { return k.jwk }

// NewSigningKey generates an Ed25519 key pair that signs from the given time on.
func NewSigningKey(from time.Time) (NewKey, error) {
	key, err := generateSigning(from)
	if err != nil {
		return NewKey{}, err
	}
	return newKey(key)
}

// NewSealingKey generates a key that seals stored keys from the given time on.
func NewSealingKey(from time.Time) (NewKey, error) { return newKey(generateSealing(from)) }

func newKey(key keyMaterial) (NewKey, error) {
	encoded, err := encodeJWK(key, true)
	if err != nil {
		return NewKey{}, err
	}
	text, err := json.Marshal(encoded)
	if err != nil {
		return NewKey{}, fmt.Errorf("write key %q: %w", key.id, err)
	}
	return NewKey{key.id, NewToken(string(text))}, nil
}

// WriteKey writes a key into a key directory, readable only by its owner, and creates the directory if necessary. A
// reader sees the whole file or no file.
func WriteKey(dir string, key NewKey) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write key %q: %w", key.ID, err)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return wholefile.Keep(filepath.Join(dir, key.ID+".jwk"), []byte(key.jwk.Reveal()+"\n"), 0o600)
}

// PruneKeys removes the files of signing keys that no longer verify, and returns their IDs. It is safe beside
// concurrent rotations.
func PruneKeys(dir string, now time.Time) ([]string, error) {
	set, err := LoadKeySet(KeySetConfig{Path: dir})
	if err != nil {
		return nil, err
	}
	var pruned []string
	for _, key := range set.List() {
		if key.Use != "sign" || key.Until.IsZero() || now.Before(key.Until) {
			continue
		}
		// Only files written by WriteKey contain exactly one key and can be removed. The kid of another key may
		// be a path.
		name := key.ID + ".jwk"
		if name != filepath.Base(name) {
			continue
		}
		switch err := os.Remove(filepath.Join(dir, name)); {
		case err == nil:
			pruned = append(pruned, key.ID)
		case !errors.Is(err, fs.ErrNotExist):
			return pruned, fmt.Errorf("remove the retired key %q: %w", key.ID, err)
		}
	}
	return pruned, nil
}

// HasKey reports whether a directory contains a signing key, or a sealing key. For an unreadable directory it returns
// false; the next write to it reports the error.
func HasKey(dir string, sealing bool) bool {
	keys, err := LoadKeySet(KeySetConfig{Path: dir})
	if err != nil {
		return false
	}
	use := map[bool]string{false: "sign", true: "seal"}[sealing]
	return slices.ContainsFunc(keys.List(), func(key KeyInfo) bool { return key.Use == use })
}
