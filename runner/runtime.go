package runner

import (
	"fmt"
	"regexp"
	"strings"
)

// Runtime is the canonical name of a Python version that steps may request.
type Runtime string

// The runtimes that exist.
const (
	Python312 Runtime = "python-3-12"
	Python313 Runtime = "python-3-13"

	// DefaultRuntime is the runtime of a step that names none.
	DefaultRuntime = Python312
)

var runtimes = []Runtime{Python312, Python313}

var runtimeSpelling = regexp.MustCompile(`^python[- ]?(\d)[-.](\d+)$`)

// ParseRuntime resolves the spellings in use ("python-3-13", "python 3.13", "python-3.13", "python3.13") to a Runtime.
// An empty name is DefaultRuntime; any other is an *UnknownRuntimeError.
func ParseRuntime(name string) (Runtime, error) {
	trimmed := strings.ToLower(strings.TrimSpace(name))
	if trimmed == "" {
		return DefaultRuntime, nil
	}
	if m := runtimeSpelling.FindStringSubmatch(trimmed); m != nil {
		for _, r := range runtimes {
			if string(r) == "python-"+m[1]+"-"+m[2] {
				return r, nil
			}
		}
	}
	return "", &UnknownRuntimeError{Name: name}
}

// Version returns the runtime's Python version, such as "3.13".
func (r Runtime) Version() string {
	return strings.ReplaceAll(strings.TrimPrefix(string(r), "python-"), "-", ".")
}

// UnknownRuntimeError reports an unknown runtime name.
type UnknownRuntimeError struct {
	Name string
}

func (e *UnknownRuntimeError) Error() string {
	names := make([]string, len(runtimes))
	for i, r := range runtimes {
		names[i] = string(r)
	}
	return fmt.Sprintf("unknown runtime %q; use one of %s", e.Name, strings.Join(names, ", "))
}
