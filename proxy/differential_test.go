package proxy

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

// The corpus contains every combination of these; the other fields are drawn at random from a fixed seed.
var (
	corpusMethods = []string{"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PROPFIND", "custom-Verb"}
	corpusPaths   = []string{
		"", "/", "/custom-objects", "/custom-objects/", "/a//b", "/a///", "/records/a%2Fb", "/records/a%2fb", "/x%21y!z",
		"/a:b@c", "/a;v=1/b;w", "/%E2%82%AC", "/\xe2\x82\xac", "/a+b%20c", "/./a", "/a/./b", "/...", "/a/..b/c..",
		"/%25", "/a%00b", "/a\"b<c>", "/external-integrations/proxy/p/s/x?y", "/$&'()*,=~_-.", "/{id}|^`", "/" + strings.Repeat("long/", 800),
	}
	corpusQueries = []string{
		"", "?", "?a=1&a=2&a=", "?x=%2F%2f%zz", "?q=a+b%20c;d", "??&&==", "?u=http://h/..//", "?" + strings.Repeat("k=v&", 2048), "?\xff\xfe",
	}
	corpusFields = []string{
		"Accept: */*", "X-Empty:", "X-Empty: ", "X-Twice: 1", "X-Twice: 2", "x-twice: 3",
		"User-Agent: python-requests/2.32", "Content-Type: application/json", "If-None-Match: \"a\", W/\"b\"", "X-Range: bytes=0-1",
		"X-Bytes: \xc3\xa9\xff", "X-Tabs: a\tb", "Origin: https://x", "Referer: https://x/..", "X_Under_Score: kept", "Via: 1.1 me",
		"!#$%&'*+-.^_`|~: odd", "Content-Encoding: identity", "Accept: again", "Date: x", "Pragma: no-cache", "X-Long: " + strings.Repeat("v", 5000),
		"TE: trailers", "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
	// Names from the registry of header fields, and others in use, that docs/proxy.md does not mention.
	corpusRegistered = strings.Fields(`Accept-Charset Accept-Datetime Accept-Language Accept-Patch Accept-Ranges
		Access-Control-Allow-Origin Access-Control-Request-Headers Access-Control-Request-Method Age Allow Alt-Svc Alt-Used Authentication-Info
		Baggage Cache-Control CDN-Loop Clear-Site-Data Content-Digest Content-Disposition Content-Language Content-Location Content-MD5
		Content-Range Content-Security-Policy DAV Deprecation Depth Destination Device-Memory DNT Early-Data ETag Expires From Idempotency-Key
		If If-Match If-Modified-Since If-Range If-Unmodified-Since Last-Event-ID Last-Modified Link Lock-Token Max-Forwards MIME-Version
		Optional-WWW-Authenticate Origin-Agent-Cluster Overwrite Prefer Preference-Applied Priority Proxy-Status Proxy-Features Referrer-Policy
		Refresh Repr-Digest Retry-After Save-Data Sec-Fetch-Mode Server Server-Timing Signature SOAPAction Strict-Transport-Security Timing-Allow-Origin
		Tracestate Vary Warning WWW-Authenticate X-Auth-Token X-Csrf-Token X-Forward X-HTTP-Method-Override X-Request-ID
		X-Requested-With X-Amz-Date X-API-KEY-ID X-User X-Cookie Xforwarded-For X-Remote X-Accel X-Envoyed Script Proxy-Server`)
	// Fields that docs/proxy.md mentions.
	corpusListed = []string{
		"Cookie2: a", "Proxy-Authenticate: Basic", "HTTP2-Settings: AAA", "X-Rewrite-URL: /admin", "X-Forwarded-Proto: https",
		"Connection: X-Hop, close\r\nX-Hop: 1", "TE: gzip, trailers", "TE: gzip", "Proxy-Authentication-Info: x",
		"Set-Cookie: a=b", "set_cookie2: c",
		"X-API-KEY: mine", "x_api_key: mine", "X-Business_Id: mine", "x-user-id: mine", "AUTHORIZATION: Basic eDp5",
		"Cookie: a=b",
		"Proxy-Authorization: Basic x", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Forwarded: for=1.2.3.4",
		"X-Forwarded-For: 1.2.3.4", "x-forwarded_host: evil", "X-Real-IP: 1.2.3.4", "X-Original-URL: /admin",
		"Upgrade: websocket",
		"Client-IP: 1.2.3.4", "x-client_ip: 1.2.3.4", "True-Client-IP: 1.2.3.4", "X-Cluster-Client-IP: 1.2.3.4",
		"CF-Connecting-IP: 1.2.3.4",
		"Fastly-Client-IP: 1.2.3.4", "Remote_User: admin", "X-Remote-Groups: admin", "X-Auth-Request-User: admin",
		"X-Original-Method: POST",
		"x-rewrite_path: /admin", "X-Envoy-Original-Path: /admin", "X-Accel-Mapping: /a=/b",
		"X-Sendfile-Type: X-Accel-Redirect", "X-Host: evil",
		"X-HTTP-Host-Override: evil", "X-Script-Name: /a", "X-Path_Info: /a", "X-Request-URI: /admin", "SCRIPT_NAME: /a",
		"path-info: /a",
		"Path_Translated: /a", "REQUEST_URI: /admin", "Request-Method: POST", "Proxy: http://evil", "X-Kizen-Execution: x",
		"x_kizen_anything: x",
		"accept-ENCODING: gzip, deflate, br", "A-IM: gzip", "request_range: bytes=0-1", "Range: bytes=200-300", "Range: bytes=7-", "Range: items=0-9",
		"Range: bytes=-5",
		"Range: bytes=0-1, 4-5",
	}
	corpusBodies = []func(*rand.Rand) string{
		func(*rand.Rand) string { return "\r\n" },
		func(*rand.Rand) string { return "Content-Length: 0\r\n\r\n" },
		func(*rand.Rand) string { return "Content-Length: 5\r\n\r\nhello" },
		func(*rand.Rand) string { return "content-length: 70000\r\n\r\n" + strings.Repeat("\x00\r\nab", 14000) },
		func(*rand.Rand) string { return "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" },
		func(*rand.Rand) string {
			return "Transfer-Encoding: Chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nX-Sum: abc\r\n\r\n"
		},
		func(r *rand.Rand) string {
			var b strings.Builder
			b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
			for range r.IntN(20) {
				n := 1 + r.IntN(9000)
				fmt.Fprintf(&b, "%x\r\n%s\r\n", n, strings.Repeat("z", n))
			}
			return b.String() + "0\r\n\r\n"
		},
	}
)

// differences is what docs/proxy.md says about the fields of a request or of a response.
type differences struct {
	actions map[string]string // by name in lower case, or by a pattern
	seen    map[string]bool
}

// readDifferences reads the table under a heading.
func readDifferences(t *testing.T, heading string) *differences {
	t.Helper()
	text, err := os.ReadFile("../docs/proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n### "+heading+"\n")
	section, _, _ = strings.Cut(section, "\n#")
	d := &differences{map[string]string{}, map[string]bool{}}
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "`") {
			continue
		}
		action := strings.TrimSpace(cells[2])
		if !slices.Contains([]string{"set", "dropped", "replaced"}, action) {
			t.Fatalf("%q is not an action", action)
		}
		for name := range strings.FieldsSeq(strings.ReplaceAll(cells[1], "`", "")) {
			d.actions[strings.ToLower(name)] = action
		}
	}
	if len(d.actions) < 10 {
		t.Fatalf("found %d fields under %q", len(d.actions), heading)
	}
	return d
}

