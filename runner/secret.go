package runner

import (
	"fmt"
	"log/slog"
	"sort"
	"strings"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

// Secret is a value that shows as [REDACTED] in every rendering. Only Reveal returns it.
type Secret struct {
	value string
}

// NewSecret wraps value.
func NewSecret(value string) Secret { return Secret{value: value} }

// Reveal returns the secret value, for the job frame of the execution that was granted it.
func (s Secret) Reveal() string { return s.value }

func (Secret) String() string               { return redacted.Mark }
func (Secret) GoString() string             { return redacted.Mark }
func (Secret) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted.Mark)) }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted.Mark), nil }
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted.Mark + `"`), nil }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redacted.Mark) }

// GrantSecrets returns the supplied secrets that a step declares, under the names by which the step reads them. A
// plugin step reads "{plugin}__{name}", whether the secret was supplied under that name or as "{name}". Without a
// plugin, the secret for a declared name may be supplied as "{name}" or as any "{plugin}__{name}", and keeps that name.
// Missing secrets are reported as field errors under "secrets". If declared is nil, all supplied secrets are granted.
func GrantSecrets(plugin string, declared []string, supplied map[string]Secret) (map[string]Secret, error) {
	if declared == nil {
		return supplied, nil
	}
	granted := map[string]Secret{}
	var errs FieldErrors
	for _, name := range declared {
		found := false
		if plugin != "" {
			found = grantNamespaced(granted, plugin, name, supplied)
		} else {
			for given, secret := range supplied {
				if given == name || strings.HasSuffix(given, "__"+name) {
					granted[given] = secret
					found = true
				}
			}
		}
		if !found {
			errs.Add(fmt.Sprintf("secret %q is declared but was not supplied", name), "secrets")
		}
	}
	return granted, errs.Err()
}

// grantNamespaced grants one declared secret of a plugin's step.
func grantNamespaced(granted map[string]Secret, plugin, name string, supplied map[string]Secret) bool {
	name = strings.TrimPrefix(name, plugin+"__")
	namespaced := plugin + "__" + name
	for _, given := range []string{namespaced, name} {
		if secret, ok := supplied[given]; ok {
			granted[namespaced] = secret
			return true
		}
	}
	return false
}

// SecretNames returns the sorted names of secrets, for a log line.
func SecretNames(secrets map[string]Secret) []string {
	names := make([]string, 0, len(secrets))
	for name := range secrets {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
