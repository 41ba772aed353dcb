package proxy

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

// Call is one request of the step and its result. It has no body, no headers and no values of secret parameters.
type Call struct {
	Start    time.Time
	Duration time.Duration
	Method   string
	Path     string // as sent, relative to the API root
	Query    string // as sent, with the values of parameters with secret names replaced
	Status   int    // of the response to the step; 0 if it got none
	Sent     int64  // bytes of the request's body
	Received int64  // bytes of the response's body
	Outcome  Outcome
	Detail   string // the reason, if Outcome is not Answered
	Policy   string // the deciding policy, with an Authorizer
	Allowed  bool   // the decision; true without an Authorizer, false if it was not asked
	Retried  bool   // sent again, on a new connection
	Protocol string // version of HTTP to the API: "1.1" or "2"; empty if nothing was sent
	Span     any    // Span.Data of Config.Trace
}

// auditLine is the line of a call in the audit file.
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
		c.Start.UTC().Format(time.RFC3339Nano), l.executionID, l.businessID, l.userID, c.Method, c.Path, c.Query, c.Status,
		c.Sent, c.Received,
		float64(c.Duration.Microseconds()) / 1000, c.Outcome, c.Detail, decision, c.Policy, c.Retried,
	})
}

// redactQuery replaces the values of parameters with secret names, and keeps every other byte.
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
		// a JWT is recognisable by itself
		case ok && value != "" && (secretName(name) || strings.HasPrefix(value, "eyJ")):
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