// action returns what the table says about a field, or "" if it lists none.
func (d *differences) action(name string) string {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	for pattern, action := range d.actions {
		if ok, _ := path.Match(pattern, name); ok {
			d.seen[pattern] = true
			return action
		}
	}
	return ""
}

// apply returns a message's fields as they should be after the proxy. replace returns the new value of a replaced
// field, or "" if the field must be missing.
func (d *differences) apply(fields []string, replace func(name, value string) string) []string {
	var same, hops []string
	for _, f := range fields {
		if name, value, _ := strings.Cut(f, ":"); strings.EqualFold(name, "connection") {
			hops = append(hops, strings.Split(strings.ToLower(strings.ReplaceAll(value, " ", "")), ",")...)
		}
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ":")
		value = strings.Trim(value, " \t") // one space before it, none after
		switch d.action(name) {
		case "":
			if !slices.Contains(hops, strings.ToLower(name)) {
				same = append(same, name+": "+value)
			}
		case "replaced":
			if value = replace(strings.ToLower(name), value); value != "" {
				same = append(same, name+": "+value)
			}
		}
	}
	return same
}

// requireAllSeen fails for each listed field that the corpus does not have.
func (d *differences) requireAllSeen(t *testing.T) {
	for name := range d.actions {
		if !d.seen[name] {
			t.Errorf("docs/proxy.md lists %q, which was not tried", name)
		}
	}
}

