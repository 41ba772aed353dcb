package redisconn_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

func TestAnInvalidRedisURLIsRefusedWithoutQuotingIt(t *testing.T) {
	for url, want := range map[string]string{
		"":                                      "the redis url has no scheme; write redis://HOST:6379",
		"canary:6379":                           "the redis url has no scheme",
		"http://u:canary@host":                  `redis url scheme "http" is not known`,
		"redis+ring://u:canary@host":            `redis url scheme "redis+ring" is not known`,
		"redis://u:canary@":                     "no valid host and port",
		"redis://u:canary@host:0":               "no valid host and port",
		"redis://u:canary@host:99999":           "no valid host and port",
		"redis://u:canary@a:1,,b:2":             "no valid host and port",
		"redis://u:canary%zz@host":              "percent-encode special characters in the password",
		"redis://u:canary@host/zero":            "the redis url's database is not a number",
		"redis://u:canary@host/0/1":             "path has unexpected parts",
		"redis://u:canary@host?pool_size=3":     "an option other than db, sentinel_user and sentinel_password",
		"redis://u:1/canary@host":               "percent-encode special characters in the password",
		"redis://u:1?canary@host":               "an option other than db, sentinel_user and sentinel_password",
		"redis+sentinel://u:canary@host:26379":  "names no master",
		"redis+cluster://u:canary@host:6379/3":  "path has unexpected parts",
		"redis+sentinel://u:canary@host/m/zero": "the redis url's database is not a number",
	} {
		t.Run(url, func(t *testing.T) {
			_, err := redisconn.Open(redisconn.Config{URL: url})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("Open = %v, want %q", err, want)
			}
			if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error quotes the url: %v", err)
			}
		})
	}
}

func TestRedisFailureNamesTheServerAndWhatToDo(t *testing.T) {
	locked := redistest.Start(t, "--requirepass", "open-sesame")
	silent := listen(t, func(net.Conn) {})
	closing := listen(t, func(c net.Conn) { _ = c.Close() })
	loud := listen(t, func(c net.Conn) { _, _ = c.Write([]byte("-ERR unknown command\r\n")) })
	free := "127.0.0.1:1"
	for name, row := range map[string]struct{ url, server, want string }{
		"no server listens": {
			"redis://" + free, "redis at " + free,
			"refused the connection; start one there, or correct the redis url",
		},
		"no password": {locked.URL(), "redis at " + locked.Addr,
			"wants a password; put user and password into the redis url"},
		"wrong password": {
			"redis://:canary@" + locked.Addr, "redis at " + locked.Addr,
			"refused the user or the password; check those in the redis url",
		},
		"silence": {"redis://" + silent, "redis at " + silent,
			"did not answer within 300ms; check that it is up and reachable, or raise --redis-timeout"},
		"silent sentinel": {"redis+sentinel://" + silent + "/main", `redis master "main" of the sentinels at ` + silent,
			"did not answer within 300ms; check that it is up and reachable, or raise --redis-timeout"},
		"silent cluster": {"redis+cluster://" + silent, "redis at " + silent,
			"did not answer within 300ms; check that it is up and reachable, or raise --redis-timeout"},
		"hangs up": {"redis://" + closing, "redis at " + closing,
			"closed the connection; check whether it wants TLS (rediss://) and its log"},
		"hangs up on TLS": {"rediss://" + closing, "redis at " + closing,
			"closed the connection; if it refused our client certificate, check the certificate and key files, and its log"},
		"plain": {"rediss://" + locked.Addr, "redis at " + locked.Addr,
			"did not answer within 300ms; check that it is up, reachable and speaks TLS, or raise --redis-timeout"},
		"no TLS": {"rediss://" + loud, "redis at " + loud,
			"does not speak TLS; write redis:// for rediss://, or enable TLS there"},
		"no sentinel": {"redis+sentinel://" + free + "/main", `redis master "main" of the sentinels at ` + free,
			"cannot be found: no sentinel answers for it; check the redis url and the sentinels"},
		"no cluster": {"redis+cluster://" + free, "redis at " + free,
			"refused the connection; start one there, or correct the redis url"},
		"no name": {"redis://no-such-host.invalid", "redis at no-such-host.invalid:6379",
			`cannot be found: no address for "no-such-host.invalid"; check the redis url`},
	} {
		t.Run(name, func(t *testing.T) {
			timeout := time.Minute
			if strings.Contains(row.want, "within 300ms") {
				timeout = 300 * time.Millisecond
			}
			client, err := redisconn.Open(redisconn.Config{URL: row.url, Timeout: timeout})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			err = client.Set(t.Context(), "a", "b", time.Second).Err()
			if err == nil || err.Error() != row.server+" "+row.want {
				t.Errorf("got  %v\nwant %s", err, row.server+" "+row.want)
			}
		})
	}
}

// listen serves every connection with serve and leaves it open until the test ends.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = listener.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			serve(conn)
		}
	}()
	return listener.Addr().String()
}

func FuzzRedisURL(f *testing.F) {
	for _, seed := range []string{
		"redis://h", "redis://u:p@h:1/2", "rediss://:p@[::1]:1",
		"redis+sentinel://u:p@a:1,b/main/3?sentinel_user=x&sentinel_password=y",
		"redis+cluster://a,b,c", "unix:///run/redis.sock?db=1", "redis://u:%zz@h", "redis://@", "redis://h/x", "://",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, url string) {
		const canary = "s3cr3t-canary"
		client, err := redisconn.Open(redisconn.Config{URL: strings.Replace(url, "@", canary+"@", 1)})
		if err != nil {
			if strings.Contains(err.Error(), canary) && strings.Contains(url, "://") &&
				!strings.Contains(strings.Split(url, "://")[0], "@") {
				t.Errorf("the error shows the password: %v", err)
			}
			return
		}
		_ = client.Close()
	})
}
