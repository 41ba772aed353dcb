package egress

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// The codes of refusals that no rule has decided.
const (
	CodeNotStarted = "not_started"          // before the execution has begun
	CodeTooMany    = "too_many_connections" // the execution has reached its maximum
	CodeQuestions  = "too_many_questions"   // more DNS queries per second than allowed
)

// A transport in records, in addition to "tcp" and "udp".
const transportName = "dns" // a DNS query that was refused

// Connection is one connection of a step, all its datagrams to one destination, or a name that was not resolved.
type Connection struct {
	Host      string     // the name that the policy decided on; empty for a literal address
	Address   netip.Addr // invalid for a name that was not resolved
	Port      uint16
	Transport string // "tcp", "udp", or "dns" for a name that was not resolved
	Allowed   bool
	Policy    string // the deciding rule; may be empty
	Code      string // why it was refused; empty if allowed
	Reason    string
	// Failure is the name of the kernel's error, such as ECONNREFUSED; empty if the connection was made. EINPROGRESS
	// means that the step itself waits for it.
	Failure string
	Began   time.Time
	// Duration is the time until the connection was made or failed.
	Duration time.Duration
}

// maxKept is the number of connections that a record keeps.
const maxKept = 100

// Record lists the connections of an execution.
type Record struct {
	Connections []Connection // the first ones
	Count       int64        // all of them
	Refused     int64
	// Last is the last refused connection, or nil.
	Last *Connection
}

// record collects a Record.
type record struct {
	Record
	destinations map[datagrams]struct{}
}

// datagrams identifies datagrams that count as one connection.
type datagrams struct {
	to   netip.AddrPort
	rule string
}

// maxDestinations limits how many destinations of datagrams are distinguished.
const maxDestinations = 4096

func (r *record) copy() Record {
	copied := r.Record
	copied.Connections = append([]Connection(nil), copied.Connections...)
	return copied
}

// add records a connection, whether it was made or not.
func (s *Supervisor) add(c Connection, err error) {
	c.Duration = time.Since(c.Began)
	if err != nil {
		c.Failure = unix.ErrnoName(errnoOf(err))
	}
	s.mu.Lock()
	s.record.Count++
	if limit := int64(s.job.MaxConnections); limit > 0 && s.record.Count > limit {
		// All further connections are refused and only counted, because a step could fill the audit's disk with them.
		s.record.Refused++
		s.mu.Unlock()
		return
	}
	if !c.Allowed {
		s.record.Refused++
		s.record.Last = &c
	}
	if len(s.record.Connections) < maxKept {
		s.record.Connections = append(s.record.Connections, c)
	}
	observe := s.job.Observe
	s.mu.Unlock()
	if observe != nil {
		observe(c)
	}
}

// addDatagram records the first datagram to a destination.
func (s *Supervisor) addDatagram(c Connection) {
	key := datagrams{netip.AddrPortFrom(c.Address, c.Port), c.Policy}
	s.mu.Lock()
	if s.record.destinations == nil {
		s.record.destinations = map[datagrams]struct{}{}
	}
	_, known := s.record.destinations[key]
	if !known && len(s.record.destinations) < maxDestinations {
		s.record.destinations[key] = struct{}{}
	}
	s.mu.Unlock()
	if !known {
		s.add(c, nil)
	}
}
