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
)

// maxKeyFile bounds what is read as a key file, in bytes.
const maxKeyFile = 1 << 20

// keyFileNames are the endings of the files in a key directory that are read. Everything else there is left alone.
var keyFileNames = []string{".jwk", ".jwks", ".json", ".pem", ".key", ".pub"}

// KeySetConfig says where the keys of a set are: in a file or a directory of files, or in Text. Each is PEM (PKCS #8, or
// SubjectPublicKeyInfo for keys that only verify), a JWK or a JWK set.
//
// The JWK member "kizen_from", which [NewSigningKey] writes, says from when a key signs: it is current until the next one's
// time, and verifies until the last key that it can have signed has expired. Among keys without it the last by file name,
// and within a file the last, is current, and the others verify for as long as they are there.
type KeySetConfig struct {
	Path string // a file or a directory
	Text Token  // the keys themselves, from the environment say
}

// LoadKeySet reads a key set.
func LoadKeySet(config KeySetConfig) (*KeySet, error) {
	set := &KeySet{source: config}
	if err := set.reload(); err != nil {
		return nil, err
	}
	return set, nil
}

// Reload reads the set again from where it came. When that fails the set stays as it was. A set that was generated has nothing to
// read.
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

// refresh reloads the set if its source may have changed since the last load, and says whether it did. A caller that invents key
// ids costs us no more than this look. A change just before a load may have had the same modification time as one just after.
func (s *KeySet) refresh() bool {
	if s.source.Path == "" {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := !s.source.modified().Equal(s.stamp) || s.loaded.Sub(s.stamp).Abs() < time.Second
	return changed && s.reload() == nil
}

// modified is the modification time of the file or directory, zero where there is none.
func (c KeySetConfig) modified() time.Time {
	info, err := os.Stat(c.Path)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// Watch reloads the set whenever its files change, until ctx ends, and calls report after each attempt with how it went. It
// returns at once for a set that comes from no file.
func (s *KeySet) Watch(ctx context.Context, report func(error)) error {
	if s.source.Path == "" {
		return nil
	}
	dir := s.source.Path
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		dir = filepath.Dir(dir) // a file that is replaced is another file: only its directory sees that
	}
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		defer func() { _ = watcher.Close() }()
		err = watcher.Add(dir)
	}
	if err != nil {
		return fmt.Errorf("watch the keys in %q: %w", dir, err)
	}
	// What changed between the last load and the start of the watch was not seen by either.
	report(s.Reload())
	settled := time.NewTimer(0)
	<-settled.C
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
			settled.Reset(20 * time.Millisecond) // one change makes several events
		case <-watcher.Errors: // events were lost
			settled.Reset(0)
		case <-settled.C:
			report(s.Reload())
		}
	}
}

// read returns the keys and the name of where they are, for messages.
func (c KeySetConfig) read() (string, []keyMaterial, error) {
	switch {
	case (c.Path == "") == (c.Text.Reveal() == ""):
		return "", nil, errors.New("a key set comes either from a path or from a text")
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

// keyFiles lists the key files of a directory by name. Names with a dot in front are of files that are being written, and of
// Kubernetes.
func keyFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), ".") && slices.Contains(keyFileNames, filepath.Ext(entry.Name())) {
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

// NewKey is a key that was made and written nowhere yet.
type NewKey struct {
	ID  string // the kid
	jwk Token
}

// JWK returns the private key as a JWK. It is a secret.
func (k NewKey) JWK() Token { return k.jwk }

// NewSigningKey makes an Ed25519 key pair that signs from a time on.
func NewSigningKey(from time.Time) (NewKey, error) {
	key, err := generateSigning(from)
	if err != nil {
		return NewKey{}, err
	}
	return newKey(key)
}

// NewSealingKey makes a key that seals stored keys from a time on.
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

// WriteKey writes a key into a key directory, which is made if it is not there, readable by its owner alone. A reader sees all
// of the file or nothing of it.
func WriteKey(dir string, key NewKey) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write key %q: %w", key.ID, err)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, ".new-*") // made with mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }()
	_, err = file.WriteString(key.jwk.Reveal() + "\n")
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), filepath.Join(dir, key.ID+".jwk"))
}

// PruneKeys removes the files of signing keys that verify nothing any more, and returns their ids. It is harmless beside
// other rotations.
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
		// Only files that WriteKey made hold one key each and can go as a whole. A kid of somebody else's may be a path.
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
