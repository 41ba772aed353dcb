package proxy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// scriptedAPI speaks HTTP/2 frame by frame. It handles the nth request by the nth entry of its script, and answers
// every later one.
type scriptedAPI struct {
	script []scripted
	window uint32 // of each stream; if 0, the protocol's default

	mu        sync.Mutex
	asked     int
	processed []string // the bodies of the answered requests
	conns     int
}

// scripted is an action on one request after this many bytes of its body have arrived.
type scripted struct {
	body int
	do   func(fr *http2.Framer, stream uint32) (keep bool)
}

func reset(code http2.ErrCode) func(*http2.Framer, uint32) bool {
	return func(fr *http2.Framer, stream uint32) bool { return fr.WriteRSTStream(stream, code) == nil }
}

// goAway returns an action that sends a GOAWAY and ends the connection. The last processed stream in it is the
// request's own stream, minus below.
func goAway(below uint32, code http2.ErrCode) func(*http2.Framer, uint32) bool {
	return func(fr *http2.Framer, stream uint32) bool {
		fr.WriteGoAway(stream-below, code, nil)
		return false
	}
}

func startScriptedAPI(t *testing.T, api *scriptedAPI) (root string, ca *x509.CertPool) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.TLS = &tls.Config{NextProtos: []string{"h2"}}
	server.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
		"h2": func(_ *http.Server, conn *tls.Conn, _ http.Handler) { api.serve(conn) },
	}
	server.Config.ErrorLog = discardLog()
	server.StartTLS()
	t.Cleanup(server.Close)
	ca = x509.NewCertPool()
	ca.AddCert(server.Certificate())
	return server.URL + "/api", ca
}

type scriptedStream struct {
	n    int
	body bytes.Buffer
}

func (api *scriptedAPI) serve(conn *tls.Conn) {
	defer conn.Close()
	api.mu.Lock()
	api.conns++
	api.mu.Unlock()
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	fr := http2.NewFramer(conn, conn)
	settings := []http2.Setting{}
	if api.window > 0 {
		settings = append(settings, http2.Setting{ID: http2.SettingInitialWindowSize, Val: api.window})
	}
	fr.WriteSettings(settings...)
	if api.window > 0 {
		fr.WriteWindowUpdate(0, api.window)
	}
	streams := map[uint32]*scriptedStream{}
	for {
		frame, err := fr.ReadFrame()
		if err != nil {
			return
		}
		ended := false
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				fr.WriteSettingsAck()
			}
			continue
		case *http2.HeadersFrame:
			api.mu.Lock()
			streams[f.StreamID] = &scriptedStream{n: api.asked}
			api.asked++
			api.mu.Unlock()
			ended = f.StreamEnded()
		case *http2.DataFrame:
			if streams[f.StreamID] != nil {
				streams[f.StreamID].body.Write(f.Data())
			}
			ended = f.StreamEnded()
			if n := uint32(len(f.Data())); n > 0 {
				fr.WriteWindowUpdate(0, n)
				fr.WriteWindowUpdate(f.StreamID, n)
			}
		default:
			continue
		}
		id := frame.Header().StreamID
		if streams[id] != nil && !api.answer(fr, id, streams, ended) {
			conn.CloseWrite()
			io.Copy(io.Discard, conn)
			return
		}
	}
}

// answer follows the script, and returns false at the end of the connection.
func (api *scriptedAPI) answer(fr *http2.Framer, id uint32, streams map[uint32]*scriptedStream, ended bool) bool {
	s := streams[id]
	if s.n < len(api.script) {
		step := api.script[s.n]
		if s.body.Len() < step.body {
			return true
		}
		delete(streams, id)
		return step.do(fr, id)
	}
	if !ended {
		return true
	}
	delete(streams, id)
	api.mu.Lock()
	api.processed = append(api.processed, s.body.String())
	api.mu.Unlock()
	var head bytes.Buffer
	hpack.NewEncoder(&head).WriteField(hpack.HeaderField{Name: ":status", Value: "204"})
	return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndHeaders: true,
		EndStream: true}) == nil
}

