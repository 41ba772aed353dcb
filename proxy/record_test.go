package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestEveryCallIsRecorded(t *testing.T) {
	root := serveAPI(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(201)
		io.WriteString(w, "0123456789")
	})
	var audit memoryAudit
	var log callLog
	p := start(t, root, func(c *Config) {
		c.Audit, c.OnCall, c.ExecutionID = &audit, log.add, "execution-1"
		c.Authorizer = authorizerFunc(func(method, path string) Decision {
			return Decision{Allowed: method != "DELETE", Policy: "policy-" + method, Reason: "not this"}
		})
	})
	sent := []struct{ method, target, rest, line string }{
		{"POST", "/a%2Fb?x=1&api_key=hunter2", "Content-Length: 3\r\n\r\nabc",
			`"method":"POST","path":"/a%2Fb","query":"x=1\u0026api_key=[REDACTED]","status":201,"request_bytes":3,"response_bytes":10,"ms":0,"outcome":"answered","decision":"allow","policy":"policy-POST"`},
		{"DELETE", "/a", "\r\n",
			`"method":"DELETE","path":"/a","status":403,"request_bytes":0,"response_bytes":0,"ms":0,"outcome":"guardrail","detail":"not this","decision":"deny","policy":"policy-DELETE"`},
		{"GET", "/../a", "\r\n",
			`"method":"GET","path":"/../a","status":400,"request_bytes":0,"response_bytes":0,"ms":0,"outcome":"bad_path","detail":"path leaves the API root","decision":"deny"`},
		{"GET", "/a", "X: \x00\r\n\r\n",
			`"method":"","path":"","status":400,"request_bytes":0,"response_bytes":0,"ms":0,"outcome":"bad_request","detail":"malformed message: control character in a field value","decision":"deny"`},
	}
	began := time.Now()
	for i, s := range sent {
		rawExchange(t, p.addr, request(p, s.method, s.target, s.rest))
		log.wait(t, i+1)
	}
	calls := log.wait(t, len(sent))
	p.Shutdown(context.Background())
	lines := strings.Split(strings.TrimSpace(audit.String()), "\n")
	if len(lines) != len(sent) || len(calls) != len(sent) {
		t.Fatalf("%d lines, %d calls", len(lines), len(calls))
	}
	for i, line := range lines {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339Nano, fields["time"].(string))
		if err != nil || at.Before(began.Add(-time.Second)) || at.After(time.Now()) || calls[i].Duration <= 0 {
			t.Errorf("time %v, duration %v", fields["time"], calls[i].Duration)
		}
		if fields["execution_id"] != "execution-1" || fields["business_id"] != p.cfg.BusinessID ||
			fields["user_id"] != p.cfg.UserID {
			t.Errorf("line %s does not name the caller", line)
		}
		_, rest, _ := strings.Cut(line, `"user_id":"`+p.cfg.UserID+`",`)
		ms, _ := json.Marshal(fields["ms"])
		rest = strings.Replace(rest, `"ms":`+string(ms), `"ms":0`, 1)
		if rest != sent[i].line+"}" {
			t.Errorf("line\n%s\nwant\n%s", rest, sent[i].line)
		}
	}
	if stats := p.Stats(); stats[Answered] != 1 || stats[Denied] != 1 || stats[BadPath] != 1 || stats[BadRequest] != 1 {
		t.Errorf("stats %v", stats)
	}
}

