package policy

import (
	"net/netip"
	"strings"
	"testing"
)

const permitDatabase = `@id("database") permit (principal in AccountType::"service_plugin", action == Action::"connect", resource)
when { context.address.isInRange(ip("10.20.0.0/16")) && context.port == 5432 && context.transport == "tcp" };`

// permitAll permits everything that a rule can, to show what the guardrails refuse anyway.
const permitAll = `permit (principal, action == Action::"connect", resource);`

// TestGuardrailsOfConnectionsHoldInEverySpelling: the rules permit everything, and every spelling of a guarded address
// is refused by its guardrail.
func TestGuardrailsOfConnectionsHoldInEverySpelling(t *testing.T) {
	p := principal(t, forCalls(t, permitAll), accountOf(ServiceAutomation))
	for address, guardrail := range map[string]string{
		"127.0.0.1": "loopback", "127.255.255.254": "loopback", "::1": "loopback", "::ffff:127.0.0.1": "loopback",
		"64:ff9b::7f00:1": "loopback", "64:ff9b:1::7f00:1": "local_nat64", "2002:7f00:1::": "loopback",
		"2002:7f00:1::1": "loopback",
		"::127.0.0.1":    "loopback", "::ffff:0:127.0.0.1": "loopback", "2001:0:7f00:1::": "loopback",
		"2001:0:808:808::80ff:fffe": "loopback",
		"2606:4700::5efe:7f00:1":    "loopback", "2606:4700::200:5efe:7f00:1": "loopback",
		"64:ff9b:1:7f00:0:100::": "local_nat64",
		"0.0.0.0":                "unspecified", "0.1.2.3": "unspecified", "::": "unspecified", "::ffff:0.0.0.0": "unspecified",
		"64:ff9b::":       "unspecified",
		"169.254.169.254": "metadata", "::ffff:169.254.169.254": "metadata", "64:ff9b::a9fe:a9fe": "metadata",
		"2002:a9fe:a9fe::": "metadata",
		"169.254.170.2":    "metadata", "fd00:ec2::254": "metadata", "100.100.100.200": "metadata", "168.63.129.16": "metadata",
		"fd20:ce::254": "metadata",
		"169.254.0.1":  "link_local", "fe80::1": "link_local", "fe80::1%eth0": "link_local", "febf::1": "link_local",
		"::ffff:169.254.1.1": "link_local",
		"224.0.0.1":          "multicast", "239.255.255.250": "multicast", "255.255.255.255": "multicast", "240.0.0.1": "multicast",
		"ff02::1": "multicast", "ff0e::1": "multicast", "::ffff:224.0.0.1": "multicast", "64:ff9b::e000:1": "multicast",
	} {
		for _, host := range []string{"", "innocent.example.com"} {
			got := p.Connect(Connection{Host: host, Address: netip.MustParseAddr(address), Port: 443, Transport: "tcp"})
			if got.Allowed || got.Policy != "guardrail."+guardrail || got.Code != CodeGuardrail || got.Reason == "" {
				t.Errorf("%s: got %+v, want %s", address, got, guardrail)
			}
		}
	}
}

