package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorded is a request as it was on the wire, read with code that shares nothing with the proxy's parser.
type recorded struct {
	line     string
	fields   []string // "Name: value", in order
	body     string
	trailers []string
}

func (r recorded) value(name string) string {
	for _, f := range r.fields {
		if n, v, _ := strings.Cut(f, ": "); strings.EqualFold(n, name) {
			return v
		}
	}
	return ""
}

// rawAPI is an API that keeps requests byte for byte and responds with the bytes that a test sets.
type rawAPI struct {
	net.Listener
	answer func(conn net.Conn, r recorded) (keep bool)

	wait     sync.WaitGroup
	mu       sync.Mutex
	requests []recorded
	accepted int
	conns    []net.Conn
}

const ok204 = "HTTP/1.1 204 No Content\r\n\r\n"

// answerWith sends the same bytes in response to every request.
func answerWith(raw string) func(net.Conn, recorded) bool {
	return func(conn net.Conn, _ recorded) bool {
		_, err := io.WriteString(conn, raw)
		return err == nil
	}
}

func startRawAPI(t testing.TB, answer func(net.Conn, recorded) bool) *rawAPI {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	api := &rawAPI{Listener: l, answer: answer}
	api.wait.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			api.mu.Lock()
			api.accepted++
			api.conns = append(api.conns, conn)
			api.mu.Unlock()
			api.wait.Go(func() { api.serve(conn) })
		}
	})
	t.Cleanup(api.stop)
	return api
}

func (api *rawAPI) stop() {
	api.Close()
	api.mu.Lock()
	for _, c := range api.conns {
		c.Close()
	}
	api.mu.Unlock()
	api.wait.Wait()
}

func (api *rawAPI) root() string { return "http://" + api.Addr().String() + "/api" }

func (api *rawAPI) seen() []recorded {
	api.mu.Lock()
	defer api.mu.Unlock()
	return append([]recorded(nil), api.requests...)
}

func (api *rawAPI) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		r, err := readRecorded(in, conn)
		if err != nil {
			return
		}
		api.mu.Lock()
		api.requests = append(api.requests, r)
		api.mu.Unlock()
		if !api.answer(conn, r) {
			return
		}
	}
}

func readRecorded(in *bufio.Reader, conn net.Conn) (r recorded, err error) {
	line := func() string {
		s, e := in.ReadString('\n')
		if e != nil {
			err = e
		}
		return strings.TrimSuffix(s, "\r\n")
	}
	r.line = line()
	length, chunked := 0, false
	for err == nil {
		f := line()
		if f == "" {
			break
		}
		r.fields = append(r.fields, f)
		name, value, _ := strings.Cut(f, ": ")
		switch strings.ToLower(name) {
		case "content-length":
			length, err = strconv.Atoi(value)
		case "transfer-encoding":
			chunked = true
		case "expect":
			io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
		}
	}
	var body bytes.Buffer
	for err == nil && chunked {
		digits, _, _ := strings.Cut(line(), ";")
		size, _ := strconv.ParseInt(digits, 16, 64)
		if size == 0 {
			for f := line(); f != "" && err == nil; f = line() {
				r.trailers = append(r.trailers, f)
			}
			break
		}
		io.CopyN(&body, in, size)
		line()
	}
	if err == nil && length > 0 {
		_, err = io.CopyN(&body, in, int64(length))
	}
	r.body = body.String()
	return r, err
}

// rawDial connects to the proxy (or to an API) and sends bytes.
func rawDial(t testing.TB, addr, send string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(5 * time.Minute)) // a hang is a failure, not a wait
	if _, err := io.WriteString(conn, send); err != nil {
		t.Fatal(err)
	}
	return conn
}

// rawExchange sends bytes, closes its side, and returns everything that it receives.
func rawExchange(t testing.TB, addr, send string) string {
	t.Helper()
	answer, err := io.ReadAll(rawDial(t, addr, send))
	if err != nil && len(answer) == 0 {
		t.Fatalf("read answer: %v", err)
	}
	return string(answer)
}

// request returns a request to the proxy's capability URL that closes its connection.
func request(p *Proxy, method, path, rest string) string {
	return fmt.Sprintf("%s %s%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s", method, p.base, path, p.addr, rest)
}
