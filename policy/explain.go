package policy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
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

// ConnectionExplanation is a decision about a connection to one address.
type ConnectionExplanation struct {
	Allowed   bool       `json:"allowed"`
	Host      string     `json:"host,omitempty"` // absent for a literal address
	Address   netip.Addr `json:"address"`
	Port      uint16     `json:"port"`
	Transport string     `json:"transport"`
	Policy    string     `json:"policy"`
	Code      string     `json:"code"`
	Reason    string     `json:"reason"`
}

// ExplainConnection decides on a connection as [Principal.Connect] does.
func (p *Principal) ExplainConnection(c Connection) ConnectionExplanation {
	decision := p.Connect(c)
	return ConnectionExplanation{
		Allowed: decision.Allowed, Host: c.Host, Address: c.Address, Port: c.Port, Transport: c.Transport,
		Policy: decision.Policy, Code: decision.Code, Reason: decision.Reason,
	}
}

// String returns the explanation as lines of text.
func (e ConnectionExplanation) String() string {
	return Explanation{Allowed: e.Allowed, Method: "connect", Path: e.destination(), Policy: e.Policy, Code: e.Code,
		Reason: e.Reason}.String()
}

// destination names the other end, and how it is reached.
func (e ConnectionExplanation) destination() string {
	host := e.Host
	if host == "" {
		host = e.Address.String()
	}
	text := net.JoinHostPort(host, strconv.Itoa(int(e.Port)))
	if e.Host != "" {
		text += " at " + e.Address.String()
	}
	return text + " over " + e.Transport
}
