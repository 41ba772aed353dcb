package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The API, which answers from memory, and each way to it run in a process of their own. The load comes from this
// process, with the same client for all. CPU time counts only the process of the way.

const benchRole = "KIZEN_BENCH_ROLE" // "api ADDR", "bare ADDR" or "ours ADDR", for a child of the benchmark

var benchLoads = []struct {
	name             string
	upload, download int
}{
	{"json", 0, 200}, {"download-1MB", 0, 1 << 20}, {"upload-10MB", 10 << 20, 200},
}

func BenchmarkProxy(b *testing.B) {
	api := startRole(b, "api", "")
	ways := []*way{{name: "direct", addr: api.addr}, startRole(b, "bare", api.addr), startNginx(b, api.addr),
		startRole(b, "ours", api.addr)}
	for _, load := range benchLoads {
		for _, conns := range []int{1, 8, 64} {
			var bare measured
			for _, w := range ways {
				if w == nil {
					continue
				}
				var m measured
				b.Run(fmt.Sprintf("%s/conns=%d/%s", load.name, conns, w.name), func(b *testing.B) {
					m = w.measure(b, conns, benchRequest(w, load.download, load.upload))
					m.report(b, bare)
				})
				if w.name == "bare" {
					bare = m
				}
			}
		}
	}
}

// BenchmarkAddedLatency sends 1,000 requests a second without waiting for responses, and reports what each way adds to
// a direct call.
func BenchmarkAddedLatency(b *testing.B) {
	api := startRole(b, "api", "")
	ways := []*way{{name: "direct", addr: api.addr}, startRole(b, "bare", api.addr), startNginx(b, api.addr),
		startRole(b, "ours", api.addr)}
	var direct []time.Duration
	for _, w := range ways {
		if w == nil {
			continue
		}
		b.Run(w.name, func(b *testing.B) {
			latencies := w.pace(b, 8, time.Millisecond, benchRequest(w, 200, 0))
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(micros(percentile(latencies, 50)), "p50-µs")
			b.ReportMetric(micros(percentile(latencies, 99)), "p99-µs")
			if direct != nil {
				b.ReportMetric(micros(percentile(latencies, 50)-percentile(direct, 50)), "added-p50-µs")
				b.ReportMetric(micros(percentile(latencies, 99)-percentile(direct, 99)), "added-p99-µs")
			}
			if w.name == "direct" {
				direct = latencies
			}
		})
	}
}

// way is one way to the API.
type way struct {
	name, addr, base string
	pids             []int
	mallocs          func() uint64 // nil if the process does not count them
}

type measured struct {
	rps, p50, p99, cpu, allocs float64
}

