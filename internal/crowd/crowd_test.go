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
	}))
	server.Config.ConnContext = ConnContext
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

func TestNewUsesAtMostHalfOfTheDescriptors(t *testing.T) {
	if most := New(1 << 40).most; most > 1<<30 {
		t.Errorf("%d connections", most)
	}
}
