package attacks

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode/utf16"
)

// Encoding is a way in which an API may echo a text that it received.
type Encoding struct {
	Name   string
	Encode func(string) string
	// Leaks marks an encoding in which the key is only partly masked, see "What remains" in docs/proxy.md.
	Leaks bool
}

// Encodings returns all encodings.
func Encodings() []Encoding { return encodings }

var encodings = []Encoding{
	{"as it is", func(s string) string { return s }, false},
	{"base64", func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }, false},
	{"base64url", func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }, false},
	{"base64 in lines", func(s string) string { return inLines(base64.StdEncoding.EncodeToString([]byte(s)), 76) }, true},
	{"hexadecimal", func(s string) string { return hex.EncodeToString([]byte(s)) }, false},
	{"HEXADECIMAL", func(s string) string { return strings.ToUpper(hex.EncodeToString([]byte(s))) }, false},
	{"percent", func(s string) string { return each(s, "%%%02x") }, false},
	{"PERCENT", func(s string) string { return each(s, "%%%02X") }, false},
	{"UTF-16LE", func(s string) string { return wide(s, binary.LittleEndian) }, false},
	{"UTF-16BE", func(s string) string { return wide(s, binary.BigEndian) }, false},
	{"base64 in a string", func(s string) string {
		return `{"echo":"` + base64.StdEncoding.EncodeToString([]byte(s)) +
			`"}`
	}, false},
	{"percent, where a query needs it", url.QueryEscape, false},
}

func each(s, format string) string {
	var out strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&out, format, s[i])
	}
	return out.String()
}

func wide(s string, order binary.AppendByteOrder) string {
	var out []byte
	for _, unit := range utf16.Encode([]rune(s)) {
		out = order.AppendUint16(out, unit)
	}
	return string(out)
}

func inLines(s string, width int) string {
	var out strings.Builder
	for len(s) > width {
		out.WriteString(s[:width] + "\r\n")
		s = s[width:]
	}
	return out.String() + s
}

// Echo responds to a request with the headers that it received, which contain the key of the step's execution.
type Echo struct {
	// Path is relative to the API's root.
	Path   string
	Answer func(w http.ResponseWriter, r *http.Request)
}

// Echoes returns all responses: each encoding, each content coding, header fields, and pieces.
func Echoes() []Echo {
	keyOf := func(r *http.Request) string { return r.Header.Get("X-Api-Key") }
	send := func(w io.Writer, text string) { _, _ = io.WriteString(w, text) } // the step may have closed the connection
	all := []Echo{
		// This server compresses for clients that accept it.
		{"/gzip", func(w http.ResponseWriter, r *http.Request) {
			text := echoed(r)
			if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
				text = gzipped(w, text)
			}
			send(w, text)
		}},
		{"/gzip-always", func(w http.ResponseWriter, r *http.Request) { send(w, gzipped(w, echoed(r))) }},
		{"/deflate-always", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "deflate")
			var out bytes.Buffer
			packed := zlib.NewWriter(&out)
			send(packed, echoed(r))
			_ = packed.Close() // a write to memory cannot fail
			send(w, out.String())
		}},
		// The proxy cannot read this coding, so the content does not matter.
		{"/br-always", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			send(w, echoed(r))
		}},
		{"/headers", func(w http.ResponseWriter, r *http.Request) {
			key := keyOf(r)
			w.Header().Set("X-Echo", key)
			w.Header().Set("X-Basic", "Basic "+base64.StdEncoding.EncodeToString([]byte("user:"+key)))
			w.Header().Set("X-Hex", hex.EncodeToString([]byte(key)))
			w.Header().Set("X-Key-"+key, "1")
			w.Header().Set("Location", "/api/echo/0?k="+key)
			send(w, echoed(r))
		}},
		{"/drops", func(w http.ResponseWriter, r *http.Request) {
			for _, character := range keyOf(r) {
				send(w, string(character))
				w.(http.Flusher).Flush()
			}
		}},
		{"/range", func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "x.txt", time.Time{}, strings.NewReader(keyOf(r)))
		}},
	}
	for i, encoding := range encodings {
		if encoding.Leaks {
			continue
		}
		all = append(all, Echo{fmt.Sprintf("/echo/%d", i),
			func(w http.ResponseWriter, r *http.Request) { send(w, encoding.Encode(echoed(r))) }})
	}
	return all
}