func (w *way) measure(b *testing.B, conns int, request []byte) measured {
	clients := dialClients(b, w.addr, conns)
	for _, c := range clients {
		c.call(b, request) // connections to the API exist from here on
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	latencies := make([][]time.Duration, conns)
	cpu, mallocs := w.cpu(b), w.count()
	b.ResetTimer()
	var wait sync.WaitGroup
	for i, c := range clients {
		wait.Go(func() {
			for left.Add(-1) >= 0 {
				began := time.Now()
				if !c.call(b, request) {
					return
				}
				latencies[i] = append(latencies[i], time.Since(began))
			}
		})
	}
	wait.Wait()
	b.StopTimer()
	n := float64(b.N)
	all := slices.Concat(latencies...)
	return measured{
		rps: n / b.Elapsed().Seconds(), p50: micros(percentile(all, 50)), p99: micros(percentile(all, 99)),
		cpu: float64((w.cpu(b) - cpu).Microseconds()) / n, allocs: float64(w.count()-mallocs) / n,
	}
}

func (m measured) report(b *testing.B, bare measured) {
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(m.rps, "req/s")
	b.ReportMetric(m.p50, "p50-µs")
	b.ReportMetric(m.p99, "p99-µs")
	if m.cpu > 0 {
		b.ReportMetric(m.cpu, "cpu-µs/req")
	}
	if m.allocs > 0 {
		b.ReportMetric(m.allocs, "allocs/req")
	}
	if bare.rps > 0 {
		b.ReportMetric(m.rps/bare.rps, "×bare-req/s")
		b.ReportMetric(m.p50/bare.p50, "×bare-p50")
	}
}

// pace sends b.N requests at fixed intervals, on the connections in turn.
func (w *way) pace(b *testing.B, conns int, interval time.Duration, request []byte) []time.Duration {
	clients := dialClients(b, w.addr, conns)
	latencies := make([][]time.Duration, conns)
	var wait sync.WaitGroup
	begin := time.Now().Add(10 * time.Millisecond)
	for i, c := range clients {
		wait.Go(func() {
			for n := i; n < b.N; n += conns {
				time.Sleep(time.Until(begin.Add(time.Duration(n) * interval)))
				began := time.Now()
				if !c.call(b, request) {
					return
				}
				latencies[i] = append(latencies[i], time.Since(began))
			}
		})
	}
	wait.Wait()
	return slices.Concat(latencies...)
}

// benchClient is a client with very little overhead.
type benchClient struct {
	conn net.Conn
	in   *bufio.Reader
}

func dialClients(b *testing.B, addr string, n int) []*benchClient {
	clients := make([]*benchClient, n)
	for i := range clients {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		clients[i] = &benchClient{conn, bufio.NewReaderSize(conn, 64<<10)}
	}
	return clients
}

func (c *benchClient) call(b *testing.B, request []byte) bool {
	_, err := c.conn.Write(request)
	status, length := "", 0
	if err == nil {
		status, length, err = readBenchHead(c.in)
	}
	if err == nil {
		_, err = c.in.Discard(length)
	}
	if err != nil || !strings.HasPrefix(status, "HTTP/1.1 200") {
		b.Errorf("%q: %v", status, err)
		return false
	}
	return true
}

// readBenchHead reads a head, and returns the length of the body.
func readBenchHead(in *bufio.Reader) (first string, length int, err error) {
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return first, 0, err
		}
		switch {
		case first == "":
			first = string(line)
		case len(line) == 2:
			return first, length, nil
		case len(line) > 16 && line[14] == ':' && bytes.EqualFold(line[:14], []byte("content-length")):
			length, _ = strconv.Atoi(string(bytes.TrimSpace(line[15:])))
		}
	}
}

func benchRequest(w *way, download, upload int) []byte {
	method := "GET"
	if upload > 0 {
		method = "POST"
	}
	request := fmt.Sprintf("%s %s/api/%d HTTP/1.1\r\nHost: %s\r\nUser-Agent: python-requests/2.32.3\r\nAccept-Encoding: gzip, deflate\r\n"+
		"Accept: */*\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", method,
		w.base, download, w.addr, upload)
	return append([]byte(request), make([]byte, upload)...)
}

func percentile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[(len(d)-1)*p/100]
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// startRole runs this test binary as one of the parties.
func startRole(b *testing.B, role, api string) *way {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), benchRole+"="+role+" "+api)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close() // the process exits
		cmd.Wait()
	})
	w := &way{name: role, pids: []int{cmd.Process.Pid}}
	lines := bufio.NewReader(stdout)
	where, err := lines.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	w.addr, w.base, _ = strings.Cut(strings.TrimPrefix(strings.TrimSpace(where), "http://"), "/")
	if w.base != "" {
		w.base = "/" + w.base
	}
	w.mallocs = func() uint64 {
		io.WriteString(stdin, "\n")
		line, _ := lines.ReadString('\n')
		n, _ := strconv.ParseUint(strings.TrimSpace(line), 10, 64)
		return n
	}
	return w
}

func (w *way) count() uint64 {
	if w.mallocs == nil {
		return 0
	}
	return w.mallocs()
}