func TestQueryValuesNamedLikeSecretsAreNotRecorded(t *testing.T) {
	for query, want := range map[string]string{
		"":                                    "",
		"page=2&q=a+b":                        "page=2&q=a+b",
		"api_key=hunter2":                     "api_key=[REDACTED]",
		"a=1&Access_Token=hunter2;PASSWORD=x": "a=1&Access_Token=[REDACTED];PASSWORD=[REDACTED]",
		"X-Amz-Signature=ab&X-Amz-Date=1":     "X-Amz-Signature=[REDACTED]&X-Amz-Date=1",
		"%61pi_k%65y=hunter2":                 "%61pi_k%65y=[REDACTED]",
		"%2561pi_k%2565y=hunter2":             "%2561pi_k%2565y=[REDACTED]",
		"tok%en=hunter2":                      "tok%en=hunter2",
		"user[password]=hunter2":              "user[password]=[REDACTED]",
		"token=":                              "token=",
		"token":                               "token",
		"token==a=b":                          "token=[REDACTED]",
		"code=hunter2&state=a":                "code=[REDACTED]&state=a",
		"u=eyJhbGciOiJub25lIn0.eyJhIjoxfQ.x":  "u=[REDACTED]",
	} {
		if got := redactQuery(query); got != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
}

func TestTraceContextReachesTheAPI(t *testing.T) {
	const own, step = "00-11111111111111111111111111111111-2222222222222222-01",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	tests := []struct {
		name               string
		span               *Span
		traceparent, state string
	}{
		{"no tracing", nil, step, "a=b"},
		{"not sampled by us", &Span{}, step, "a=b"},
		{"our span", &Span{Traceparent: own, Tracestate: "c=d"}, own, "c=d"},
		{"our span without state", &Span{Traceparent: own}, own, ""},
		{"a span that cannot be sent", &Span{Traceparent: own + "\r\nX-Evil: 1"}, step, "a=b"},
	}
	for _, h2 := range []bool{false, true} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s h2 %v", tt.name, h2), func(t *testing.T) {
				var got http.Header
				root, ca := tlsAPI(t, h2, func(w http.ResponseWriter, r *http.Request) { got = r.Header })
				var asked []string
				var log callLog
				p := start(t, root, func(c *Config) {
					c.APICA, c.OnCall = ca, log.add
					c.Authorizer = authorizerFunc(func(_, path string) Decision { return Decision{Allowed: path == "/x"} })
					if tt.span != nil {
						c.Trace = func(method, path, traceparent, tracestate string) Span {
							asked = append(asked, method+path+traceparent+tracestate)
							tt.span.Data = len(asked)
							return *tt.span
						}
					}
				})
				for i, path := range []string{"/x", "/denied", "/../x"} {
					rawExchange(t, p.addr, request(p, "GET", path, "Traceparent: "+step+"\r\nTracestate: a=b\r\n\r\n"))
					log.wait(t, i+1)
				}
				calls := log.wait(t, 3)
				p.Shutdown(context.Background())
				if got.Get("Traceparent") != tt.traceparent || got.Get("Tracestate") != tt.state || got.Get("X-Evil") != "" ||
					len(got["Traceparent"]) != 1 {
					t.Errorf("the api saw %v", got)
				}
				if tt.span == nil {
					return
				}
				// A denied call is traced; a malformed one has no span.
				if fmt.Sprint(asked) != fmt.Sprint([]string{"GET/x" + step + "a=b", "GET/denied" + step + "a=b"}) {
					t.Errorf("asked for %q", asked)
				}
				if calls[0].Span != 1 || calls[1].Span != 2 || calls[2].Span != nil {
					t.Errorf("spans %v %v %v", calls[0].Span, calls[1].Span, calls[2].Span)
				}
			})
		}
	}
}

func TestNoCallReachesTheAPIWhileItCannotBeRecorded(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	var log bytes.Buffer
	var audit memoryAudit
	var calls callLog
	p := start(t, api.root(), func(c *Config) {
		c.Audit, c.Logger, c.OnCall = &audit, slog.New(slog.NewTextHandler(&log, nil)), calls.add
	})
	audit.fail(io.ErrShortWrite) // as after a failed write of the previous line
	answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n"))
	if !strings.HasPrefix(answer, "HTTP/1.1 503 ") || !strings.Contains(answer, `"code":"audit_unavailable"`) {
		t.Errorf("answer %q", answer)
	}
	if seen := api.seen(); len(seen) > 0 {
		t.Errorf("the api saw %q", seen)
	}
	calls.wait(t, 1)
	audit.fail(nil)
	if answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n")); !strings.HasPrefix(answer, "HTTP/1.1 204 ") {
		t.Errorf("afterwards: answer %q", answer)
	}
	p.Shutdown(context.Background())
	if log.Len() > 0 || p.Stats()[NoAudit] != 1 {
		t.Errorf("stats %v, log %q", p.Stats(), log.String())
	}
}

