package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// TestCallersThatReadNothingBloatNothing: each caller requests a large result, reads its beginning, and stops reading.
func TestCallersThatReadNothingBloatNothing(t *testing.T) {
	t.Parallel()
	s := startServe(t, "--warm", "0", "--slots", "2", "--ui")
	if got := s.ask("POST", "/executions", script("outputs.x = 'é' * 2_900_000").with("output_types", step{"x": "s"}).
		with("execution_id", "big")); got.status != 202 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	s.events("big").until("finished")
	before := sidecartest.AnonymousMiB(t, s.Process.Pid)
	for _, path := range []string{"/executions/big", "/executions/big/record"} {
		for range 25 {
			c := dialWithSmallBuffer(t, strings.TrimPrefix(s.URL, "http://"))
			if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\nX-BUSINESS-ID: b-1\r\nX-USER-ID: u-1\r\n"+
				"Authorization: Bearer %s\r\n\r\n", path, s.Token); err != nil {
				t.Fatal(err)
			}
			start := make([]byte, 12)
			if _, err := io.ReadFull(c, start); err != nil || string(start) != "HTTP/1.1 200" {
				t.Fatalf("%s: %q %v", path, start, err)
			}
		}
	}
	if after := sidecartest.AnonymousMiB(t, s.Process.Pid); after > before+64 {
		t.Errorf("serve grew from %.0f to %.0f MiB", before, after)
	}
	if got := s.ask("POST", "/api/coderunner/run", script("pass")); got.status != 200 {
		t.Errorf("a caller beside them: %d %s", got.status, got.body)
	}
}

// dialWithSmallBuffer returns a connection whose client's kernel buffers little of what the server sends.
func dialWithSmallBuffer(t *testing.T, address string) net.Conn {
	t.Helper()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096)
		}), err)
	}}
	c, err := dialer.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

var goroutinesOf = regexp.MustCompile(`(?m)^go_goroutines ([0-9]+)$`)

// TestStreamsOfSlowCallersKeepNobodyOut: over HTTP/2 each connection has 200 requests, which send half a body, or read
// no response.
func TestStreamsOfSlowCallersKeepNobodyOut(t *testing.T) {
	t.Parallel()
	const token = "a-token-of-the-test-and-only-of-it"
	authority := redistest.NewAuthority(t)
	authority.Issue(t, "server", x509.ExtKeyUsageServerAuth)
	list := writeFile(t, t.TempDir(), "callers.yaml",
		fmt.Sprintf("- {name: platform, token_file: %q, trusted: true}\n", writeFile(t, t.TempDir(), "token", token)))
	s := startServe(t, "--warm", "1", "--slots", "2", "--callers", list, "--tls-cert", authority.File("server.crt"),
		"--tls-key", authority.File("server.key"))
	good := newCaller(t, authority, nil, "", token, "b-good")
	if status, answer := good.run(t, s.URL, script("outputs.log(1)")); status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
	for _, method := range []string{"POST", "GET"} {
		t.Run(method, func(t *testing.T) { fillWithStreams(t, s, good, method, token) })
	}
}

// fillWithStreams sends many requests that do not end, and checks that serve soon has few of them.
func fillWithStreams(t *testing.T, s *served, good caller, method, token string) {
	const connections, streams = 10, 200
	path := map[string]string{"POST": "/api/coderunner/run", "GET": "/executions"}[method]
	for range connections {
		c, err := tls.Dial("tcp", strings.TrimPrefix(s.URL, "https://"),
			&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var sent bytes.Buffer
		sent.WriteString(http2.ClientPreface)
		framer := http2.NewFramer(&sent, nil)
		if err := framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
			t.Fatal(err)
		}
		var head bytes.Buffer
		encoder := hpack.NewEncoder(&head)
		for n := range uint32(streams) {
			head.Reset()
			for _, field := range [][2]string{{":method", method}, {":scheme", "https"}, {":path", path},
				{":authority", "localhost"}, {"authorization", "Bearer " + token}, {"content-type", "application/json"},
				{"x-business-id", "b-bad"}, {"x-user-id", "u"}} {
				if err := encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
					t.Fatal(err)
				}
			}
			if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*n + 1, BlockFragment: head.Bytes(),
				EndHeaders: true, EndStream: method == "GET"}); err != nil {
				t.Fatal(err)
			}
			if method == "GET" {
				continue
			}
			if err := framer.WriteData(2*n+1, false, []byte("{")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Write(sent.Bytes()); err != nil {
			t.Fatal(err)
		}
		// The reply to a ping shows that the server has read everything before it.
		var ping bytes.Buffer
		if err := http2.NewFramer(&ping, nil).WritePing(false, [8]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(ping.Bytes()); err != nil {
			t.Fatal(err)
		}
		for reader := http2.NewFramer(io.Discard, c); ; {
			frame, err := reader.ReadFrame()
			if err != nil {
				break // the server closed it in favour of another one
			}
			if answer, ok := frame.(*http2.PingFrame); ok && answer.IsAck() {
				break
			}
		}
	}
	if status, answer := good.run(t, s.URL, script("outputs.log(1)")); status != 200 {
		t.Errorf("a caller beside them: %d %s", status, answer)
	}
	var count int
	for range 200 { // reset streams end a little later
		match := goroutinesOf.FindStringSubmatch(s.Metrics())
		if match == nil {
			t.Fatal("no metric of goroutines")
		}
		var err error
		if count, err = strconv.Atoi(match[1]); err != nil {
			t.Fatal(err)
		}
		if count < connections*streams*2/3 {
			return
		}
	}
	t.Errorf("serve has %d goroutines", count)
}
