package crowd

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// serveCrowd starts a server for at most the given number of connections. A request to /wait blocks until release is
// called.
func serveCrowd(t *testing.T, most int,
	encrypted bool) (address string, client *http.Client, arrived chan struct{}, release func()) {
	t.Helper()
	arrived, gate := make(chan struct{}, most), make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			defer Hold(r)()
			arrived <- struct{}{}
			<-gate
		}
		if r.URL.Path == "/body" {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				panic(http.ErrAbortHandler)
			}
		}
	}))
	server.Config.ConnContext, server.Config.Handler = ConnContext, Handler(server.Config.Handler)
	server.EnableHTTP2 = encrypted
	server.Listener = New(most).Listener(server.Listener)
	if encrypted {
		server.StartTLS()
	} else {
		server.Start()
	}
	release = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(server.Close)
	t.Cleanup(release)
	return server.Listener.Addr().String(), server.Client(), arrived, release
}

func dial(t *testing.T, address, send string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	return c
}

const request = " HTTP/1.1\r\nHost: x\r\n\r\n"

func TestSilentConnectionsDoNotBlockOtherCallers(t *testing.T) {
	address, _, arrived, release := serveCrowd(t, 4, false)
	waits := dial(t, address, "GET /wait"+request)
	<-arrived
	idle := dial(t, address, "GET /"+request)
	answers := bufio.NewReader(idle)
	if _, err := http.ReadResponse(answers, nil); err != nil {
		t.Fatal(err)
	}
	var slow []net.Conn
	for range 20 {
		slow = append(slow, dial(t, address, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "))
		other := dial(t, address, "GET /"+request)
		if response, err := http.ReadResponse(bufio.NewReader(other), nil); err != nil || response.StatusCode != 200 {
			t.Fatalf("another caller: %v", err)
		}
	}
	if _, err := answers.ReadByte(); err == nil {
		t.Error("the connection that has waited longest for its caller is still open")
	}
	if _, err := slow[0].Read(make([]byte, 1)); err == nil {
		t.Error("a slow caller got a response")
	}
	release()
	if response, err := http.ReadResponse(bufio.NewReader(waits), nil); err != nil || response.StatusCode != 200 {
		t.Errorf("the caller that waited: %v", err)
	}
}

func TestANewConnectionIsRefusedWhileAllCallersWait(t *testing.T) {
	address, _, arrived, release := serveCrowd(t, 2, false)
	first, second := dial(t, address, "GET /wait"+request), dial(t, address, "GET /wait"+request)
	<-arrived
	<-arrived
	if _, err := dial(t, address, "").Read(make([]byte, 1)); err == nil {
		t.Error("the new connection got a response")
	}
	release()
	for _, c := range []net.Conn{first, second} {
		if response, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || response.StatusCode != 200 {
			t.Errorf("a caller that waited: %v", err)
		}
	}
}

func TestHoldProtectsConnectionsOverTLS(t *testing.T) {
	address, client, arrived, release := serveCrowd(t, 2, true)
	answered := make(chan error, 1)
	go func() {
		response, err := client.Get("https://" + address + "/wait")
		if err == nil {
			err = response.Body.Close()
		}
		answered <- err
	}()
	<-arrived
	for range 10 {
		c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	release()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// TestRequestsThatShareAConnectionCount: over HTTP/2 one connection would otherwise bring as many callers as it likes.
func TestRequestsThatShareAConnectionCount(t *testing.T) {
	const most = 8
	address, client, arrived, release := serveCrowd(t, most, true)
	waits := make(chan int, 1)
	go func() {
		response, err := client.Get("https://" + address + "/wait")
		if err != nil {
			waits <- 0
			return
		}
		_ = response.Body.Close()
		waits <- response.StatusCode
	}()
	<-arrived
	// They share its connection, and send a body that does not end.
	ends := make(chan error, 3*most)
	for range 3 * most {
		body, write := io.Pipe()
		t.Cleanup(func() { _ = write.Close() })
		go func() {
			response, err := client.Post("https://"+address+"/body", "text/plain", body)
			if err == nil {
				_, err = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
			}
			ends <- err
		}()
	}
	for range 2 * most { // those above the limit are reset
		if err := <-ends; err == nil {
			t.Error("a request whose body did not end was answered")
		}
	}
	other, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := io.WriteString(other, "GET /"+request); err != nil {
		t.Fatal(err)
	}
	if response, err := http.ReadResponse(bufio.NewReader(other), nil); err != nil || response.StatusCode != 200 {
		t.Errorf("another caller: %v", err)
	}
	release()
	if status := <-waits; status != 200 {
		t.Errorf("the caller that waited: %d", status)
	}
}

// TestTheKernelBuffersLittleOfWhatIsNotRead: its buffers count towards no limit with cgroup v1.
func TestTheKernelBuffersLittleOfWhatIsNotRead(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	dial(t, inner.Addr().String(), "")
	accepted, err := New(1).Listener(inner).Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	raw, err := accepted.(*conn).Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var size int
	if failed := raw.Control(func(fd uintptr) {
		size, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
	}); failed != nil || err != nil || size > 2*sendBuffer {
		t.Errorf("%d bytes, %v, %v", size, failed, err)
	}
}

func TestNewUsesAtMostHalfOfTheDescriptors(t *testing.T) {
	if most := New(1 << 40).most; most > 1<<30 {
		t.Errorf("%d connections", most)
	}
}
