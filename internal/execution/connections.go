package execution

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/runner/egress"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// connections decides on the connections of one execution, and records them.
type connections struct {
	host      *Host
	principal *policy.Principal
	identity  minter.Identity
	step      string
	watch     *watch
}

// Learned is the policy of a connection that only [Config.Learn] permits.
const Learned = "learned"

// codeNoAudit is the code of a connection that is refused because it cannot be recorded.
const codeNoAudit = "no_audit"

// Connect implements egress.Policy. If the step found an address under several names, one permitted name suffices.
func (c *connections) Connect(names []string, to netip.AddrPort, transport string) egress.Decision {
	if audit := c.host.config.Audit; audit != nil {
		if err := audit.Ready(); err != nil {
			return egress.Decision{Code: codeNoAudit, Reason: "connections cannot be recorded now, so none is made"}
		}
	}
	connection := policy.Connection{Address: to.Addr(), Port: to.Port(), Transport: transport, Step: c.step}
	c.host.guarded.mark(&connection)
	var first egress.Decision
	for i, name := range names {
		connection.Host = name
		decision := egressDecision(name, c.principal.Connect(connection))
		if decision.Code == policy.CodeNotPermitted && c.host.config.Learn {
			decision.Allowed, decision.Policy = true, Learned
		}
		if decision.Allowed {
			return decision
		}
		if i == 0 {
			first = decision
		}
	}
	return first
}

func egressDecision(host string, d policy.Decision) egress.Decision {
	return egress.Decision{Allowed: d.Allowed, Host: host, Policy: d.Policy, Code: d.Code, Reason: d.Reason}
}

// Resolve implements egress.Policy.
func (c *connections) Resolve(name string) egress.Decision {
	return egressDecision(name, c.principal.Resolve(name, c.step))
}

// connectionLine is the line of a connection in the audit file.
type connectionLine struct {
	Time      string  `json:"time"`
	ID        string  `json:"execution_id,omitempty"`
	Business  string  `json:"business_id"`
	User      string  `json:"user_id"`
	Kind      string  `json:"kind"` // always "connection"; a call has none
	Type      string  `json:"account_type"`
	Host      string  `json:"host,omitempty"`
	Address   string  `json:"address,omitempty"`
	Port      uint16  `json:"port,omitempty"`
	Transport string  `json:"transport"`
	MS        float64 `json:"ms"`
	Decision  string  `json:"decision"`
	Policy    string  `json:"policy,omitempty"`
	Code      string  `json:"code,omitempty"`
	Detail    string  `json:"detail,omitempty"`
	Error     string  `json:"error,omitempty"`
}

// connected writes a connection to the audit and to the log.
func (c *connections) connected(made egress.Connection) {
	host := telemetry.Redact(c.watch.mask.Text(made.Host))
	line := connectionLine{
		Time: made.Began.UTC().Format(time.RFC3339Nano), ID: c.identity.ExecutionID, Business: c.identity.BusinessID,
		User: c.identity.AccountID,
		Kind: "connection", Type: c.identity.AccountType, Host: host, Port: made.Port, Transport: made.Transport,
		MS: milliseconds(made.Duration), Decision: "deny", Policy: made.Policy, Code: made.Code, Error: made.Failure,
	}
	if made.Address.IsValid() {
		line.Address = made.Address.String()
	}
	if made.Allowed {
		line.Decision = "allow"
	} else {
		line.Detail = c.watch.mask.Text(made.Reason)
	}
	if audit := c.host.config.Audit; audit != nil {
		text, err := json.Marshal(line)
		if err == nil {
			_, err = audit.Write(append(text, '\n'))
		}
		if err != nil {
			c.watch.log.Error("a connection could not be recorded", "error", err)
		}
	}
	c.watch.metrics.Connection(c.watch.ctx, made.Transport, made.Allowed, made.Duration)
	c.watch.log.Debug("connection", "host", host, "address", line.Address, "port", made.Port, "transport", made.Transport,
		"decision", line.Decision,
		"policy", made.Policy, "error", made.Failure, "duration_ms", line.MS)
}

// guarded knows the addresses that guardrails protect: those of Redis, of this machine and of the API.
type guarded struct {
	api *net.TCPAddr // only its port is set; the addresses are looked up

	mu      sync.Mutex
	redis   map[netip.AddrPort]struct{}
	machine []netip.Addr
	looked  time.Time
	apiHost string
	apiAt   []netip.Addr
	asked   time.Time
}

const (
	machineAge = 5 * time.Second // how long the addresses of this machine are cached
	apiAge     = time.Minute
	apiTimeout = 2 * time.Second
)

// mark records in a connection whether its address belongs to Redis, this machine or the API.
func (g *guarded) mark(c *policy.Connection) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if now.Sub(g.looked) > machineAge {
		g.machine, g.looked = machineAddresses(), now
	}
	if now.Sub(g.asked) > apiAge {
		ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
		if found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", g.apiHost); err == nil {
			g.apiAt = found
		}
		cancel()
		g.asked = now
	}
	own := c.Address.Unmap()
	_, c.Redis = g.redis[netip.AddrPortFrom(own, c.Port)]
	c.ThisMachine = slices.Contains(g.machine, own)
	c.API = slices.ContainsFunc(g.apiAt, func(address netip.Addr) bool { return address.Unmap() == own })
	c.APIPort = c.API && int(c.Port) == g.api.Port
}

func machineAddresses() (found []netip.Addr) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, address := range addresses {
		if prefix, err := netip.ParsePrefix(address.String()); err == nil {
			found = append(found, prefix.Addr().Unmap())
		}
	}
	return found
}

// newGuarded returns the guarded addresses of a configuration. It records each node of Redis that the sidecar connects
// to.
func newGuarded(config Config) *guarded {
	g := &guarded{redis: map[netip.AddrPort]struct{}{}, apiHost: config.Proxy.APIRoot.Hostname(),
		api: &net.TCPAddr{Port: 80}}
	if config.Proxy.APIRoot.Scheme == "https" {
		g.api.Port = 443
	}
	if port, err := strconv.Atoi(config.Proxy.APIRoot.Port()); err == nil {
		g.api.Port = port
	}
	if config.Redis != nil {
		config.Redis.AddHook(redisNodes{g})
	}
	// The hooks of a cluster's client do not see connections of its nodes.
	if cluster, ok := config.Redis.(nodeWatcher); ok {
		cluster.OnNewNode(func(node *redis.Client) { node.AddHook(redisNodes{g}) })
	}
	return g
}

// nodeWatcher is a client of a cluster; see [redis.ClusterClient].
type nodeWatcher interface {
	OnNewNode(func(node *redis.Client))
}

// redisNodes is a hook that remembers the addresses of Redis.
type redisNodes struct{ guarded *guarded }

var _ redis.Hook = redisNodes{}

// DialHook implements redis.Hook.
func (r redisNodes) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		connection, err := next(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if at, ok := connection.RemoteAddr().(*net.TCPAddr); ok {
			node := at.AddrPort()
			r.guarded.mu.Lock()
			r.guarded.redis[netip.AddrPortFrom(node.Addr().Unmap().WithZone(""), node.Port())] = struct{}{}
			r.guarded.mu.Unlock()
		}
		return connection, nil
	}
}

// ProcessHook implements redis.Hook.
func (redisNodes) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook implements redis.Hook.
func (redisNodes) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