// echoed returns a text that contains the headers of a request.
func echoed(r *http.Request) string {
	var headers strings.Builder
	_ = r.Header.Write(&headers) // a write to memory cannot fail
	return strings.Repeat("padding ", 500) + headers.String() + strings.Repeat(" padding", 500)
}

func gzipped(w http.ResponseWriter, plain string) string {
	w.Header().Set("Content-Encoding", "gzip")
	var out bytes.Buffer
	packed := gzip.NewWriter(&out)
	_, _ = io.WriteString(packed, plain) // a write to memory cannot fail
	_ = packed.Close()
	return out.String()
}

// EchoStep reads every echo, also undecoded and in ranges, and outputs the texts in all ways that a step has. Its
// output "found", of the type a[s], has EchoReadings elements in hexadecimal.
func EchoStep() string {
	var paths strings.Builder
	for _, echo := range Echoes() {
		fmt.Fprintf(&paths, "%q, ", echo.Path)
	}
	return "paths = [" + paths.String() + "]\n" + echoStep
}

// EchoReadings is the number of texts that [EchoStep] outputs.
func EchoReadings() int { return len(Echoes()) + 4 }

const echoStep = `
import os, requests
def read(path, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    r = requests.get(os.environ["KIZEN_API_URL"] + path, headers={"Accept-Encoding": "gzip, deflate, br", **headers}, stream=True, allow_redirects=False)
    raw = r.raw.read(decode_content=False)
    kizen.api.get(path, headers=headers, allow_redirects=False).content
    return raw + b"\n" + repr(r.headers).encode()
found = [read(path) for path in paths]
def part(first, last):
    return requests.get(os.environ["KIZEN_API_URL"] + "/range", headers={"Range": f"bytes={first}-{last}"}).content
found.append(part(0, 399) + part(400, 2000))
found.append(b"".join(part(at, at + 49) for at in range(0, 1000, 50)))
size = len(requests.get(os.environ["KIZEN_API_URL"] + "/range").content)
found.append(b"".join(part(at, at) for at in range(max(0, size - 90), size)))
found.append(part(0, 1000) + requests.get(os.environ["KIZEN_API_URL"] + "/range", headers={"Range": "bytes=0-100, 101-900"}).content)
for text in found:
    outputs.log(text.decode("latin-1"))
    print(text)
outputs.found = [text.hex() for text in found]
`

var (
	escapes     = regexp.MustCompile("%[0-9A-Fa-f]{2}")
	base64Runs  = regexp.MustCompile(`[A-Za-z0-9+/_*-]{24,}`)
	hexRuns     = regexp.MustCompile("[0-9A-Fa-f*]{24,}")
	base64Plain = strings.NewReplacer("-", "+", "_", "/", "*", "A")
)

// readings returns a text and its decodings.
func readings(text string) []string {
	all := []string{text, strings.ReplaceAll(text, "\x00", ""),
		escapes.ReplaceAllStringFunc(text, func(code string) string {
			plain, _ := url.PathUnescape(code) // the pattern matches only valid escapes
			return plain
		})}
	for _, run := range base64Runs.FindAllString(text, -1) {
		for shift := range 4 {
			part := base64Plain.Replace(run[shift:])
			plain, _ := base64.StdEncoding.DecodeString(part[:len(part)/4*4]) // the pattern matches only the alphabet
			all = append(all, string(plain))
		}
	}
	for _, run := range hexRuns.FindAllString(text, -1) {
		for shift := range 2 {
			part := strings.ReplaceAll(run[shift:], "*", "0")
			plain, _ := hex.DecodeString(part[:len(part)/2*2]) // likewise
			all = append(all, string(plain))
		}
	}
	return all
}

// Leaked returns the part of a text, with its surroundings, that contains 12 or more consecutive characters of the
// last 84 of a key, in any encoding. It returns an empty string if no part does.
func Leaked(key, text string) string {
	const length = 12
	for _, reading := range readings(text) {
		for at := max(0, len(key)-84); at+length <= len(key); at++ {
			if i := strings.Index(reading, key[at:at+length]); i >= 0 {
				return reading[max(0, i-60):min(len(reading), i+100)]
			}
		}
	}
	return ""
}
