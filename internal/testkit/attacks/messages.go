package attacks

import (
	"fmt"
	"strconv"
	"strings"
)

// Message is a request that a step sends to its proxy byte for byte. Common servers disagree about where it ends.
type Message struct {
	Name string
	// Raw follows the line "POST /capability/x HTTP/1.1" and a Host field, unless Whole is set. CAP and HOST in it
	// stand for the proxy's base path and host.
	Raw string
	// Passed is the body that the API receives. If empty, the API receives nothing and the proxy answers 400.
	Passed string
	// Whole means that Raw begins with a request line.
	Whole bool
}

// Text returns the message for a proxy with this host and base path.
func (m Message) Text(host, base string) string {
	text := m.Raw
	if !m.Whole {
		text = "POST CAP/x HTTP/1.1\r\nHost: HOST\r\n" + text
	}
	return strings.NewReplacer("CAP", base, "HOST", host).Replace(text)
}

// Messages returns all messages.
func Messages() []Message { return messages }

var messages = []Message{
	{Name: "length and coding", Raw: "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{Name: "coding and length", Raw: "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"},
	{Name: "two lengths that differ", Raw: "Content-Length: 0\r\nContent-Length: 40\r\n\r\n"},
	{Name: "two lengths that agree", Raw: "Content-Length: 2\r\nContent-Length: 2\r\n\r\nab"},
	{Name: "length as a list", Raw: "Content-Length: 2, 2\r\n\r\nab"},
	{Name: "length with sign", Raw: "Content-Length: +2\r\n\r\nab"},
	{Name: "negative length", Raw: "Content-Length: -1\r\n\r\nab"},
	{Name: "hexadecimal length", Raw: "Content-Length: 0x2\r\n\r\nab"},
	{Name: "length with underscore digits", Raw: "Content-Length: 1_0\r\n\r\nab"},
	{Name: "empty length", Raw: "Content-Length:\r\n\r\nab"},
	{Name: "overflowing length", Raw: "Content-Length: 18446744073709551618\r\n\r\nab"},
	{Name: "length name with space", Raw: "Content-Length : 2\r\n\r\nab"},
	{Name: "length name in underscore", Raw: "Content_Length: 40\r\n\r\n"},
	{Name: "coding twice", Raw: "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{Name: "coding in list", Raw: "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"},
	{Name: "coding gzip, chunked", Raw: "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
	{Name: "coding identity", Raw: "Transfer-Encoding: identity\r\n\r\n"},
	{Name: "coding xchunked", Raw: "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
	{Name: "coding quoted", Raw: "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"},
	{Name: "coding with parameter", Raw: "Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n"},
	{Name: "coding with vertical tab", Raw: "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"},
	{Name: "coding name with space", Raw: "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"},
	{Name: "coding name with tab", Raw: "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"},
	{Name: "coding name in underscore", Raw: "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{Name: "coding name in dot", Raw: "Transfer.Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{Name: "coding folded", Raw: "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"},
	{Name: "coding after bare LF", Raw: "X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{Name: "coding after bare CR", Raw: "X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{Name: "coding in HTTP/1.0", Raw: "POST CAP/x HTTP/1.0\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		Whole: true},
	{Name: "bare LF head", Raw: "GET CAP/x HTTP/1.1\nHost: HOST\n\n", Whole: true},
	{Name: "bare LF at the end of the head", Raw: "X: y\r\n\n"},
	{Name: "folded field", Raw: "X: y\r\n z\r\n\r\n"},
	{Name: "field that begins with space", Raw: " X: y\r\n\r\n"},
	{Name: "NUL in a value", Raw: "X: a\x00b\r\n\r\n"},
	{Name: "NUL in a name", Raw: "X\x00: b\r\n\r\n"},
	{Name: "field without colon", Raw: "nonsense\r\n\r\n"},
	{Name: "empty name", Raw: ": x\r\n\r\n"},
	{Name: "two hosts", Raw: "Host: HOST\r\n\r\n"},
	{Name: "host in underscore form of a proxy", Raw: "GET CAP/x HTTP/1.1\r\n\r\n", Whole: true},
	{Name: "NUL in the target", Raw: "GET CAP/x\x00 HTTP/1.1\r\nHost: HOST\r\n\r\n", Whole: true},
	{Name: "space in the target", Raw: "GET CAP/x y HTTP/1.1\r\nHost: HOST\r\n\r\n", Whole: true},
	{Name: "tab for space", Raw: "GET\tCAP/x\tHTTP/1.1\r\nHost: HOST\r\n\r\n", Whole: true},
	{Name: "two spaces", Raw: "GET  CAP/x HTTP/1.1\r\nHost: HOST\r\n\r\n", Whole: true},
	{Name: "fragment", Raw: "GET CAP/x#y HTTP/1.1\r\nHost: HOST\r\n\r\n", Whole: true},
	{Name: "HTTP/0.9", Raw: "GET CAP/x\r\n\r\n", Whole: true},
	{Name: "HTTP/1.2", Raw: "GET CAP/x HTTP/1.2\r\nHost: HOST\r\n\r\n", Whole: true},
	{Name: "HTTP/2 preface", Raw: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Whole: true},
	{Name: "empty line first", Raw: "\r\nGET CAP/x HTTP/1.1\r\nHost: HOST\r\n\r\n", Whole: true},
	{Name: "chunk size with sign", Raw: "Transfer-Encoding: chunked\r\n\r\n+2\r\nab\r\n0\r\n\r\n"},
	{Name: "chunk size in 0x", Raw: "Transfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n"},
	{Name: "chunk size with space", Raw: "Transfer-Encoding: chunked\r\n\r\n 2\r\nab\r\n0\r\n\r\n"},
	{Name: "chunk size too large", Raw: "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab\r\n0\r\n\r\n"},
	{Name: "chunk shorter than its data", Raw: "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n"},
	{Name: "chunk line in bare LF", Raw: "Transfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n"},
	{Name: "chunk data in bare LF", Raw: "Transfer-Encoding: chunked\r\n\r\n2\r\nab\n0\r\n\r\n"},
	{Name: "bare LF in chunk extension", Raw: "Transfer-Encoding: chunked\r\n\r\n2;a\nb\r\nab\r\n0\r\n\r\n"},
	{Name: "bare CR in chunk extension", Raw: "Transfer-Encoding: chunked\r\n\r\n2;a\rb\r\nab\r\n0\r\n\r\n"},
	{Name: "chunk extension", Raw: "Transfer-Encoding: chunked\r\n\r\n2;a=\"b\"\r\nab\r\n0\r\n\r\n", Passed: "ab"},
	{Name: "trailer that frames",
		Raw: "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nContent-Length: 40\r\nX-API-KEY: mine\r\n\r\n", Passed: "ab"},
	{Name: "connection names the length", Raw: "Connection: content-length\r\nContent-Length: 2\r\n\r\nab", Passed: "ab"},
	{Name: "connection names the coding",
		Raw: "Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", Passed: "ab"},
	{Name: "request in a length body", Raw: "Content-Length: 31\r\n\r\nGET /admin HTTP/1.1\r\nHost: x\r\n\r",
		Passed: "GET /admin HTTP/1.1\r\nHost: x\r\n\r"},
	{Name: "length with tabs around", Raw: "Content-Length:\t2\t\r\n\r\nab", Passed: "ab"},
	{Name: "length with leading zeros", Raw: "Content-Length: 002\r\n\r\nab", Passed: "ab"},
}

// EscapingPaths are paths that some servers resolve to paths outside the API's root. The proxy refuses them.
func EscapingPaths() []string { return escapingPaths }

var escapingPaths = []string{
	"/..", "/../x", "/a/../../x", "/%2e%2e/x", "/%2E%2E/x", "/.%2e/x", "/%2e./x", "/..%2fx", "/..%2Fx", "/a/..%5cx",
	`/..\x`, `/a\..\x`, "/..;/x", "/..;a=b/x", "/%2e%2e%3b/x", "/%252e%252e/x", "/%25252e%25252e/x", "/%252e%252e%252fx",
	"/a%2f..%2f..%2fx", "/..%00/x", "/..%20/x", "/.%00./x", "/..%09/x", "/%c0%ae%c0%ae/x", "/..%c0%afx",
	"/%ef%bc%8e%ef%bc%8e/x", "/\uff0e\uff0e/x", "/\u2025/x", "/%e0%80%ae%e0%80%ae/x", "/a/b/..",
	"//evil.example/x", "/%zz", "/%2", "/%", `\\evil.example/x`, `/\evil.example/x`,
}

// Targets returns methods and request targets that are not paths below the proxy's base path. CAP and HOST stand for
// the same as in a [Message].
func Targets() []string { return targets }

var targets = []string{
	"GET http://evil.example/x", "GET http://HOSTCAP/x", "CONNECT evil.example:443", "CONNECT CAP/x", "OPTIONS *",
	"GET xCAP/x", "GET ?x",
}

// SendStep sends each text to the step's proxy over a new connection. For each, it logs a line with the status of the
// first response and the number of responses. CAP and HOST stand for the same as in a [Message].
func SendStep(texts []string) string {
	var list strings.Builder
	for _, text := range texts {
		fmt.Fprintf(&list, "    %s,\n", strconv.QuoteToASCII(text))
	}
	return "texts = [\n" + list.String() + "]\n" + sendStep
}

const sendStep = `
import os, re, socket, urllib.parse
proxy = urllib.parse.urlsplit(os.environ["KIZEN_API_URL"])
def send(text):
    answer = b""
    with socket.create_connection((proxy.hostname, proxy.port), 30) as s:
        try:
            s.sendall(text.replace("HOST", proxy.netloc).replace("CAP", proxy.path).encode())
            while part := s.recv(1 << 16): answer += part
        except ConnectionError: pass  # the proxy refuses it before it has read everything
    return answer.decode("latin-1")
lines = []
for text in texts:
    answer = send(text)
    lines.append(f"{answer[9:12]} {len(re.findall('HTTP/1.1 [0-9]{3} ', answer))}")
for at in range(0, len(lines), 100): outputs.log("\n".join(lines[at:at + 100]))
`
