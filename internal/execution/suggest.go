package execution

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
)

// learned is a destination of an account type that needs a rule.
type learned struct {
	Type      string `json:"account_type"`
	Host      string `json:"host"`
	Address   string `json:"address"`
	Port      int    `json:"port"`
	Transport string `json:"transport"`
}

// Suggest returns one Cedar rule for each destination in an audit that only [Learned] permitted. The error names the
// line that is not JSON.
func Suggest(audit []byte) (string, error) {
	counts := map[learned]int{}
	lines := bufio.NewScanner(bytes.NewReader(audit))
	lines.Buffer(nil, len(audit)+1)
	for number := 1; lines.Scan(); number++ {
		var line struct {
			learned
			Kind   string `json:"kind"`
			Policy string `json:"policy"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return "", fmt.Errorf("line %d is not a JSON object", number)
		}
		if line.Kind != "connection" || line.Policy != Learned {
			continue
		}
		if line.Host != "" {
			line.Address = "" // the address may change, the name does not
		}
		counts[line.learned]++
	}
	needed := slices.SortedFunc(maps.Keys(counts), func(a, b learned) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Address, b.Address),
			cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.Transport, b.Transport))
	})
	var rules strings.Builder
	for i, l := range needed {
		rules.WriteString(l.rule(i+1, counts[l]))
	}
	return rules.String(), nil
}

// rule returns the Cedar rule that permits the destination.
func (l learned) rule(number, seen int) string {
	where := "context.address == ip(" + cedarString(l.Address) + ")"
	if l.Host != "" {
		where = "context.host == " + cedarString(l.Host)
	}
	return fmt.Sprintf(`// connections: %d
@id("learned-%d")
permit (principal in AccountType::%s, action == Action::"connect", resource)
when { %s && context.port == %d && context.transport == %s };

`, seen, number, cedarString(l.Type), where, l.Port, cedarString(l.Transport))
}

// cedarString returns a string literal of Cedar, whose escapes differ from Go's.
func cedarString(text string) string {
	var literal strings.Builder
	literal.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			literal.WriteString(`\` + string(r))
		case unicode.IsPrint(r):
			literal.WriteRune(r)
		default:
			fmt.Fprintf(&literal, `\u{%x}`, r)
		}
	}
	literal.WriteByte('"')
	return literal.String()
}