// cpu returns the processor time of the way's processes, in Linux's ticks of 10 ms.
func (w *way) cpu(b *testing.B) (sum time.Duration) {
	for _, pid := range w.pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			b.Fatal(err)
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, ticks := range fields[11:13] { // utime, stime
			n, _ := strconv.ParseInt(ticks, 10, 64)
			sum += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return sum
}

// playBenchRole is the child's main function; it ends with its standard input.
func playBenchRole(role string) {
	role, api, _ := strings.Cut(role, " ")
	var where string
	switch role {
	case "api":
		where = "http://" + benchAPI()
	case "bare":
		where = "http://" + bareProxy(api)
	case "ours":
		p, err := New(Config{
			APIRoot: &url.URL{Scheme: "http", Host: api}, BusinessID: "business-1", UserID: "user-1", Keys: staticKey(testKey),
			Authorizer: authorizerFunc(func(string, string) Decision { return Decision{Allowed: true, Policy: "all"} }),
			OnCall:     func(Call) {},
		})
		if err == nil {
			err = p.Start()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		defer p.Shutdown(context.Background())
		where = p.URL()
	}
	fmt.Println(where)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Println(m.Mallocs)
	}
}

// benchAPI responds to /api/N with N bytes.
func benchAPI() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serveBench(conn)
		}
	}()
	return l.Addr().String()
}

func serveBench(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReaderSize(conn, 64<<10)
	answers := map[string][]byte{}
	for {
		first, length, err := readBenchHead(in)
		if err != nil {
			return
		}
		if _, err := in.Discard(length); err != nil {
			return
		}
		answer, ok := answers[first]
		if !ok {
			var size int
			fmt.Sscanf(first[strings.LastIndex(first, "/api/"):], "/api/%d", &size)
			answer = fmt.Appendf(nil,
				"HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", size)
			answer = append(answer, bytes.Repeat([]byte(`{"id":"4711","e":1},`), size/20+1)[:size]...)
			answers[first] = answer
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// bareProxy is the simplest proxy that the standard library offers.
func bareProxy(api string) string {
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: api})
			r.Out.Header.Set("X-API-KEY", testKey)
			r.Out.Header.Set("X-BUSINESS-ID", "business-1")
			r.Out.Header.Set("X-USER-ID", "user-1")
		},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go http.Serve(l, proxy)
	return l.Addr().String()
}

const nginxConfig = `
worker_processes 2;
error_log stderr error;
pid %[1]s/pid;
daemon off;
events { worker_connections 512; }
http {
	access_log off;
	client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
	client_max_body_size 0;
	keepalive_requests 100000000;
	upstream api { server %[2]s; keepalive 64; keepalive_requests 100000000; }
	server {
		listen %[3]s;
		location / {
			proxy_pass http://api;
			proxy_http_version 1.1;
			proxy_request_buffering off;
			proxy_max_temp_file_size 0;
			proxy_set_header Connection "";
			proxy_set_header X-API-KEY "%[4]s";
			proxy_set_header X-BUSINESS-ID "business-1";
			proxy_set_header X-USER-ID "user-1";
		}
	}
}
`

// startNginx returns nil if nginx is missing and not required.
func startNginx(b *testing.B, api string) *way {
	program, err := exec.LookPath("nginx")
	if err != nil {
		if os.Getenv("KIZEN_TEST_REQUIRE") == "1" {
			b.Fatal("nginx is not installed")
		}
		b.Log("nginx is not installed; measuring without it")
		return nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	dir := b.TempDir()
	os.Chmod(filepath.Dir(dir), 0o755) // its workers run as another user
	os.Chmod(dir, 0o777)
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, dir, api, addr, testKey), 0o644); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(program, "-c", config, "-p", dir, "-e", "stderr")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	waitFor(b, func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
	w := &way{name: "nginx", addr: addr}
	for child := range strings.FieldsSeq(string(children)) {
		pid, _ := strconv.Atoi(child)
		w.pids = append(w.pids, pid)
	}
	return w
}
