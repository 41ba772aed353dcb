package proxy

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/keyscan"
)

func TestEventsAreFlushedAtOnce(t *testing.T) {
	for name, head := range map[string]string{
		"chunked":         "Transfer-Encoding: chunked\r\n\r\n",
		"until close":     "\r\n",
		"declared length": "Content-Length: 24\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			next := make(chan struct{})
			api := startRawAPI(t, func(conn net.Conn, _ recorded) bool {
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"+head)
				for i := range 3 {
					<-next
					event := fmt.Sprintf("data: %d\n", i)
					if name == "chunked" {
						event = fmt.Sprintf("%x\r\n%s\r\n", len(event), event)
					}
					io.WriteString(conn, event)
				}
				return false
			})
			p := start(t, api.root(), nil)
			conn := rawDial(t, p.addr, request(p, "GET", "/events", "\r\n"))
			readThrough(t, conn, "\r\n\r\n") // the head does not wait for the first event
			for i := range 3 {
				next <- struct{}{}
				readThrough(t, conn, fmt.Sprintf("data: %d\n", i))
			}
		})
	}
}

func TestHeadDoesNotWaitForTheFirstChunkOfData(t *testing.T) {
	release := make(chan struct{})
	api := startRawAPI(t, func(conn net.Conn, _ recorded) bool {
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n")
		<-release
		io.WriteString(conn, "hello\r\n0\r\n\r\n")
		return true
	})
	p := start(t, api.root(), nil)
	conn := rawDial(t, p.addr, request(p, "GET", "/x", "\r\n"))
	readThrough(t, conn, "\r\n\r\n")
	close(release)
	readThrough(t, conn, "0\r\n\r\n")
}

