package execution

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/policy"
)

// TestSuggestedRulesPermitWhatWasLearned: each destination that learning permitted gets one rule that the engine
// accepts, whatever the name of its host contains. Nothing else is permitted.
func TestSuggestedRulesPermitWhatWasLearned(t *testing.T) {
	connection := `{"kind":"connection","account_type":"service_plugin","transport":"tcp",`
	audit := strings.Join([]string{
		connection + `"policy":"learned","host":"db.internal","address":"10.0.0.1","port":5432}`,
		connection + `"policy":"learned","host":"db.internal","address":"10.0.0.2","port":5432}`,
		connection + `"policy":"learned","address":"10.0.0.9","port":25}`,
		connection +
			`"policy":"learned","host":"\" || true || context.host == \"\u00e9\u0007","address":"10.0.0.3","port":1}`,
		connection + `"policy":"default.public_addresses","address":"10.0.0.4","port":443}`,
		`{"kind":"call","policy":"learned","path":"/x"}`,
	}, "\n")
	rules, err := Suggest([]byte(audit))
	if err != nil || strings.Count(rules, "permit (") != 3 || !strings.Contains(rules, "// connections: 2\n") {
		t.Fatalf("got %v\n%s", err, rules)
	}
	file := filepath.Join(t.TempDir(), "learned.cedar")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	engine, err := policy.ForCalls(file)
	if err != nil {
		t.Fatalf("the engine refuses its rules: %v\n%s", err, rules)
	}
	principal, err := engine.For(policy.Account{ID: "u", Type: policy.ServicePlugin, BusinessID: "b"})
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]bool{
		"db.internal 10.0.0.7 5432": true, " 10.0.0.9 25": true, " 10.0.0.9 26": false, "other.internal 10.0.0.1 5432": false,
		" 10.0.0.4 443": false, " 10.0.0.3 1": false,
	} {
		field := strings.Split(address, " ")
		at := netip.MustParseAddrPort(field[1] + ":" + field[2])
		c := policy.Connection{Host: field[0], Address: at.Addr(), Port: at.Port(), Transport: "tcp"}
		if got := principal.Connect(c); got.Allowed != want {
			t.Errorf("%s: got %+v\n%s", address, got, rules)
		}
	}
}

func TestSuggestNamesTheLineThatIsNotJSON(t *testing.T) {
	if _, err := Suggest([]byte("{}\nnot json\n")); err == nil || !strings.Contains(err.Error(), "line 2 ") {
		t.Errorf("got %v", err)
	}
	if rules, err := Suggest(nil); err != nil || rules != "" {
		t.Errorf("an empty audit: got %q, %v", rules, err)
	}
}