func TestAPISeesTheSameAsWithoutProxy(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), nil)
	listed := readDifferences(t, "In a request")
	random := rand.New(rand.NewPCG(1, 2))
	replace := func(name, value string) string {
		switch {
		case name == "te" && !strings.Contains(value, "trailers"):
			return ""
		case name == "te":
			return "trailers"
		case name == "transfer-encoding":
			return "chunked"
		case name == "range":
			return map[string]string{
				"bytes=200-300": "bytes=137-363", "bytes=7-": "bytes=0-", "items=0-9": "items=0-9", "bytes=-5": "bytes=-68",
				"bytes=0-1, 4-5": "",
			}[value]
		}
		return value // the Host, which is the same on both ways
	}
	count := 0
	for _, path := range corpusPaths {
		for _, query := range corpusQueries {
			for range 2 {
				count++
				method := corpusMethods[random.IntN(len(corpusMethods))]
				rest := corpusHead(random) + corpusBodies[random.IntN(len(corpusBodies))](random)
				direct := fmt.Sprintf("%s /api%s%s HTTP/1.1\r\nHost: %s\r\n%s", method, path, query, api.Addr(), rest)
				through := fmt.Sprintf("%s %s%s%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s", method, p.base, path, query,
					p.addr, rest)
				want, got := bothWays(t, api, direct, p.addr, through)
				want.fields = append(listed.apply(want.fields, replace), "Accept-Encoding: identity", "X-API-KEY: "+testKey,
					"X-BUSINESS-ID: business-1", "X-USER-ID: user-1")
				requireSame(t, got, want)
			}
		}
	}
	if count < 300 {
		t.Errorf("corpus has %d requests", count)
	}
	delete(listed.actions, "connection") // every request through the proxy has it
	listed.requireAllSeen(t)
}

// corpusHead draws fields, one of them listed in docs/proxy.md.
func corpusHead(random *rand.Rand) string {
	var b strings.Builder
	for _, i := range random.Perm(len(corpusFields))[:random.IntN(len(corpusFields))] {
		b.WriteString(corpusFields[i] + "\r\n")
	}
	for _, i := range random.Perm(len(corpusRegistered))[:random.IntN(len(corpusRegistered))] {
		b.WriteString(corpusRegistered[i] + ": 1\r\n")
	}
	return b.String() + corpusListed[random.IntN(len(corpusListed))] + "\r\n"
}

// bothWays sends one request to the API directly and one through the proxy, and returns what the API received from
// each.
func bothWays(t *testing.T, api *rawAPI, direct, proxyAddr, through string) (want, got recorded) {
	t.Helper()
	before := len(api.seen())
	rawDial(t, api.Addr().String(), direct).Read(make([]byte, len(ok204)))
	if answer := rawExchange(t, proxyAddr, through); !strings.HasPrefix(answer, "HTTP/1.1 204") {
		t.Fatalf("proxy answered %q to %.300q", answer, through)
	}
	seen := api.seen()[before:]
	if len(seen) != 2 {
		t.Fatalf("the api saw %d requests for %.300q", len(seen), through)
	}
	return seen[0], seen[1]
}

// requireSame reports every difference that docs/proxy.md does not list.
func requireSame(t *testing.T, got, want recorded) {
	t.Helper()
	if got.line != want.line {
		t.Errorf("first line %q, want %q", got.line, want.line)
	}
	if !slices.Equal(got.fields, want.fields) {
		t.Errorf("fields\n%q\nwant\n%q", got.fields, want.fields)
	}
	if got.body != want.body || !slices.Equal(got.trailers, want.trailers) {
		t.Errorf("body of %d bytes and %q, want %d and %q", len(got.body), got.trailers, len(want.body), want.trailers)
	}
}

func TestStepSeesTheSameAsWithoutProxy(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var raw string
	api := startRawAPI(t, func(conn net.Conn, _ recorded) bool {
		io.WriteString(conn, raw)
		return false
	})
	p := start(t, api.root(), nil)
	listed := readDifferences(t, "In a response")
	replace := func(name, value string) string {
		if name == "location" {
			return strings.Replace(value, "/api", p.base, 1)
		}
		return "chunked"
	}
	for range 300 {
		head := corpusHead(random)
		if random.IntN(4) == 0 {
			head += "Location: /api/x?y=%2f#z\r\n"
		}
		body := corpusBodies[1+random.IntN(len(corpusBodies)-1)](random)
		raw = fmt.Sprintf("HTTP/1.1 %d Some reason\r\n%s%s", 200+random.IntN(4)*100, head, body)
		direct := readAnswer(t, api.Addr().String(), "GET /api/x HTTP/1.1\r\nHost: x\r\n\r\n")
		got := readAnswer(t, p.addr, request(p, "GET", "/x", "\r\n"))
		want := direct
		want.fields = append(listed.apply(want.fields, replace), "Connection: close")
		requireSame(t, got, want)
	}
	listed.requireAllSeen(t)
}

// readAnswer sends a request and reads the response with code that shares nothing with the proxy's parser.
func readAnswer(t *testing.T, addr, send string) recorded {
	t.Helper()
	conn := rawDial(t, addr, send)
	defer conn.Close()
	answer, err := readRecorded(bufio.NewReader(conn), conn)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}