func TestOwnServicesAreGuarded(t *testing.T) {
	p := principal(t, forCalls(t, permitAll), accountOf(ServiceAutomation))
	at := Connection{Address: netip.MustParseAddr("198.41.0.4"), Port: 443, Transport: "tcp"}
	for name, c := range map[string]struct {
		change func(*Connection)
		want   string
	}{
		"none of our services":    {func(*Connection) {}, ""},
		"this machine":            {func(c *Connection) { c.ThisMachine = true }, "guardrail.this_machine"},
		"redis":                   {func(c *Connection) { c.Redis = true }, "guardrail.redis"},
		"the API":                 {func(c *Connection) { c.API, c.APIPort = true, true }, ""},
		"the API on another port": {func(c *Connection) { c.API = true }, "guardrail.api_port"},
		"this machine over a name": {func(c *Connection) { c.Host, c.ThisMachine = "db.example.com", true },
			"guardrail.this_machine"},
	} {
		connection := at
		c.change(&connection)
		if got := p.Connect(connection); got.Allowed != (c.want == "") || c.want != "" && got.Policy != c.want {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

func TestPublicAddressesArePermittedAndPrivateOnesNeedARule(t *testing.T) {
	engine := forCalls(t, permitDatabase, `@id("no-mail") @reason("steps send no mail")
		forbid (principal, action == Action::"connect", resource) when { context.port == 25 };
		@id("vendor") permit (principal, action == Action::"connect", resource) when { context.host like "*.vendor.internal" };
		@id("nightly") permit (principal, action == Action::"connect", resource) when { context.step == "nightly" && context.address == ip("192.168.7.7") };`)
	for _, c := range []struct {
		account string
		at      Connection
		address string
		want    string // the policy; "-" if nothing permits it
	}{
		{ServicePlugin, Connection{Port: 443}, "8.8.8.8", "default.public_addresses"},
		{ServicePlugin, Connection{Port: 443}, "2606:4700::1111", "default.public_addresses"},
		{ServicePlugin, Connection{Port: 443}, "64:ff9b::808:808", "default.public_addresses"},
		{ServicePlugin, Connection{Port: 53, Transport: "udp"}, "8.8.8.8", "default.public_addresses"},
		{ServicePlugin, Connection{Port: 25}, "8.8.8.8", "no-mail"},
		{ServicePlugin, Connection{Port: 5432}, "10.20.1.2", "database"},
		{ServicePlugin, Connection{Port: 5432}, "::ffff:10.20.1.2", "database"},
		{ServicePlugin, Connection{Port: 5432, Transport: "udp"}, "10.20.1.2", "-"},
		{ServicePlugin, Connection{Port: 5433}, "10.20.1.2", "-"},
		{ServicePlugin, Connection{Port: 5432}, "10.21.1.2", "-"},
		{ServiceAutomation, Connection{Port: 5432}, "10.20.1.2", "-"},
		{ServicePlugin, Connection{Port: 443}, "64:ff9b::a00:1", "-"},
		{ServicePlugin, Connection{Port: 443}, "2002:c0a8:1::", "-"},
		{ServicePlugin, Connection{Port: 443}, "172.31.255.255", "-"},
		{ServicePlugin, Connection{Port: 443}, "172.32.0.1", "default.public_addresses"},
		{ServicePlugin, Connection{Port: 443}, "192.168.1.1", "-"},
		{ServicePlugin, Connection{Port: 443}, "100.64.0.1", "-"},
		{ServicePlugin, Connection{Port: 443}, "fd12::1", "-"},
		{ServicePlugin, Connection{Port: 443, Host: "API.Vendor.Internal."}, "192.168.1.1", "vendor"},
		{ServicePlugin, Connection{Port: 443, Host: "vendor.internal.example.com"}, "192.168.1.1", "-"},
		{ServicePlugin, Connection{Port: 443, Step: "nightly"}, "192.168.7.7", "nightly"},
		{ServicePlugin, Connection{Port: 443, Step: "daily"}, "192.168.7.7", "-"},
	} {
		if c.at.Transport == "" {
			c.at.Transport = "tcp"
		}
		c.at.Address = netip.MustParseAddr(c.address)
		got := principal(t, engine, accountOf(c.account)).Connect(c.at)
		permitted := c.want != "-" && c.want != "no-mail"
		if got.Allowed != permitted || c.want != "-" && got.Policy != c.want || c.want == "-" &&
			got.Code != CodeNotPermitted || got.Reason == "" {
			t.Errorf("%s %+v: got %+v, want %s", c.account, c.at, got, c.want)
		}
	}
}

// TestRulesForCallsDoNotApplyToConnections: a wide permit or forbid that was written for calls changes no connection,
// and vice versa.
func TestRulesForCallsDoNotApplyToConnections(t *testing.T) {
	private, public := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("8.8.8.8")
	for rules, want := range map[string][3]bool{ // a private address, a public one, a call
		`permit (principal, action, resource);`:                      {false, true, true},
		`forbid (principal, action, resource);`:                      {false, true, false},
		`permit (principal, action in Action::"read", resource);`:    {false, true, true},
		`forbid (principal, action == Action::"connect", resource);`: {false, false, true},
		permitAll: {true, true, true},
		`permit (principal, action in [Action::"connect"], resource);`:            {true, true, true},
		`forbid (principal, action, resource) when { resource.path like "/x*" };`: {false, true, true},
	} {
		p := principal(t, forCalls(t, rules), accountOf(ServiceAutomation))
		got := [3]bool{
			p.Connect(Connection{Address: private, Port: 1, Transport: "tcp"}).Allowed,
			p.Connect(Connection{Address: public, Port: 1, Transport: "tcp"}).Allowed,
			p.Authorize(t.Context(), "GET", "/a").Allowed,
		}
		if got != want {
			t.Errorf("%s: got %v, want %v", rules, got, want)
		}
	}
}

func TestOnlyNamesThatCouldBePermittedAreResolved(t *testing.T) {
	only := `@id("only") @reason("steps reach the vendor and the database")
		forbid (principal, action == Action::"connect", resource)
		unless { context.host like "*.example.com" || context.host == "" && context.address.isInRange(ip("10.20.0.0/16")) };
		permit (principal, action == Action::"connect", resource) when { context.address.isInRange(ip("10.20.0.0/16")) };`
	for _, c := range []struct {
		rules, host string
		want        bool
	}{
		{"", "anything.example.org", true},
		{only, "api.example.com", true},
		{only, "API.EXAMPLE.COM.", true},
		{only, "c2VjcmV0.attacker.org", false},
		{only, "example.com.attacker.org", false},
		{`forbid (principal, action == Action::"connect", resource) when { context.port == 25 };`, "mail.example.org", true},
		{`forbid (principal, action == Action::"connect", resource) when { context.host like "*.attacker.org" };`,
			"x.attacker.org", false},
		{`forbid (principal in AccountType::"employee", action == Action::"connect", resource) when { context.host like "*.attacker.org" };`, "x.attacker.org", true},
		{`forbid (principal, action == Action::"connect", resource);`, "api.example.com", false},
	} {
		engine := forCalls(t)
		if c.rules != "" {
			engine = forCalls(t, c.rules)
		}
		got := principal(t, engine, accountOf(ServiceAutomation)).Resolve(c.host, "")
		if got.Allowed != c.want || !c.want && (got.Policy == "" || got.Reason == "") {
			t.Errorf("%s with %q: got %+v", c.host, c.rules, got)
		}
	}
}

func TestMistakesInRulesForConnectionsAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		`permit (principal, action in [Action::"connect", Action::"GET"], resource);`:                              "beside other actions",
		`permit (principal, action == Action::"connect", resource) when { context.host == "DB.example.com" };`:     "no host can equal",
		`permit (principal, action == Action::"connect", resource) when { context.host like "*.Example.com" };`:    "no host can equal",
		`permit (principal, action == Action::"connect", resource) when { context.host == "db.example.com." };`:    "no host can equal",
		`permit (principal, action == Action::"connect", resource) when { context.address == "10.0.0.1" };`:        "",
		`permit (principal, action == Action::"connect", resource) when { context.adress.isInRange(ip("::/0")) };`: "adress",
		`permit (principal, action == Action::"connect", resource) when { resource.path like "/x" };`:              "path",
		`@id("default.mine") permit (principal, action == Action::"connect", resource);`:                           "reserved",
		`permit (principal, action, resource) when { context.address.isInRange(ip("10.0.0.0/8")) };`:               "address",
		`permit (principal in AccountType::"robot", action == Action::"connect", resource);`:                       "does not exist",
	} {
		_, err := ForCalls(ruleFiles(t, text)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func BenchmarkConnect(b *testing.B) {
	p := principal(b, forCalls(b, permitDatabase), accountOf(ServicePlugin))
	at := Connection{Address: netip.MustParseAddr("10.20.1.2"), Port: 5432, Transport: "tcp"}
	for b.Loop() {
		if !p.Connect(at).Allowed {
			b.Fatal("denied")
		}
	}
}