func TestUnprocessedRequestsAreSentAgain(t *testing.T) {
	refused, gone := reset(http2.ErrCodeRefusedStream), goAway(1, http2.ErrCodeNo)
	repeated := func(n int, s scripted) (script []scripted) {
		for range n {
			script = append(script, s)
		}
		return script
	}
	for _, tt := range []struct {
		name, method string
		size         int
		script       []scripted
		window       uint32
		status       int
		asked, conns int
	}{
		{"a goaway below the stream", "POST", 4, repeated(1, scripted{0, gone}), 0, 204, 2, 2},
		{"a goaway with an error below the stream", "POST", 4,
			repeated(1, scripted{0, goAway(1, http2.ErrCodeEnhanceYourCalm)}), 0, 204, 2, 2},
		{"three goaways", "POST", 4, repeated(3, scripted{4, gone}), 0, 204, 4, 4},
		{"a refused stream", "POST", 4, repeated(1, scripted{0, refused}), 0, 204, 2, 1},
		{"a refused stream without a body", "DELETE", 0, repeated(1, scripted{0, refused}), 0, 204, 2, 1},
		{"a refused upload", "POST", 300 << 10, repeated(2, scripted{0, refused}), 0, 204, 3, 1},
		{"an upload refused late", "POST", 300 << 10, repeated(1, scripted{60000, refused}), 0, 204, 2, 1},
		{"an upload refused too late", "POST", 300 << 10, repeated(1, scripted{250 << 10, refused}), 1 << 20, 502, 1, 1},
		{"streams that are refused without end", "POST", 4, repeated(20, scripted{0, refused}), 0, 502, maxAttempts,
			1 + maxAttempts - sharedAttempts},
		{"a reset with another code", "POST", 4, repeated(1, scripted{4, reset(http2.ErrCodeInternal)}), 0, 502, 1, 1},
		{"a goaway above the stream, and the end", "POST", 4, repeated(1, scripted{4, goAway(0, http2.ErrCodeNo)}), 0, 502, 1,
			1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api := &scriptedAPI{script: tt.script, window: tt.window}
			root, ca := startScriptedAPI(t, api)
			var log callLog
			p := start(t, root, func(c *Config) { c.APICA = ca; c.OnCall = log.add })
			body := strings.Repeat("b", tt.size)
			resp, answer := do(t, newClient(t), tt.method, p.URL()+"/x", body, nil)
			if resp.StatusCode != tt.status {
				t.Errorf("answer %d %s", resp.StatusCode, answer)
			}
			api.mu.Lock()
			defer api.mu.Unlock()
			if api.asked != tt.asked || api.conns != tt.conns {
				t.Errorf("%d attempts on %d connections, want %d on %d", api.asked, api.conns, tt.asked, tt.conns)
			}
			if tt.status == 204 && (len(api.processed) != 1 || api.processed[0] != body) {
				t.Errorf("processed %d requests", len(api.processed))
			}
			if calls := log.wait(t, 1); calls[0].Retried != (tt.asked > 1) || tt.status == 204 &&
				calls[0].Sent != int64(tt.size) {
				t.Errorf("recorded %+v", calls[0])
			}
		})
	}
}

// If none of a body has been read yet, the attempt that the API accepts carries all of it, including its trailers.
func TestAnUploadThatHasNotBegunIsSentAgain(t *testing.T) {
	refusals := make(chan bool, 1)
	api := &scriptedAPI{script: []scripted{{0, func(fr *http2.Framer, stream uint32) bool {
		defer func() { refusals <- true }()
		return fr.WriteRSTStream(stream, http2.ErrCodeRefusedStream) == nil
	}}}}
	root, ca := startScriptedAPI(t, api)
	p := start(t, root, func(c *Config) { c.APICA = ca })
	conn := rawDial(t, p.addr, request(p, "POST", "/x", "Transfer-Encoding: chunked\r\n\r\n"))
	<-refusals
	fmt.Fprintf(conn, "2\r\nab\r\n")
	waitFor(t, func() bool { api.mu.Lock(); defer api.mu.Unlock(); return api.asked == 2 })
	fmt.Fprintf(conn, "3\r\ncde\r\n0\r\n\r\n")
	if answer := readThrough(t, conn, "\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.1 204 ") {
		t.Errorf("answer %q", answer)
	}
	if len(api.processed) != 1 || api.processed[0] != "abcde" {
		t.Errorf("processed %q", api.processed)
	}
}
