package proxy

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// Outcome says how a call ended; it is also "code" in the body of the proxy's own responses.
type Outcome string

// Outcomes of a call. Only Answered, APIBroke, ClientGone and calls that were cut have the API's status.
const (
	Answered       Outcome = "answered"            // the API's whole response was delivered, whatever its status
	BadRequest     Outcome = "bad_request"         // 400: malformed or ambiguous
	BadHost        Outcome = "bad_host"            // 400: the Host is not the proxy's
	BadPath        Outcome = "bad_path"            // 400: outside the API root
	Forbidden      Outcome = "forbidden"           // 403: no capability
	Denied         Outcome = "guardrail"           // 403: by policy
	ClientTooSlow  Outcome = "request_timeout"     // 408: the step did not finish its request
	BodyTooLarge   Outcome = "body_too_large"      // 413
	TooMany        Outcome = "too_many_requests"   // 429: Config.MaxInFlight
	HeaderTooLarge Outcome = "headers_too_large"   // 431
	APIUnreachable Outcome = "api_unreachable"     // 502: no connection, or no response on it
	BadAnswer      Outcome = "api_protocol_error"  // 502: the API's response was malformed
	NoKey          Outcome = "key_unavailable"     // 503
	NoAudit        Outcome = "audit_unavailable"   // 503: the call could not be recorded
	ShuttingDown   Outcome = "shutting_down"       // 503
	APITooSlow     Outcome = "api_timeout"         // 504
	PastDeadline   Outcome = "deadline_exceeded"   // 504: Config.Deadline
	ClientGone     Outcome = "client_disconnected" // no response could be delivered
	APIBroke       Outcome = "answer_cut"          // the API's response ended early
)

var statusOf = map[Outcome]int{
	BadRequest: 400, BadHost: 400, BadPath: 400, Forbidden: 403, Denied: 403, ClientTooSlow: 408, BodyTooLarge: 413,
	TooMany: 429, HeaderTooLarge: 431, APIUnreachable: 502, BadAnswer: 502, NoKey: 503, NoAudit: 503,
	ShuttingDown: 503, APITooSlow: 504, PastDeadline: 504,
}

// refusal is a response of the proxy itself, or the reason why none is sent.
type refusal struct {
	outcome Outcome
	detail  string
	code    string // from the policy, replaces outcome
	policy  string
}

func refuse(outcome Outcome, detail string) *refusal {
	return &refusal{outcome: outcome, detail: detail}
}

func (r *refusal) status() int { return statusOf[r.outcome] }

// append writes the whole response.
func (r *refusal) append(b []byte, method []byte, closing bool) []byte {
	code := r.code
	if code == "" {
		code = string(r.outcome)
	}
	// Marshalling three strings cannot fail.
	body, _ := json.Marshal(struct {
		Detail string `json:"detail"`
		Code   string `json:"code"`
		Policy string `json:"policy,omitempty"`
	}{r.detail, code, r.policy})

	status := r.status()
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	b = append(b, "\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	if r.outcome == TooMany {
		b = append(b, "\r\nRetry-After: 1"...)
	}
	if closing {
		b = append(b, "\r\nConnection: close"...)
	}
	b = append(b, "\r\n\r\n"...)
	if string(method) == "HEAD" {
		return b
	}
	return append(b, body...)
}
