package runner

import "fmt"

// ClientModule is the source of the kizen module for Python that runs beside a standing proxy instead of under a
// [Runner]. It is the client that steps have, and stands alone.
func ClientModule() (string, error) {
	source, err := harnessSources.ReadFile("python/kizen_runtime/client.py")
	if err != nil {
		return "", fmt.Errorf("read the embedded client: %w", err)
	}
	return string(source), nil
}
