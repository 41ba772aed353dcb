package proxy

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
)

func TestOneRequestNeverBecomesTwo(t *testing.T) {
	for _, attempt := range attacks.Messages() {
		t.Run(attempt.Name, func(t *testing.T) {
			api := startRawAPI(t, answerWith(ok204))
			p := start(t, api.root(), nil)
			raw := attempt.Text(p.addr, p.base)
			// A second request follows, which must not be answered after a malformed one.
			conn := rawDial(t, p.addr, raw+request(p, "GET", "/second", "\r\n"))
			answer, _ := io.ReadAll(conn)
			whole := len(api.seen())
			if attempt.Passed == "" {
				if !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") ||
					strings.Count(string(answer), "HTTP/1.1 400 Bad Request\r\n") != 1 || whole != 0 {
					t.Fatalf("%d requests reached the api, answer %q", whole, answer)
				}
				return
			}
			if whole != 2 {
				t.Fatalf("%d requests reached the api, answer %q", whole, answer)
			}
			first := api.seen()[0]
			if first.body != attempt.Passed || len(first.trailers) != 0 {
				t.Errorf("the api saw body %q, trailers %q", first.body, first.trailers)
			}
			if n := strings.Count(strings.ToLower(strings.Join(first.fields, "\n")), "x-api-key"); n != 1 {
				t.Errorf("%d keys in %q", n, first.fields)
			}
		})
	}
}

// TestOneAnswerNeverBecomesTwo: a response that is invalid, or whose end is ambiguous, becomes a 502.
func TestOneAnswerNeverBecomesTwo(t *testing.T) {
	for _, a := range attacks.Answers() {
		if !strings.HasSuffix(a.Sees, attacks.BadGateway) || a.Again != "" {
			continue
		}
		t.Run(a.Name, func(t *testing.T) {
			api := startRawAPI(t, func(conn net.Conn, _ recorded) bool { a.Send(conn); return false })
			p := start(t, api.root(), nil)
			answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n"))
			if !strings.Contains(answer, "HTTP/1.1 502 Bad Gateway\r\n") || !strings.Contains(answer, `"code":"api_`) {
				t.Errorf("answer %q", answer)
			}
		})
	}
}

func TestUnsolicitedAnswerIsNotDelivered(t *testing.T) {
	api := startRawAPI(t,
		answerWith("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"+"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"))
	p := start(t, api.root(), nil)
	client := newClient(t)
	for range 3 {
		if _, body := do(t, client, "GET", p.URL()+"/x", "", nil); body != "a" {
			t.Fatalf("answer %q", body)
		}
	}
}
