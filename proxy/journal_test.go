package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestAFloodOfRefusalsIsFoldedIntoCounts(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	audit := &memoryAudit{}
	p := start(t, api.root(), func(c *Config) {
		c.Audit, c.ExecutionID = audit, "e1"
		c.Authorizer = authorizerFunc(func(_, path string) Decision {
			return Decision{Allowed: path == "/x",
				Policy: "p" + path[1:2]}
		})
	})
	const flood = 2 * maxRefusals
	for i := range flood {
		path := []string{"/denied/" + strings.Repeat("d", 50<<10), "/a/../b"}[i%2]
		rawExchange(t, p.addr, request(p, "GET", path, "\r\n"))
	}
	rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n"))
	p.Shutdown(context.Background())

	lines := strings.Split(strings.TrimSpace(audit.String()), "\n")
	bytes, counts, answered := 0, map[string]float64{}, 0
	for _, line := range lines {
		bytes += len(line)
		var l map[string]any
		if err := json.Unmarshal([]byte(line), &l); err != nil || l["execution_id"] != "e1" ||
			l["business_id"] != "business-1" {
			t.Fatalf("line %v: %.300s", err, line)
		}
		if l["outcome"] == "answered" {
			answered++
			continue
		}
		n, folded := l["count"].(float64)
		if !folded {
			n = 1
		} else if l["decision"] != "deny" || l["since"] == "" || l["outcome"] == "guardrail" && l["policy"] != "pd" {
			t.Errorf("folded: %s", line)
		}
		counts[l["outcome"].(string)] += n
	}
	if counts["guardrail"] != flood/2 || counts["bad_path"] != flood/2 || answered != 1 {
		t.Errorf("%v, %d answered", counts, answered)
	}
	if len(lines) > maxRefusals+4 || bytes > maxRefusals*(maxRecorded+1000) {
		t.Errorf("%d lines of %d bytes", len(lines), bytes)
	}
}

func TestAnExecutionHasAShareOfTheAudit(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	audit := &memoryAudit{}
	p := start(t, api.root(), func(c *Config) { c.Audit = audit })
	p.journal.mu.Lock()
	p.journal.left = -auditBurst // as after very many calls
	p.journal.mu.Unlock()
	answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n"))
	if !strings.Contains(answer, `"code":"audit_unavailable"`) || !strings.Contains(answer, "share of the audit") ||
		len(api.seen()) > 0 {
		t.Errorf("answer %q, %d calls at the api", answer, len(api.seen()))
	}
	p.journal.mu.Lock()
	p.journal.left = 1
	p.journal.mu.Unlock()
	if answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n")); !strings.HasPrefix(answer, "HTTP/1.1 204 ") {
		t.Errorf("answer %q", answer)
	}
}

func TestRecordedTextsAreTruncated(t *testing.T) {
	for text, want := range map[string]string{
		"/short": "/short", strings.Repeat("a", maxRecorded): strings.Repeat("a", maxRecorded),
		strings.Repeat("€", maxRecorded): strings.Repeat("€", maxRecorded/3) + fmt.Sprintf("... (%d bytes)", 3*maxRecorded),
	} {
		if got := cutLong(text, maxRecorded); got != want {
			t.Errorf("%.20q of %d bytes: %d bytes, want %d", text, len(text), len(got), len(want))
		}
	}
}
