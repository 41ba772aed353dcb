package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// resolver answers the DNS queries of one execution. RES_OPTIONS and resolv.conf make the step query the host's name
// servers over TCP. The supervisor connects it to the resolver instead. The resolver forwards the queries that the
// policy allows, each to the server that the step has asked, and remembers the answers.
type resolver struct {
	supervisor *Supervisor

	mu       sync.Mutex
	listener net.Listener
	clients  map[uint16]netip.Addr // by the client's port: the server that it has asked
	open     map[net.Conn]struct{}
	rate     rate
	closed   bool
	work     routine.Group
}

const (
	namePort = 53
	// questionTimeout limits how long a name server may take. The step's own resolver then asks the next server.
	questionTimeout = 5 * time.Second
	maxClients      = 64
	maxInFlight     = 16 // queries of one client
)

// asksNameServer reports whether a connection goes to a name server of the host.
func (s *Supervisor) asksNameServer(to netip.AddrPort) bool {
	return to.Port() == namePort && slices.Contains(s.config.NameServers, to.Addr())
}

// redirect connects a socket to the execution's resolver instead of a name server.
func (c *call) redirect(server netip.AddrPort) (int64, error) {
	r := &c.supervisor.resolver
	local := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	if err := raw(unix.SYS_BIND, c.socket.fd, c.socket.build(local)); err != nil {
		return 0, unix.ECONNREFUSED
	}
	port, err := boundPort(c.socket.fd)
	if err != nil {
		return 0, err
	}
	at, err := r.expect(port, server.Addr())
	if err != nil {
		return 0, unix.ECONNREFUSED
	}
	return 0, connectRaw(c.socket.fd, c.socket.build(at))
}

func boundPort(fd int) (uint16, error) {
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	switch bound := bound.(type) {
	case *unix.SockaddrInet4:
		return uint16(bound.Port), nil
	case *unix.SockaddrInet6:
		return uint16(bound.Port), nil
	}
	return 0, unix.EAFNOSUPPORT
}

var errResolverClosed = errors.New("the resolver is closed")

// expect admits one client, by its port, and returns the address of the resolver's listener.
func (r *resolver) expect(port uint16, server netip.Addr) (netip.AddrPort, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || len(r.clients) >= maxClients {
		return netip.AddrPort{}, errResolverClosed
	}
	if r.listener == nil {
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("listen for questions of a step: %w", err)
		}
		r.listener, r.clients, r.open = listener, map[uint16]netip.Addr{}, map[net.Conn]struct{}{}
		r.work.Go(func() { r.accept(listener) })
	}
	r.clients[port] = server
	return netip.MustParseAddrPort(r.listener.Addr().String()), nil
}

func (r *resolver) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		port := uint16(client.RemoteAddr().(*net.TCPAddr).Port)
		r.mu.Lock()
		server, expected := r.clients[port]
		if expected && !r.closed {
			r.open[client] = struct{}{}
		}
		refused := !expected || r.closed
		r.mu.Unlock()
		if refused { // the client is another process of this machine
			_ = client.Close()
			continue
		}
		r.work.Go(func() {
			r.serve(client, server)
			r.mu.Lock()
			delete(r.clients, port)
			delete(r.open, client)
			r.mu.Unlock()
		})
	}
}

// close disconnects all clients and waits for them.
func (r *resolver) close() {
	r.mu.Lock()
	r.closed = true
	if r.listener != nil {
		_ = r.listener.Close()
	}
	for client := range r.open {
		_ = client.Close()
	}
	r.mu.Unlock()
	r.work.Wait()
}

// serve answers the queries of one client, several at a time: a step's resolver asks for both address families at
// once.
func (r *resolver) serve(client net.Conn, server netip.Addr) {
	defer client.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var answering routine.Group
	defer answering.Wait()
	var writing sync.Mutex
	slots := make(chan struct{}, maxInFlight)
	for {
		question, err := readFramed(client)
		if err != nil {
			cancel()
			return
		}
		slots <- struct{}{}
		answering.Go(func() {
			defer func() { <-slots }()
			answer, err := r.answer(ctx, question, server)
			if err != nil {
				_ = client.Close() // like a server that does not answer; the step asks the next one
				return
			}
			writing.Lock()
			defer writing.Unlock()
			_ = client.SetWriteDeadline(time.Now().Add(questionTimeout))
			_ = writeFramed(client, answer)
		})
	}
}

// A DNS message over TCP is preceded by its length (RFC 1035, 4.2.2).

func readFramed(from io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(from, size[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(from, message)
	return message, err
}

func writeFramed(to io.Writer, message []byte) error {
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(message)), uint16(len(message)))
	_, err := to.Write(append(framed, message...))
	return err
}

