package execution

import (
	"encoding/json"
	"errors"

	"github.com/kizen/kizen-sidecar/runner"
)

// errSecretsFile does not quote the file, because a decoder's error may contain a secret.
var errSecretsFile = errors.New(`is not a JSON object of businesses and their secrets; write it like {"BUSINESS": {"NAME": "value"}}`)

// SecretsByBusiness holds preconfigured secrets, by business and name.
type SecretsByBusiness map[string]map[string]runner.Secret

// ParseSecrets reads a JSON object of businesses, each an object of secrets by name.
func ParseSecrets(data []byte) (SecretsByBusiness, error) {
	var values map[string]map[string]string
	if json.Unmarshal(data, &values) != nil {
		return nil, errSecretsFile
	}
	secrets := SecretsByBusiness{}
	for business, named := range values {
		secrets[business] = map[string]runner.Secret{}
		for name, value := range named {
			if value == "" {
				return nil, errors.New("contains an empty secret; give it a value, or leave it out")
			}
			secrets[business][name] = runner.NewSecret(value)
		}
	}
	return secrets, nil
}

// Secret implements [Secrets].
func (s SecretsByBusiness) Secret(businessID, name string) (runner.Secret, bool) {
	secret, ok := s[businessID][name]
	return secret, ok
}
