// Package h1 reads HTTP/1.1 messages (RFC 9112) from a byte stream and interprets only their framing.
//
// A message whose extent is ambiguous is an error: line ends other than CRLF, folded fields, whitespace around names,
// control characters, two lengths, a length beside a transfer coding, a transfer coding other than chunked. Names,
// values and targets keep their bytes.
package h1

import (
	"bytes"
	"errors"
	"fmt"
	"math"
)

// Errors of a message that cannot be read. All except ErrTooLarge and ErrTooManyFields mean that the message is
// malformed and that nothing more may be read from the connection.
var (
	ErrTooLarge      = errors.New("message head is too large")
	ErrTooManyFields = errors.New("message has too many header fields")
	ErrMalformed     = errors.New("malformed message")
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

// Field is one header or trailer field. Value has no surrounding whitespace.
type Field struct{ Name, Value []byte }

// Framing says how the end of a body is determined.
type Framing uint8

const (
	NoBody     Framing = iota
	Length             // Head.Length bytes
	Chunked            // chunked transfer coding
	UntilClose         // a response that ends with its connection
)

// Head is the common part of requests and responses. Its slices point into the buffer from which it was parsed.
type Head struct {
	Minor   int // HTTP/1.Minor
	Fields  []Field
	Framing Framing
	Length  int64
	Close   bool // the sender closes the connection after this message, or cannot keep it open
}

// Request is the head of a request.
type Request struct {
	Head
	Method, Target, Host []byte
}

// Response is the head of a response.
type Response struct {
	Head
	Status int
	Reason []byte
}

// Interim reports whether a final response follows this one (1xx, RFC 9110 section 15.2).
func (r *Response) Interim() bool { return r.Status < 200 }

// parse reads a complete request head, which ends with an empty line. Fields are appended to r.Fields[:0].
func (r *Request) parse(head []byte, maxFields int) error {
	line, rest, err := cutLine(head, false)
	if err != nil {
		return err
	}
	method, line, ok := bytes.Cut(line, []byte{' '})
	target, version, ok2 := bytes.Cut(line, []byte{' '})
	switch {
	case !ok || !ok2 || !ValidName(method):
		return malformed("bad request line")
	case !validTarget(target):
		return malformed("bad request target")
	}
	if r.Minor, err = parseVersion(version); err != nil {
		return err
	}
	r.Method, r.Target, r.Host = method, target, nil
	if err := r.parseFields(rest, maxFields, false); err != nil {
		return err
	}
	return r.frame()
}

// frame finds the extent of the body and the Host, RFC 9112 sections 3.2 and 6.
func (r *Request) frame() error {
	r.Framing, r.Length, r.Close = NoBody, 0, r.Minor == 0
	var hosts, lengths, codings int
	for _, f := range r.Fields {
		switch {
		case len(f.Name) == 4 && EqualFold(f.Name, "host"):
			r.Host = f.Value
			hosts++
		case len(f.Name) == 14 && EqualFold(f.Name, "content-length"):
			n, err := parseLength(f.Value)
			if err != nil {
				return err
			}
			r.Framing, r.Length = Length, n
			lengths++
		case len(f.Name) == 17 && EqualFold(f.Name, "transfer-encoding"):
			if !EqualFold(f.Value, "chunked") {
				return malformed("transfer coding other than chunked")
			}
			r.Framing = Chunked
			codings++
		case len(f.Name) == 10 && EqualFold(f.Name, "connection"):
			if HasToken(f.Value, "close") {
				r.Close = true
			} else if r.Minor == 0 && HasToken(f.Value, "keep-alive") {
				r.Close = false
			}
		case disguisesFraming(f.Name):
			return malformed("field name imitates one that frames the message")
		}
	}
	switch {
	case hosts > 1 || hosts == 0 && r.Minor > 0:
		return malformed("needs one host field, has %d", hosts)
	case lengths > 1:
		return malformed("more than one content length")
	case codings > 1 || codings > 0 && lengths > 0:
		return malformed("more than one statement of the body's length")
	case codings > 0 && r.Minor == 0:
		return malformed("transfer coding in HTTP/1.0")
	}
	return nil
}

// disguisesFraming finds names that some servers fold into a framing field's, such as Transfer_Encoding.
func disguisesFraming(name []byte) bool {
	switch len(name) {
	case 14:
		return name[7] != '-' && foldedEqual(name, "content-length")
	case 17:
		return name[8] != '-' && foldedEqual(name, "transfer-encoding")
	}
	return false
}

// foldedEqual reports whether name equals want as a CGI variable, in which every punctuation character is the same.
func foldedEqual(name []byte, want string) bool {
	for i, c := range name {
		if FoldName(c) != want[i] {
			return false
		}
	}
	return true
}

// parse reads a complete response head. Fields are appended to r.Fields[:0].
func (r *Response) parse(head []byte, maxFields int, method []byte) error {
	line, rest, err := cutLine(head, true)
	if err != nil {
		return err
	}
	version, line, _ := bytes.Cut(line, []byte{' '})
	if r.Minor, err = parseVersion(version); err != nil {
		return err
	}
	code, reason, _ := bytes.Cut(line, []byte{' '})
	if len(code) != 3 || code[0] < '1' || code[0] > '9' || !isDigit(code[1]) || !isDigit(code[2]) || !ValidValue(reason) {
		return malformed("bad status line")
	}
	r.Status = int(code[0]-'0')*100 + int(code[1]-'0')*10 + int(code[2]-'0')
	r.Reason = reason
	if err := r.parseFields(rest, maxFields, true); err != nil {
		return err
	}
	return r.frame(method)
}

// frame finds the extent of the body, RFC 9112 section 6.3.
func (r *Response) frame(method []byte) error {
	r.Framing, r.Length, r.Close = UntilClose, 0, r.Minor == 0
	lengths, codings := 0, 0
	for _, f := range r.Fields {
		switch {
		case len(f.Name) == 14 && EqualFold(f.Name, "content-length"):
			n, err := parseLength(f.Value)
			if err != nil {
				return err
			}
			if lengths > 0 && n != r.Length {
				return malformed("contradictory content lengths")
			}
			r.Length = n
			lengths++
		case len(f.Name) == 17 && EqualFold(f.Name, "transfer-encoding"):
			if !EqualFold(f.Value, "chunked") {
				return malformed("transfer coding other than chunked")
			}
			codings++
		case len(f.Name) == 10 && EqualFold(f.Name, "connection"):
			if HasToken(f.Value, "close") {
				r.Close = true
			} else if r.Minor == 0 && HasToken(f.Value, "keep-alive") {
				r.Close = false
			}
		}
	}
	switch {
	case codings > 1:
		return malformed("more than one transfer coding")
	case codings > 0 && r.Minor == 0:
		return malformed("transfer coding in HTTP/1.0") // which some readers ignore
	case string(method) == "HEAD" || r.Status < 200 || r.Status == 204 || r.Status == 304:
		r.Framing = NoBody
	case codings > 0:
		r.Framing = Chunked
		r.Close = r.Close || lengths > 0
	case lengths > 0:
		r.Framing = Length
	default:
		r.Close = true
	}
	return nil
}

func (h *Head) parseFields(b []byte, maxFields int, lenient bool) error {
	h.Fields = h.Fields[:0]
	for {
		line, rest, err := cutLine(b, lenient)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			return nil
		}
		if len(h.Fields) == maxFields {
			return ErrTooManyFields
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 0 || !ValidName(line[:colon]) {
			return malformed("bad field name")
		}
		value := trim(line[colon+1:])
		if !ValidValue(value) {
			return malformed("control character in a field value")
		}
		h.Fields = append(h.Fields, Field{line[:colon:colon], value})
		b = rest
	}
}

// cutLine cuts one line from b. A line ends with CRLF; lenient accepts a bare LF, as RFC 9112 section 2.2 allows.
func cutLine(b []byte, lenient bool) (line, rest []byte, err error) {
	i := bytes.IndexByte(b, '\n')
	switch {
	case i < 0:
		return nil, nil, malformed("unfinished line")
	case i > 0 && b[i-1] == '\r':
		return b[: i-1 : i-1], b[i+1:], nil
	case lenient:
		return b[:i:i], b[i+1:], nil
	}
	return nil, nil, malformed("line does not end with CRLF")
}

func parseVersion(b []byte) (minor int, err error) {
	switch string(b) {
	case "HTTP/1.1":
		return 1, nil
	case "HTTP/1.0":
		return 0, nil
	}
	return 0, malformed("protocol is neither HTTP/1.1 nor HTTP/1.0")
}

func parseLength(b []byte) (int64, error) {
	if len(b) == 0 || len(b) > 18 {
		return 0, malformed("bad content length")
	}
	var n int64
	for _, c := range b {
		if !isDigit(c) {
			return 0, malformed("bad content length")
		}
		n = n*10 + int64(c-'0')
	}
	return n, nil
}

func parseChunkSize(b []byte) (int64, error) {
	if len(b) == 0 || len(b) > 15 {
		return 0, malformed("bad chunk size")
	}
	var n int64
	for _, c := range b {
		d := unhex(c)
		if d < 0 || n > math.MaxInt64>>4 {
			return 0, malformed("bad chunk size")
		}
		n = n<<4 | int64(d)
	}
	return n, nil
}
