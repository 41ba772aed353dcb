package runner

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner/egress"
)

// ConnectionRecord is the record of the connections that a step opened itself. Connections to its proxy are calls, see
// HTTPRecord.
type ConnectionRecord struct {
	// Count is the number of connections, Refused that of the refused ones; NotLogged is how many are not in
	// Connections.
	Count       int64        `json:"count"`
	Refused     int64        `json:"refused"`
	NotLogged   int64        `json:"not_logged"`
	Connections []Connection `json:"connections"`
}

// Connection is one recorded connection, all datagrams to one destination, or a name that was not resolved.
type Connection struct {
	// Host is the name that the step asked for; empty for a literal address.
	Host string `json:"host"`
	// Address and Port are empty for a name that was not resolved.
	Address   string `json:"address"`
	Port      uint16 `json:"port"`
	Transport string `json:"transport"`
	Allowed   bool   `json:"allowed"`
	// Policy is the deciding rule, Code and Reason say why the connection was refused.
	Policy string `json:"policy"`
	Code   string `json:"code,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Error is the name of the kernel's error, such as ECONNREFUSED; EINPROGRESS if the step itself waited for the
	// connection.
	Error     string    `json:"error,omitempty"`
	StartedAt time.Time `json:"started_at"`
	// Duration is the time until the connection was made or failed, in milliseconds.
	Duration float64 `json:"duration"`
}

// connections returns the record of an execution, redacted.
func (c *collector) connections(record egress.Record) *ConnectionRecord {
	kept := &ConnectionRecord{
		Count: record.Count, Refused: record.Refused, NotLogged: record.Count - int64(len(record.Connections)),
		Connections: []Connection{},
	}
	for _, connection := range record.Connections {
		made := Connection{
			Host: c.redact.text(connection.Host), Port: connection.Port, Transport: connection.Transport,
			Allowed: connection.Allowed,
			Policy:  connection.Policy, Code: connection.Code, Error: connection.Failure,
			StartedAt: connection.Began.UTC(), Duration: milliseconds(connection.Duration),
		}
		if connection.Address.IsValid() {
			made.Address = connection.Address.String()
		}
		if !connection.Allowed {
			made.Reason = c.redact.text(connection.Reason)
		}
		kept.Connections = append(kept.Connections, made)
	}
	return kept
}

// consequences are the words with which exceptions report a refused connection or an unresolved name.
var consequences = []string{
	"Permission denied", "Errno 13", "Name or service not known", "Errno -2", "Temporary failure in name resolution",
	"Errno -3",
	"No address associated with hostname", "Errno -5",
}

// explain adds to a failed step's error why its last connection was refused, if that may be the cause. A library may
// have wrapped the system's error, but the error's text is still in the traceback.
func (v *verdict) explain(record egress.Record) {
	refused := record.Last
	if v.outcome != outcomes.Exception || refused == nil {
		return
	}
	text := v.message + v.detail
	caused := strings.Contains(text, refused.Host) && refused.Host != ""
	for _, words := range consequences {
		caused = caused || strings.Contains(text, words)
	}
	if !caused {
		return
	}
	note := explanation(*refused)
	v.message += "; " + note
	if v.detail != "" {
		v.detail = strings.TrimRight(v.detail, "\n") + "\n" + note + "\n"
	}
}

// explanation returns one line: which connection was refused, by which rule, and why.
func explanation(c egress.Connection) string {
	to := c.Host
	if c.Address.IsValid() {
		to = net.JoinHostPort(c.Address.String(), strconv.Itoa(int(c.Port)))
		if c.Host != "" {
			to = net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))) + " at " + c.Address.String()
		}
	}
	what := "connection to " + to
	if !c.Address.IsValid() {
		what = "the name " + to + " was not resolved:"
	}
	by := "refused by policy"
	if c.Policy != "" {
		by += " " + c.Policy
	}
	return fmt.Sprintf("%s %s: %s; see kizen-sidecar policy explain connect", what, by, c.Reason)
}