// answer answers one query.
func (r *resolver) answer(ctx context.Context, message []byte, server netip.Addr) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(message)
	if err != nil {
		return nil, err
	}
	questions, err := parser.AllQuestions()
	if err != nil || len(questions) != 1 || header.Response || header.OpCode != 0 {
		return refusal(header, nil, dnsmessage.RCodeFormatError)
	}
	question := questions[0]
	name := strings.TrimSuffix(strings.ToLower(question.Name.String()), ".")
	if decision := r.decide(name); !decision.Allowed {
		r.supervisor.add(Connection{
			Host: name, Transport: transportName, Policy: decision.Policy, Code: decision.Code, Reason: decision.Reason,
			Began: time.Now(),
		}, nil)
		code := dnsmessage.RCodeNameError
		if decision.Code == CodeQuestions {
			code = dnsmessage.RCodeRefused
		}
		return refusal(header, questions, code)
	}
	// Only the question is forwarded, because a step could hide data in other parts of its message.
	asked, err := ask(header, question)
	if err != nil {
		return nil, err
	}
	upstream := r.supervisor.config.Upstream
	if !upstream.IsValid() {
		upstream = netip.AddrPortFrom(server, namePort)
	}
	answer, err := exchange(ctx, asked, upstream)
	if err != nil {
		return nil, err
	}
	r.learn(name, answer)
	binary.BigEndian.PutUint16(answer, header.ID)
	return answer, nil
}

func (r *resolver) decide(name string) Decision {
	s := r.supervisor
	s.mu.Lock()
	job := s.job
	s.mu.Unlock()
	if job.Policy == nil {
		return Decision{Code: CodeNotStarted, Reason: "no execution has begun"}
	}
	r.mu.Lock()
	allowed := r.rate.take(job.MaxQuestions)
	r.mu.Unlock()
	if !allowed {
		return Decision{Code: CodeQuestions,
			Reason: "the execution makes too many DNS queries per second; see --max-dns-rate"}
	}
	return job.Policy.Resolve(name)
}

// refusal returns an answer with an error code, without asking a server.
func refusal(header dnsmessage.Header, questions []dnsmessage.Question, code dnsmessage.RCode) ([]byte, error) {
	answer := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: header.ID, Response: true, RecursionDesired: header.RecursionDesired, RecursionAvailable: true, RCode: code,
		},
		Questions: questions,
	}
	return answer.Pack()
}

// ask encodes the query for a server.
func ask(header dnsmessage.Header, question dnsmessage.Question) ([]byte, error) {
	message := dnsmessage.Message{
		Header: dnsmessage.Header{ID: uint16(rand.Uint32()), RecursionDesired: header.RecursionDesired,
			CheckingDisabled: header.CheckingDisabled},
		Questions: []dnsmessage.Question{question},
	}
	return message.Pack()
}

// exchange queries a server, over UDP and, if the answer does not fit, over TCP.
func exchange(ctx context.Context, message []byte, server netip.AddrPort) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	answer, err := exchangeOver(ctx, "udp", message, server)
	if err == nil && answer[2]&0x02 != 0 { // TC
		return exchangeOver(ctx, "tcp", message, server)
	}
	return answer, err
}

func exchangeOver(ctx context.Context, network string, message []byte, server netip.AddrPort) ([]byte, error) {
	connection, err := new(net.Dialer).DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	defer context.AfterFunc(ctx, routine.Safe(func() { _ = connection.SetDeadline(time.Now()) }))()
	if network == "tcp" {
		if err := writeFramed(connection, message); err != nil {
			return nil, err
		}
		answer, err := readFramed(connection)
		if err == nil && !answers(message, answer) {
			err = errors.New("the name server answers another question")
		}
		return answer, err
	}
	if _, err := connection.Write(message); err != nil {
		return nil, err
	}
	buffer := make([]byte, 1<<16)
	for {
		n, err := connection.Read(buffer)
		if err != nil {
			return nil, err
		}
		if answers(message, buffer[:n]) {
			return slices.Clone(buffer[:n]), nil
		}
	}
}

// answers reports whether an answer belongs to a query.
func answers(question, answer []byte) bool {
	var asked, answered dnsmessage.Parser
	want, err := asked.Start(question)
	got, other := answered.Start(answer)
	if err != nil || other != nil || want.ID != got.ID || !got.Response {
		return false
	}
	a, err := asked.Question()
	b, other := answered.Question()
	return err == nil && other == nil && a.Type == b.Type && a.Class == b.Class &&
		strings.EqualFold(a.Name.String(), b.Name.String())
}

// learn records the addresses in an answer under the name in the query, even if they belong to an alias.
func (r *resolver) learn(name string, answer []byte) {
	var parser dnsmessage.Parser
	if _, err := parser.Start(answer); err != nil || parser.SkipAllQuestions() != nil {
		return
	}
	s := r.supervisor
	for {
		header, err := parser.AnswerHeader()
		if err != nil {
			return
		}
		var address netip.Addr
		switch header.Type {
		case dnsmessage.TypeA:
			resource, err := parser.AResource()
			if err != nil {
				return
			}
			address = netip.AddrFrom4(resource.A)
		case dnsmessage.TypeAAAA:
			resource, err := parser.AAAAResource()
			if err != nil {
				return
			}
			address = netip.AddrFrom16(resource.AAAA).Unmap()
		default:
			if parser.SkipAnswer() != nil {
				return
			}
			continue
		}
		s.mu.Lock()
		s.names.add(name, address)
		s.mu.Unlock()
	}
}
