package redisconn_test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/redis/go-redis/v9"
)

func TestASharedEmbeddedStoreRequiresAuthentication(t *testing.T) {
	store := embedded(t)
	host, _, _ := strings.Cut(store.URL(), "@")
	for _, url := range []string{"redis://" + store.Addr(), "redis://:wrong@" + store.Addr()} {
		client := open(t, url)
		if err := client.Set(t.Context(), "a", "b", 0).Err(); err == nil || strings.Contains(err.Error(), host) {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestAPipelineLargerThanEveryBufferIsAnswered(t *testing.T) {
	client, err := redisconn.Open(redisconn.Config{Embedded: embedded(t), Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	value := strings.Repeat("x", 4096)
	if err := client.Set(t.Context(), "large", value, 0).Err(); err != nil {
		t.Fatal(err)
	}
	answers, err := client.Pipelined(t.Context(), func(pipe redis.Pipeliner) error {
		for range 20 {
			pipe.Get(t.Context(), "large")
			pipe.Set(t.Context(), "large", value, 0)
		}
		return nil
	})
	if err != nil || len(answers) != 40 {
		t.Errorf("%d answers, %v", len(answers), err)
	}
}

func open(t testing.TB, url string) redis.UniversalClient {
	t.Helper()
	client, err := redisconn.Open(redisconn.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func embedded(t testing.TB) *redisconn.Embedded {
	t.Helper()
	e, err := redisconn.StartEmbedded()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	if err := e.Share("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	return e
}

// TestUnauthenticatedConnectionsDoNotBlockASharedStore: new connections replace those that do not authenticate.
func TestUnauthenticatedConnectionsDoNotBlockASharedStore(t *testing.T) {
	store := embedded(t)
	crowd := func() {
		for range 300 { // more than it accepts
			idle, err := net.Dial("tcp", store.Addr())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = idle.Close() })
		}
	}
	crowd()
	client, err := net.Dial("tcp", store.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	in := bufio.NewReader(client)
	ask := func(command, want string) {
		t.Helper()
		if _, err := client.Write([]byte(command)); err != nil {
			t.Fatal(err)
		}
		if answer, err := in.ReadString('\n'); answer != want {
			t.Fatalf("answered %q, %v", answer, err)
		}
	}
	_, password, _ := strings.Cut(store.URL(), "redis://:")
	password, _, _ = strings.Cut(password, "@")
	ask(fmt.Sprintf("*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n", len(password), password), "+OK\r\n")
	crowd()
	ask("*1\r\n$4\r\nPING\r\n", "+PONG\r\n") // the connection is kept
}