func TestFailedAuditWriteIsLogged(t *testing.T) {
	var log bytes.Buffer
	var audit memoryAudit
	api := startRawAPI(t, func(conn net.Conn, r recorded) bool {
		audit.fail(io.ErrShortWrite) // too late to refuse the call
		return answerWith(ok204)(conn, r)
	})
	p := start(t, api.root(), func(c *Config) { c.Audit, c.Logger = &audit, slog.New(slog.NewTextHandler(&log, nil)) })
	if answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n")); !strings.HasPrefix(answer, "HTTP/1.1 204 ") {
		t.Errorf("answer %q", answer)
	}
	p.Shutdown(context.Background())
	if !strings.Contains(log.String(), `msg="could not write the audit" error="short write"`) {
		t.Errorf("log %q", log.String())
	}
}

// memoryAudit keeps lines until a test makes it fail.
type memoryAudit struct {
	mu     sync.Mutex
	lines  strings.Builder
	broken error
}

func (a *memoryAudit) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.broken = err
}

func (a *memoryAudit) Ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.broken
}

func (a *memoryAudit) Write(line []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return 0, a.broken
	}
	return a.lines.Write(line)
}

func (a *memoryAudit) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lines.String()
}

func TestProbeReachesTheListenerAndNotTheAPI(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), nil)
	if err := p.Probe(context.Background()); err != nil || len(api.seen()) > 0 {
		t.Errorf("probe: %v, the api saw %q", err, api.seen())
	}
	p.Shutdown(context.Background())
	if p.Probe(context.Background()) == nil {
		t.Error("probe of a proxy that has ended succeeds")
	}
}

func TestKeyAppearsOnlyInRequestsToTheAPI(t *testing.T) {
	var log bytes.Buffer
	var audit memoryAudit
	logger := slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug - 10}))
	echo := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Echo", r.Header.Get("X-Api-Key"))
		http.SetCookie(w, &http.Cookie{Name: "k", Value: r.Header.Get("X-Api-Key")})
		w.Header().Set("Location", "/api/x?key="+r.Header.Get("X-Api-Key"))
		w.WriteHeader(500)
		fmt.Fprintf(w, "%v", r.Header)
	}
	var seen strings.Builder
	var calls callLog
	for _, h2 := range []bool{false, true} {
		root, ca := tlsAPI(t, h2, echo)
		p := start(t, root, func(c *Config) {
			c.APICA, c.Logger, c.Audit = ca, logger, &audit
			c.OnCall = calls.add
		})
		for _, raw := range []string{
			request(p, "GET", "/x", "\r\n"), request(p, "HEAD", "/x", "\r\n"), request(p, "GET", "/../x", "\r\n"),
			request(p, "TRACE", "/x", "\r\n"),
			request(p, "POST", "/x", "Content-Length: 5\r\n\r\nhello"), "nonsense\r\n\r\n",
		} {
			seen.WriteString(rawExchange(t, p.addr, raw))
		}
		p.Shutdown(context.Background())
		fmt.Fprintf(&seen, "%v %+v", p.Stats(), calls.calls)
	}
	for _, part := range []string{testKey, testKey[len(testKey)-43:]} {
		if strings.Contains(seen.String()+log.String()+audit.String(), part) {
			t.Errorf("the key shows in\n%s\n%s\n%s", seen.String(), log.String(), audit.String())
		}
	}
}
