package policy

import (
	"context"
	"fmt"
	"strings"
)

// Explanation is a decision about a call, with everything that led to it.
type Explanation struct {
	Allowed    bool     `json:"allowed"`
	Method     string   `json:"method"`
	Path       string   `json:"path"` // canonical, unless it has no canonical form
	Operations []string `json:"operations"`
	Policy     string   `json:"policy"`
	Code       string   `json:"code"`
	Reason     string   `json:"reason"`
}

// Explain decides on a call of a principal as [Principal.Authorize] does.
func (e *Engine) Explain(ctx context.Context, principal *Principal, method, path string) Explanation {
	decision := principal.Authorize(ctx, method, path)
	explained := Explanation{
		Allowed: decision.Allowed, Method: strings.ToUpper(method), Path: path, Operations: e.Operations(method, path),
		Policy: decision.Policy, Code: decision.Code, Reason: decision.Reason,
	}
	if canonical, err := Canonical(path); err == nil {
		explained.Path = canonical
	}
	return explained
}

// String returns the explanation as lines of text.
func (e Explanation) String() string {
	verdict := "denied"
	if e.Allowed {
		verdict = "allowed"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %s %s\n", verdict, e.Method, e.Path)
	for _, line := range []struct{ name, value string }{
		{"policy", e.Policy}, {"reason", e.Reason}, {"operation", strings.Join(e.Operations, ", ")}, {"code", e.Code},
	} {
		if line.value != "" {
			fmt.Fprintf(&text, "  %-9s  %s\n", line.name, line.value)
		}
	}
	return text.String()
}
