package attacks

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Answer is a malicious API's response to any request.
type Answer struct {
	Name  string
	First string
	// Again is sent repeatedly after First. If it is empty, the connection is closed after First.
	Again string
	// Sees is a regular expression that matches the output of a step that runs CallStep, or the kind of its failure.
	Sees string
}

// CallStep calls the path in its input "path" and logs the result.
const CallStep = `
try:
    r = kizen.api.get(inputs.path)
    outputs.log(f"{r.status_code} {len(r.content)}")
except Exception as e:
    outputs.log(type(e).__name__)
`

// bomb is 256 MiB of zeroes, compressed to 256 KiB.
var bomb = sync.OnceValue(func() string {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	zeroes := make([]byte, 1<<20)
	for range 256 {
		_, _ = w.Write(zeroes) // a write to memory cannot fail
	}
	_ = w.Close()
	return packed.String()
})

// BadGateway is what a step sees when the proxy refuses a response.
const BadGateway = "502 "

// Answers returns all responses. The step's memory limit is smaller than the bombs.
func Answers() []Answer {
	const ok, broken = "HTTP/1.1 200 OK\r\n", "ChunkedEncodingError|ConnectionError"
	fields := func(count, size int) string {
		var all strings.Builder
		for i := range count {
			fmt.Fprintf(&all, "X-%d: %s\r\n", i, strings.Repeat("v", size))
		}
		return all.String()
	}
	return []Answer{
		{"header fields without end", ok, "X-A: " + strings.Repeat("a", 1000) + "\r\n", BadGateway},
		{"one header field without end", ok + "X-A: ", strings.Repeat("a", 1000), BadGateway},
		{"a header field's name without end", ok, strings.Repeat("a", 1000), BadGateway},
		{"a status line without end", "HTTP/1.1 200 ", strings.Repeat("a", 1000), BadGateway},
		{"10,000 header fields", ok + fields(10_000, 1) + "\r\n", "", BadGateway},
		{"500 header fields of 500 bytes", ok + fields(500, 500) + "Content-Length: 0\r\n\r\n", "", "200 0|ConnectionError"},
		{"interim answers without end", "", "HTTP/1.1 100 Continue\r\n\r\n", "502 |" + broken},
		{"early hints without end", "", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", "10[0-9] |502 |" + broken},
		{"another protocol", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "x",
			BadGateway},
		{"a length of 100 petabytes", ok + "Content-Length: 99999999999999999\r\n\r\nshort", "", broken},
		{"a length beyond any number", ok + "Content-Length: 99999999999999999999999\r\n\r\nshort", "", BadGateway},
		{"a negative length", ok + "Content-Length: -1\r\n\r\nshort", "", BadGateway},
		{"two lengths", ok + "Content-Length: 5\r\nContent-Length: 50\r\n\r\nshort", "", BadGateway},
		{"more than its length", ok + "Content-Length: 5\r\n\r\nshort", strings.Repeat("x", 4096), "200 5"},
		{"a length beside chunks", ok + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "",
			"200 2"},
		{"a chunk of an exabyte", ok + "Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFF\r\nshort", "", broken},
		{"a chunk beyond any number", ok + "Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFF\r\nshort", "", broken},
		{"a chunk's size without end", ok + "Transfer-Encoding: chunked\r\n\r\n", strings.Repeat("0", 1000), broken},
		{"a chunk's extension without end", ok + "Transfer-Encoding: chunked\r\n\r\n5;", strings.Repeat("x", 1000), broken},
		{"trailers without end", ok + "Transfer-Encoding: chunked\r\n\r\n0\r\n", "X-T: " + strings.Repeat("t", 1000) + "\r\n",
			broken + "|200 0"},
		{"a body without end", ok + "\r\n", strings.Repeat("x", 32<<10), "memory_limit|MemoryError"},
		{"256 MiB of zeroes, compressed", ok + "Content-Encoding: gzip\r\n\r\n" + bomb(), "", "memory_limit|MemoryError"},
		{"compressed twice", ok + "Content-Encoding: gzip, gzip\r\n\r\n" + bomb(), "", BadGateway},
		{"empty compressed blocks without end", ok + "Content-Encoding: deflate\r\n\r\n\x78\x9c",
			strings.Repeat("\x00\x00\x00\xff\xff", 1000), broken},
		{"not compressed as declared", ok + "Content-Encoding: gzip\r\n\r\nplain", "", "502 |" + broken},
		{"a redirect to itself", "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\nLocation: ?again\r\n\r\n",
			"", "TooManyRedirects"},
		{"a redirect of a megabyte", "HTTP/1.1 302 Found\r\nLocation: /" + strings.Repeat("x", 1<<20) + "\r\n\r\n", "",
			BadGateway},
		{"control characters in a header field", ok + "X-A: \x1b[2J\x00\r\nContent-Length: 0\r\n\r\n", "", BadGateway},
		{"bytes that are not HTTP", "\x16\x03\x01\x02\x00\x01\x00", "", BadGateway},
		{"HTTP/0.9", "<html>", "", BadGateway},
		{"HTTP/2 unasked", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "", BadGateway},
		{"nothing", "", "", BadGateway},
		{"two lengths around two bytes", ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", "", BadGateway},
		{"a folded field", ok + "X: a\r\n b\r\nContent-Length: 0\r\n\r\n", "", BadGateway},
		{"an unknown coding", ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "", BadGateway},
		{"a switch of protocols", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "", BadGateway},
		{"another protocol's greeting", "SSH-2.0-x\r\n\r\n", "", BadGateway},
		{"a coding in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", BadGateway},
		{"a NUL in a header field", ok + "X: \x00\r\n\r\n", "", BadGateway},
		{"a hundred interim answers", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100), "", "10[0-9] |" + BadGateway},
	}
}

// Send writes an answer until the other side closes the connection.
func (a Answer) Send(w io.Writer) {
	_, err := io.WriteString(w, a.First)
	for err == nil && a.Again != "" {
		_, err = io.WriteString(w, a.Again)
	}
}
