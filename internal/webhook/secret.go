package webhook

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

const (
	secretPrefix = "whsec_"
	// The specification's bounds on a secret, in bytes.
	shortestSecret, longestSecret = 24, 64
)

// errSecret does not quote the invalid text, which may contain most of a secret.
var errSecret = errors.New("is not a webhook secret; write whsec_ and the base64 of 24 to 64 random bytes")

// Secret signs messages. Every rendering of it is [REDACTED]; the zero value is not valid.
type Secret struct{ key []byte }

// ParseSecret reads a secret in the form that receivers use: whsec_ and standard base64.
func ParseSecret(text string) (Secret, error) {
	encoded, ok := strings.CutPrefix(text, secretPrefix)
	key, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(key) < shortestSecret || len(key) > longestSecret {
		return Secret{}, errSecret
	}
	return Secret{key}, nil
}

// ParseSecrets reads one secret from each line; it skips empty lines and lines that begin with #. Every secret signs
// each message, so that receivers can switch to a new one at different times.
func ParseSecrets(data []byte) ([]Secret, error) {
	var secrets []Secret
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		secret, err := ParseSecret(line)
		if err != nil {
			return nil, fmt.Errorf("line %d %w", number, err)
		}
		secrets = append(secrets, secret)
	}
	if len(secrets) == 0 {
		return nil, errors.New("it contains no secret; write one on each line")
	}
	return secrets, nil
}

func (Secret) String() string               { return redacted.Mark }
func (Secret) GoString() string             { return redacted.Mark }
func (Secret) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted.Mark)) }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted.Mark), nil }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redacted.Mark) }