func TestOnlyTheAPISendsContinue(t *testing.T) {
	for _, tt := range []struct{ name, first, want string }{
		{"continue", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 204 No Content\r\n"},
		{"refused", "", "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := make(chan string, 1)
			l := listen(t)
			serve(t, l, func(conn net.Conn) {
				skipHead(conn)
				if tt.first == "" {
					io.WriteString(conn, "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
					return
				}
				io.WriteString(conn, tt.first)
				b := make([]byte, 5)
				io.ReadFull(conn, b)
				body <- string(b)
				io.WriteString(conn, ok204)
			})
			p := start(t, "http://"+l.Addr().String(), nil)
			conn := rawDial(t, p.addr, request(p, "PUT", "/x", "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"))
			if tt.first != "" {
				readUntil(t, conn, tt.first)
				io.WriteString(conn, "hello")
				if got := <-body; got != "hello" {
					t.Errorf("the api saw %q", got)
				}
			}
			readUntil(t, conn, tt.want)
		})
	}
}

func TestEveryStatusPasses(t *testing.T) {
	api := startRawAPI(t, func(conn net.Conn, r recorded) bool {
		status := strings.TrimPrefix(strings.Fields(r.line)[1], "/api/")
		head := "HTTP/1.1 " + status + " Some Reason\r\nRetry-After: 7\r\n"
		switch status {
		case "204", "304":
			_, err := io.WriteString(conn, head+"\r\n")
			return err == nil
		}
		_, err := io.WriteString(conn, head+"Content-Length: 4\r\n\r\nbody")
		return err == nil
	})
	p := start(t, api.root(), nil)
	client := newClient(t)
	for status := 200; status <= 999; status++ {
		resp, body := do(t, client, "GET", fmt.Sprintf("%s/%d", p.URL(), status), "", nil)
		want := "body"
		if status == 204 || status == 304 {
			want = ""
		}
		if resp.Status != fmt.Sprintf("%d Some Reason", status) || body != want || resp.Header.Get("Retry-After") != "7" {
			t.Errorf("status %q, body %q", resp.Status, body)
		}
	}
}

func TestAnswersWithoutBody(t *testing.T) {
	tests := []struct{ name, method, answer, want string }{
		{"HEAD with length", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"a\"\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"a\"\r\n"},
		{"HEAD without length", "HEAD", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\n"},
		{"HEAD with coding", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\n"},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n"},
		{"204 with length", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 204 No Content\r\n"},
		{"interim answer with length", "GET",
			"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
			"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n"},
		{"304 with coding", "GET", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
			"HTTP/1.1 304 Not Modified\r\n"},
		{"coding and length", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"},
		{"304 with length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
			"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n"},
		{"empty", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"},
		{"two equal lengths", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"},
		{"no reason", "GET", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 \r\nContent-Length: 0\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			api := startRawAPI(t, answerWith(tt.answer))
			p := start(t, api.root(), nil)
			// Both are on one connection: the second arrives only if the first ended at the right byte.
			raw := strings.Replace(request(p, tt.method, "/x", "\r\n"), "Connection: close\r\n", "", 1)
			answer := rawExchange(t, p.addr, raw+request(p, tt.method, "/y", "\r\n"))
			if want := tt.want + "\r\n" + tt.want + "Connection: close\r\n\r\n"; answer != want {
				t.Errorf("answer %q, want %q", answer, want)
			}
		})
	}
}

func TestMultipartArrivesWhole(t *testing.T) {
	root := serveAPI(t, func(w http.ResponseWriter, r *http.Request) {
		file, head, err := r.FormFile("f")
		if err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		n, _ := io.Copy(io.Discard, file)
		fmt.Fprintf(w, "%s %d %s", head.Filename, n, r.FormValue("a"))
	})
	p := start(t, root, nil)
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	form.WriteField("a", "1")
	part, _ := form.CreateFormFile("f", "é x.bin")
	part.Write(bytes.Repeat([]byte{0, '\r', '\n'}, 100000))
	form.Close()
	_, body := do(t, newClient(t), "POST", p.URL()+"/x", b.String(),
		http.Header{"Content-Type": {form.FormDataContentType()}})
	if body != "é x.bin 300000 1" {
		t.Errorf("answer %q", body)
	}
}

func TestTrailersPassBothWays(t *testing.T) {
	api := startRawAPI(t,
		answerWith("HTTP/1.1 200 OK\r\nTrailer: X-A\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n"))
	p := start(t, api.root(), nil)
	answer := rawExchange(t, p.addr, request(p, "POST", "/x",
		"Trailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n1\r\ny\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\n"))
	if !strings.HasSuffix(answer, "\r\n\r\n1\r\nx\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n") {
		t.Errorf("answer %q", answer)
	}
	if got := strings.Join(api.seen()[0].trailers, ","); got != "X-T: 1,X-U: 2" {
		t.Errorf("the api saw trailers %q", got)
	}
}

func TestAnswerMayComeBeforeTheBodyEnds(t *testing.T) {
	l := listen(t)
	serve(t, l, func(conn net.Conn) {
		skipHead(conn)
		io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
	})
	p := start(t, "http://"+l.Addr().String(), nil)
	conn := rawDial(t, p.addr, strings.Replace(request(p, "POST", "/x", "Content-Length: 1000000\r\n\r\nfirst"),
		"Connection: close\r\n", "", 1))
	answer, _ := io.ReadAll(conn)
	if want := "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"; string(answer) != want {
		t.Errorf("answer %q, want %q", answer, want)
	}
}

func TestBothBodiesStreamConcurrently(t *testing.T) {
	l := listen(t)
	serve(t, l, func(conn net.Conn) { // an echo that responds while it reads
		skipHead(conn)
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
		io.CopyN(conn, conn, 9)
	})
	p := start(t, "http://"+l.Addr().String(), nil)
	conn := rawDial(t, p.addr, request(p, "POST", "/x", "Content-Length: 9\r\n\r\n"))
	readThrough(t, conn, "\r\n\r\n")
	for _, piece := range []string{"one", "two", "end"} {
		io.WriteString(conn, piece)
		readUntil(t, conn, piece)
	}
}

// memory returns the heap in use.
func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

func TestMemoryStaysFlatUnderLargeBodies(t *testing.T) {
	const size, limit = 100 << 20, 16 << 20
	for _, h2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "http/1.1", true: "h2"}[h2], func(t *testing.T) {
			var before, most uint64
			look := func(n int64) {
				if now := memory(); n > 0 && now > most {
					most = now
				}
			}
			root, ca := tlsAPI(t, h2, func(w http.ResponseWriter, r *http.Request) {
				n, _ := io.Copy(io.Discard, &watched{r: r.Body, look: look})
				fmt.Fprintf(w, "%d ", n)
				io.CopyN(w, &watched{r: zeros{}, look: look}, size)
			})
			p := start(t, root, func(c *Config) { c.APICA = ca })
			client := newClient(t)
			before = memory()
			for _, chunked := range []bool{false, true} {
				req, _ := http.NewRequest("POST", p.URL()+"/x", io.LimitReader(zeros{}, size))
				if !chunked {
					req.ContentLength = size
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil || n != size+int64(len("104857600 ")) {
					t.Errorf("%d bytes came back: %v", n, err)
				}
			}
			if most > before+limit {
				t.Errorf("memory grew by %d MB", (most-before)>>20)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// watched calls look after every 16 MB.
type watched struct {
	r    io.Reader
	look func(int64)
	n    int64
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if (w.n+int64(n))>>24 != w.n>>24 {
		w.look(w.n)
	}
	w.n += int64(n)
	return n, err
}

func TestKeyIsMaskedInBodies(t *testing.T) {
	echo := "{\"headers\": \"" + testKey + "\", \"almost\": \"" + testKey[:30] + "!\", \"again\": \"" + testKey + "\"}"
	for name, answer := range map[string]func(io.Writer){
		"in one piece": func(w io.Writer) { fmt.Fprintf(w, "Content-Length: %d\r\n\r\n%s", len(echo), echo) },
		"byte by byte": func(w io.Writer) {
			io.WriteString(w, "\r\n")
			for i := range echo {
				io.WriteString(w, echo[i:i+1])
			}
		},
		"in chunks of one": func(w io.Writer) {
			io.WriteString(w, "Transfer-Encoding: chunked\r\n\r\n")
			for i := range echo {
				io.WriteString(w, "1\r\n"+echo[i:i+1]+"\r\n")
			}
			io.WriteString(w, "0\r\n\r\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			api := startRawAPI(t, func(conn net.Conn, _ recorded) bool {
				io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
				answer(conn)
				return false
			})
			p := start(t, api.root(), nil)
			resp, body := do(t, newClient(t), "GET", p.URL()+"/echo", "", nil)
			if resp.StatusCode != 200 {
				t.Errorf("status %d", resp.StatusCode)
			}
			requireMasked(t, body, echo)
		})
	}
}

// requireMasked compares a response with the expected one, in which the end of each key is overwritten. When a key
// arrives byte by byte, its first bytes may be sent before they can be recognised.
func requireMasked(t *testing.T, got, want string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("answer of %d bytes, want %d: %q", len(got), len(want), got)
	}
	for i := range want {
		if got[i] != want[i] && got[i] != '*' {
			t.Fatalf("byte %d of the answer is not the API's: %q", i, got)
		}
	}
	// Three pieces of the key, and how much of each may be sent when it arrives byte by byte: less than
	// keyscan.MinPending. 42 characters (252 bits) stay unknown.
	const masked, early = 63, 3 * (keyscan.MinPending - 1)
	for at := strings.Index(want, testKey); at >= 0; at = strings.Index(want, testKey) {
		before, end := at+len(testKey)-masked, at+len(testKey)
		if got[:before] != want[:before] || strings.Count(got[before:end], "*") < masked-early {
			t.Errorf("the key is not masked, or other text is: %q", got[:end])
		}
		got, want = got[end:], want[end:]
	}
	if got != want {
		t.Errorf("the answer ends with %q, want %q", got, want)
	}
}

func TestMethodsThatEchoHeadersAreRefused(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), nil)
	for _, method := range []string{"TRACE", "trace", "TRACK"} {
		if answer := rawExchange(t, p.addr, request(p, method, "/x", "\r\n")); !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
			t.Errorf("%s: %q", method, answer)
		}
	}
	if len(api.seen()) > 0 {
		t.Errorf("the api saw %q", api.seen())
	}
}
