package execution

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/proxy"
)

// TestAddressesOfRedisTheMachineAndTheAPIAreGuarded: of Redis, each node that was dialled is guarded.
func TestAddressesOfRedisTheMachineAndTheAPIAreGuarded(t *testing.T) {
	for name, connect := range map[string]func(address string) redis.UniversalClient{
		"one server": func(address string) redis.UniversalClient { return redis.NewClient(&redis.Options{Addr: address}) },
		"a cluster": func(address string) redis.UniversalClient {
			return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{address}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			node, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = node.Close() }()
			client := connect(node.Addr().String())
			defer func() { _ = client.Close() }()
			g := newGuarded(Config{Redis: client, Proxy: proxy.Config{APIRoot: &url.URL{Scheme: "https", Host: "192.0.2.9"}}})
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_ = client.Ping(ctx) // only the dial matters: the address has no server
			at := netip.MustParseAddrPort(node.Addr().String())
			for _, c := range []struct {
				at   netip.AddrPort
				want policy.Connection
			}{
				{at, policy.Connection{Redis: true, ThisMachine: true}},
				{netip.AddrPortFrom(netip.AddrFrom16(at.Addr().As16()), at.Port()),
					policy.Connection{Redis: true, ThisMachine: true}},
				{netip.AddrPortFrom(at.Addr(), at.Port()+1), policy.Connection{ThisMachine: true}},
				{netip.MustParseAddrPort("192.0.2.9:443"), policy.Connection{API: true, APIPort: true}},
				{netip.MustParseAddrPort("192.0.2.9:22"), policy.Connection{API: true}},
				{netip.MustParseAddrPort("192.0.2.10:443"), policy.Connection{}},
			} {
				got := policy.Connection{Address: c.at.Addr(), Port: c.at.Port()}
				c.want.Address, c.want.Port = got.Address, got.Port
				if g.mark(&got); got != c.want {
					t.Errorf("got %+v, want %+v", got, c.want)
				}
			}
		})
	}
}
