package policy

import (
	"net/netip"
	"strings"
	"testing"
)

func TestExplainSaysByWhichRuleAndWhy(t *testing.T) {
	engine := forCalls(t, `@id("no-deletes") @reason("nothing is deleted here")
forbid (principal, action == Action::"DELETE", resource);`)
	principal, err := engine.For(accountOf("service_automation"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ method, path, want string }{
		{
			"POST", "//API-keys/",
			"denied: POST /api-keys\n  policy     guardrail.own_api_key\n  reason     a service account cannot create API keys for itself\n" +
				"  operation  create_api_key\n  code       guardrail\n",
		},
		{"get", "/custom-objects",
			"allowed: GET /custom-objects\n  policy     default.calls\n  reason     no rule of the operator restricts this call\n"},
		{"DELETE", "/records/deals/1",
			"denied: DELETE /records/deals/1\n  policy     no-deletes\n  reason     nothing is deleted here\n  code       policy\n"},
		{"GET", "/a/../b",
			"denied: GET /a/../b\n  reason     the path is ambiguous, so policies cannot decide on it\n  code       malformed_path\n"},
	} {
		explained := engine.Explain(t.Context(), principal, row.method, row.path)
		if explained.String() != row.want || explained.Allowed != (row.want[0] == 'a') {
			t.Errorf("%s\nwant\n%s", explained, row.want)
		}
	}
}

func TestAConnectionIsExplained(t *testing.T) {
	p := principal(t, forCalls(t, permitDatabase), accountOf(ServicePlugin))
	for _, row := range []struct {
		at   Connection
		want string
	}{
		{Connection{Host: "db.example.com", Address: netip.MustParseAddr("10.20.1.2"), Port: 5432, Transport: "tcp"},
			"allowed: connect db.example.com:5432 at 10.20.1.2 over tcp\n  policy     database\n"},
		{Connection{Address: netip.MustParseAddr("fd12::1"), Port: 53, Transport: "udp"},
			"denied: connect [fd12::1]:53 over udp\n"},
		{Connection{Address: netip.MustParseAddr("169.254.169.254"), Port: 80, Transport: "tcp"},
			"denied: connect 169.254.169.254:80 over tcp\n  policy     guardrail"},
	} {
		explained := p.ExplainConnection(row.at)
		if !strings.HasPrefix(explained.String(), row.want) || explained.Allowed != (row.want[0] == 'a') ||
			explained.Reason == "" || explained.Port != row.at.Port {
			t.Errorf("got %s, want %s", explained, row.want)
		}
	}
}
