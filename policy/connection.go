package policy

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/batch"
)

// Connection is one connection of a step to decide on. Address and Port are required.
type Connection struct {
	Host      string // the name that the step asked for; empty for a literal address
	Address   netip.Addr
	Port      uint16
	Transport string // "tcp" or "udp"
	Step      string // the step's name

	ThisMachine bool // the address belongs to the machine that runs the step
	Redis       bool // the address is that of the sidecar's Redis
	API         bool // the API has this address
	APIPort     bool // and this port
}

// Connect decides on a connection. If its address stands for another one, both must be permitted.
func (p *Principal) Connect(c Connection) (decision Decision) {
	c.Host = canonicalHost(c.Host)
	own := c.Address.Unmap().WithZone("")
	for _, address := range readings(own) {
		if decision = p.connect(c, address); !decision.Allowed {
			if address != own {
				decision.Reason = fmt.Sprintf("%s stands for %s: %s", own, address, decision.Reason)
			}
			return decision
		}
	}
	return decision
}

func (p *Principal) connect(c Connection, address netip.Addr) Decision {
	uid := destination(c.Host, address, c.Port)
	entities := callEntities{principal: p.entity, endpoint: cedar.Entity{UID: uid}}
	decision := p.connections.decide(entities, cedar.Request{
		Principal: p.entity.UID, Action: connectAction, Resource: uid,
		Context: cedar.NewRecord(cedar.RecordMap{
			"host": cedar.String(c.Host), "address": cedar.IPAddr(netip.PrefixFrom(address, address.BitLen())),
			"port":      cedar.Long(c.Port),
			"transport": cedar.String(c.Transport), "step": cedar.String(c.Step), "this_machine": cedar.Boolean(c.ThisMachine),
			"redis": cedar.Boolean(c.Redis), "api": cedar.Boolean(c.API), "api_port": cedar.Boolean(c.APIPort),
		}),
	})
	if decision.Code == CodeNotPermitted {
		decision.Reason = "the address is private, and no rule permits this connection"
	}
	return decision
}

// Resolve reports whether a connection to a host name could be permitted, whatever its address is. Other names are not
// resolved, because a DNS query carries data as well.
func (p *Principal) Resolve(host, step string) Decision {
	host = canonicalHost(host)
	uid := destination(host, netip.Addr{}, 0)
	entities := callEntities{principal: p.entity, endpoint: cedar.Entity{UID: uid}}
	fields := cedar.RecordMap{"host": cedar.String(host), "step": cedar.String(step)}
	for _, unknown := range []cedar.String{"address", "port", "transport", "this_machine", "redis", "api", "api_port"} {
		fields[unknown] = batch.Ignore()
	}
	// A permit counts if its conditions on unknown values could hold; a forbid with such conditions does not count.
	decision := Decision{Code: CodeFailed, Reason: "the rules could not be evaluated for the name"}
	err := batch.Authorize(context.Background(), p.connections, entities, batch.Request{
		Principal: p.entity.UID, Action: connectAction, Resource: uid, Context: cedar.NewRecord(fields),
	}, func(result batch.Result) error {
		decision = p.connections.explain(result.Decision, result.Diagnostic)
		return nil
	})
	if err != nil {
		decision = Decision{Code: CodeFailed, Reason: err.Error()}
	}
	return decision
}

var connectAction = cedar.NewEntityUID("Action", "connect")

func destination(host string, address netip.Addr, port uint16) cedar.EntityUID {
	if host == "" {
		host = address.String()
	}
	return cedar.NewEntityUID("Destination", cedar.String(net.JoinHostPort(host, strconv.Itoa(int(port)))))
}

// canonicalHost returns the form of a name that rules are compared with.
func canonicalHost(host string) string { return strings.TrimSuffix(strings.ToLower(host), ".") }

// readings returns an address and the IPv4 addresses that it stands for in a network that translates or tunnels.
func readings(address netip.Addr) []netip.Addr {
	found := []netip.Addr{address}
	if !address.Is6() {
		return found
	}
	bytes := address.As16()
	embedded := func(at int) {
		found = append(found, netip.AddrFrom4([4]byte(bytes[at:at+4])))
	}
	in := func(prefix string) bool { return netip.MustParsePrefix(prefix).Contains(address) }
	switch {
	case in("::/96") && binary.BigEndian.Uint32(bytes[12:]) > 1: // IPv4-compatible, RFC 4291
		embedded(12)
	case in("::ffff:0:0:0/96"): // IPv4-translated, RFC 2765
		embedded(12)
	case in("64:ff9b::/96"): // NAT64, RFC 6052
		embedded(12)
	case in("2002::/16"): // 6to4, RFC 3056
		embedded(2)
	case in("2001::/32"): // Teredo, RFC 4380: the server, and the client with its bits inverted
		embedded(4)
		found = append(found, netip.AddrFrom4([4]byte{^bytes[12], ^bytes[13], ^bytes[14], ^bytes[15]}))
	}
	if identifier := binary.BigEndian.Uint32(bytes[8:]); identifier&^0x02000000 == 0x00005efe { // ISATAP, RFC 5214
		embedded(12)
	}
	return found
}

// scopeOfConnections reports whether a rule is about connections: its scope names Action::"connect" and no other
// action. A rule about calls that names no action does not apply to connections.
func scopeOfConnections(p *ast.Policy) (connections bool, err error) {
	switch action := p.Action.(type) {
	case ast.ScopeTypeEq:
		return action.Entity == connectAction, nil
	case ast.ScopeTypeIn:
		return action.Entity == connectAction, nil
	case ast.ScopeTypeInSet:
		if !slices.Contains(action.Entities, connectAction) {
			return false, nil
		}
		if len(action.Entities) > 1 {
			return true, fmt.Errorf("the scope names %s beside other actions; write a rule of its own for connections",
				connectAction)
		}
		return true, nil
	}
	return false, nil
}

// unmatchableHost finds names that no connection can have, because a forbid that never matches protects nothing.
func unmatchableHost(inspect func(func(ast.IsNode) bool)) (errs []error) {
	inspect(func(n ast.IsNode) bool {
		var of ast.IsNode
		var text string
		switch n := n.(type) {
		case ast.NodeTypeLike:
			of, text = n.Arg, strings.Trim(string(n.Value.MarshalCedar()), `"`)
		case ast.NodeTypeEquals:
			value, ok := n.Right.(ast.NodeValue)
			if !ok {
				return true
			}
			literal, ok := value.Value.(cedar.String)
			if !ok {
				return true
			}
			of, text = n.Left, string(literal)
		}
		access, ok := of.(ast.NodeTypeAccess)
		if ok && access.Value == "host" && text != canonicalHost(text) {
			errs = append(errs, fmt.Errorf("no host can equal %q; names are compared in lower case, without a final dot", text))
		}
		return true
	})
	return errs
}
