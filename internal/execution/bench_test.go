package execution

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/proxy"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// BenchmarkCallThroughTheProxy measures one call on one connection, in turn: through a proxy without telemetry hooks,
// through that of an execution with telemetry off, and with telemetry on. The metrics are medians; ignore ns/op.
func BenchmarkCallThroughTheProxy(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // the content is ignored
		_, _ = io.WriteString(w, `{"count": 2}`)
	}))
	defer server.Close()
	api, err := url.Parse(server.URL + "/api")
	if err != nil {
		b.Fatal(err)
	}
	id := minter.Identity{BusinessID: "b-1", AccountID: "u-1", AccountType: "service_automation", ExecutionID: "e-1"}
	open := func(host *Host) *Authority {
		authority, err := host.Open(b.Context(), id, Serving{KeyLifetime: time.Hour})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { authority.Close(context.Background(), 0) })
		return authority
	}
	off := benchmarkedHost(b, api, telemetry.Config{})
	silent := open(off)
	callers := []*caller{
		dial(b, "none", bareProxy(b, off, id, silent)), dial(b, "off", silent.URL()),
		dial(b, "metrics", open(benchmarkedHost(b, api, telemetry.Config{Prometheus: true})).URL()),
	}
	b.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", server.URL+"/v1/traces")
	callers = append(callers, dial(b, "traces", open(benchmarkedHost(b, api, telemetry.Config{})).URL()))
	for b.Loop() {
		for _, c := range callers {
			began := time.Now()
			c.call(b)
			c.took = append(c.took, time.Since(began))
		}
	}
	for _, c := range callers {
		slices.Sort(c.took)
		b.ReportMetric(float64(c.took[len(c.took)/2].Nanoseconds())/1000, c.name+"-µs")
	}
	b.ReportMetric(0, "ns/op")
}

func benchmarkedHost(b *testing.B, api *url.URL, config telemetry.Config) *Host {
	b.Helper()
	store, err := redisconn.StartEmbedded()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(store.Close)
	redis, err := redisconn.Open(redisconn.Config{Embedded: store})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = redis.Close() })
	keys, err := minter.GenerateKeySet()
	if err != nil {
		b.Fatal(err)
	}
	engine, err := policy.ForCalls()
	if err != nil {
		b.Fatal(err)
	}
	observed, err := telemetry.Start(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = observed.Shutdown(context.Background()) }) // unsent telemetry is ignored
	host, err := NewHost(Config{Redis: redis, Keys: keys, Engine: engine, Proxy: proxy.Config{APIRoot: api},
		Telemetry: observed})
	if err != nil {
		b.Fatal(err)
	}
	return host
}

// bareProxy is the proxy of an execution without telemetry hooks.
func bareProxy(b *testing.B, host *Host, id minter.Identity, authority *Authority) (base string) {
	b.Helper()
	principal, err := host.principal(id)
	if err != nil {
		b.Fatal(err)
	}
	config := host.config.Proxy
	config.BusinessID, config.UserID, config.Keys, config.Authorizer = id.BusinessID, id.AccountID, authority.lease,
		authorizer{principal}
	bare, err := proxy.New(config)
	if err == nil {
		err = bare.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = bare.Shutdown(context.Background()) }) // no call is in flight
	return bare.URL()
}

// caller has very little overhead: it sends the same bytes repeatedly, and reads as many as the response announces.
type caller struct {
	name    string
	took    []time.Duration
	conn    net.Conn
	in      *bufio.Reader
	request []byte
}

func dial(b *testing.B, name, base string) *caller {
	b.Helper()
	at, err := url.Parse(base)
	if err != nil {
		b.Fatal(err)
	}
	conn, err := net.Dial("tcp", at.Host)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	return &caller{name: name, conn: conn, in: bufio.NewReader(conn),
		request: fmt.Appendf(nil, "GET %s/custom-objects?page=2 HTTP/1.1\r\nHost: %s\r\n\r\n", at.Path, at.Host)}
}

func (c *caller) call(b *testing.B) {
	if _, err := c.conn.Write(c.request); err != nil {
		b.Fatal(err)
	}
	left := 0
	for first := true; ; first = false {
		line, err := c.in.ReadSlice('\n')
		if err != nil || first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
			b.Fatalf("answered %q, %v", line, err)
		}
		if length, found := bytes.CutPrefix(line, []byte("Content-Length: ")); found {
			// A wrong number would end the benchmark at the next response.
			left, _ = strconv.Atoi(string(bytes.TrimSpace(length)))
		}
		if len(line) == 2 {
			break
		}
	}
	if _, err := c.in.Discard(left); err != nil {
		b.Fatal(err)
	}
}
