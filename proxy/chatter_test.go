package proxy

import (
	"bytes"
	"compress/gzip"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// An API that never stops sending, but sends no content.

func TestTricklingResponseHeadTimesOut(t *testing.T) {
	api := startRawAPI(t, func(conn net.Conn, _ recorded) bool {
		_, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nX-Long: ")
		trickle := time.NewTicker(10 * time.Millisecond)
		defer trickle.Stop()
		for err == nil {
			<-trickle.C
			_, err = io.WriteString(conn, "x")
		}
		return false
	})
	p := start(t, api.root(), func(c *Config) { c.ResponseTimeout = 300 * time.Millisecond })
	if answer := rawExchange(t, p.addr, request(p, "POST", "/x", "Content-Length: 0\r\n\r\n")); !strings.HasPrefix(answer,
		"HTTP/1.1 504") {
		t.Errorf("answered %q", answer)
	}
	conn := rawDial(t, p.addr, request(p, "GET", "/x", "\r\n"))
	waitFor(t, func() bool { return len(api.seen()) == 2 })
	conn.Close()
	waitFor(t, func() bool { return p.inFlight.Load() == 0 })
}

func TestCompressedAnswerWithoutContentIsCut(t *testing.T) {
	var member bytes.Buffer
	packed := gzip.NewWriter(&member)
	io.WriteString(packed, "hello")
	packed.Close()
	var empty bytes.Buffer
	gzip.NewWriter(&empty).Close()
	for name, c := range map[string]struct{ coding, first, rest string }{
		"empty members":       {"gzip", member.String(), strings.Repeat(empty.String(), 1000)},
		"empty stored blocks": {"deflate", "\x78\x9c", strings.Repeat("\x00\x00\x00\xff\xff", 1000)},
		"data after zlib":     {"deflate", "\x78\x9c\x03\x00\x00\x00\x00\x01", strings.Repeat("x", 4096)},
	} {
		t.Run(name, func(t *testing.T) {
			api := startRawAPI(t, func(conn net.Conn, _ recorded) bool {
				_, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Encoding: "+c.coding+"\r\n\r\n"+c.first)
				for err == nil {
					_, err = io.WriteString(conn, c.rest)
				}
				return false
			})
			p := start(t, api.root(), nil)
			answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n"))
			if strings.HasSuffix(answer, "0\r\n\r\n") || !strings.HasPrefix(answer, "HTTP/1.1 ") {
				t.Errorf("the step accepts it as complete: %q", answer)
			}
			if p.Stats()[Answered] != 0 {
				t.Errorf("stats %v", p.Stats())
			}
		})
	}
}
