package runner

import "fmt"

// ClientModule returns the source of the kizen module for Python programs that run beside a proxy instead of under a
// [Runner]. It is the same client that steps have, in one self-contained file.
func ClientModule() (string, error) {
	source, err := harnessSources.ReadFile("python/kizen_runtime/client.py")
	if err != nil {
		return "", fmt.Errorf("read the embedded client: %w", err)
	}
	return string(source), nil
}
