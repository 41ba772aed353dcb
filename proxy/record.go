package proxy

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

// Call is one request of the step and what became of it. It has no body, no header and no secret-looking value.
type Call struct {
	Start    time.Time
	Duration time.Duration
	Method   string
	Path     string // as sent, relative to the API root
	Query    string // as sent, values of parameters that are named like secrets replaced
	Status   int    // what the step was answered; 0 when it got nothing
	Sent     int64  // bytes of the request's body
	Received int64  // bytes of the answer's body
	Outcome  Outcome
	Detail   string // why, when Outcome is not Answered
	Policy   string // policy that decided, when there is an Authorizer
	Allowed  bool   // what it decided; true without one, false when it was not asked
	Retried  bool   // sent a second time, on a new connection
	Protocol string // version of HTTP spoken with the API: "1.1" or "2"; empty when nothing was sent
	Span     any    // Span.Data of Config.Trace
}

// auditLine is what the audit keeps of a call: whose it was, and what became of it.
type auditLine struct {
	executionID, businessID, userID string
	call                            Call
}

// MarshalJSON writes the line without its end.
func (l auditLine) MarshalJSON() ([]byte, error) {
	c, decision := l.call, "deny"
	if c.Allowed {
		decision = "allow"
	}
	return json.Marshal(struct {
		Time     string  `json:"time"`
		ID       string  `json:"execution_id,omitempty"`
		Business string  `json:"business_id"`
		User     string  `json:"user_id"`
		Method   string  `json:"method"`
		Path     string  `json:"path"`
		Query    string  `json:"query,omitempty"`
		Status   int     `json:"status"`
		Sent     int64   `json:"request_bytes"`
		Received int64   `json:"response_bytes"`
		MS       float64 `json:"ms"`
		Outcome  Outcome `json:"outcome"`
		Detail   string  `json:"detail,omitempty"`
		Decision string  `json:"decision"`
		Policy   string  `json:"policy,omitempty"`
		Retried  bool    `json:"retried,omitempty"`
	}{
		c.Start.UTC().Format(time.RFC3339Nano), l.executionID, l.businessID, l.userID, c.Method, c.Path, c.Query, c.Status, c.Sent, c.Received,
		float64(c.Duration.Microseconds()) / 1000, c.Outcome, c.Detail, decision, c.Policy, c.Retried,
	})
}

// redactQuery replaces the values of parameters named like secrets, and leaves every other byte.
func redactQuery(query string) string {
	if query == "" {
		return ""
	}
	var b strings.Builder
	for query != "" {
		end := strings.IndexAny(query, "&;")
		parameter, separator := query, ""
		if end >= 0 {
			parameter, separator = query[:end], query[end:end+1]
		}
		query = query[len(parameter)+len(separator):]
		name, value, ok := strings.Cut(parameter, "=")
		switch {
		case ok && value != "" && (secretName(name) || strings.HasPrefix(value, "eyJ")): // a token says what it is
			b.WriteString(name + "=" + redacted.Mark)
		default:
			b.WriteString(parameter)
		}
		b.WriteString(separator)
	}
	return b.String()
}

func secretName(name string) bool {
	plain := []byte(name)
	for range maxDecodings {
		decoded, err := unescape(plain)
		if err != nil {
			break
		}
		plain = decoded
	}
	return redacted.Parameter(string(plain))
}
