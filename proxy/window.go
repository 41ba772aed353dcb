package proxy

import (
	"bytes"
	"math"
	"strconv"

	"github.com/kizen/kizen-sidecar/internal/keyscan"
	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// margin is how many extra bytes the proxy requests before and after a range, so that it recognises the key wherever a
// range cuts it.
const margin = keyscan.MaxForm

// window is a range of bytes that the step requested (RFC 9110 section 14). The proxy requests a larger one.
type window struct {
	first, last int64 // as in "first-last"; last is negative if the range has no end
	suffix      int64 // as in "-suffix"; negative for a range that begins at first
	skip, left  int64 // bytes of the response's body to skip, and then to deliver
}

// windowOf parses the Range of a request. forward reports that the field goes to the API: rewritten by window.appendTo,
// or unchanged without a window, if its unit is not bytes. Several ranges and malformed ones are not forwarded, because
// any server may ignore the field and respond with the whole.
func windowOf(fields []h1.Field) (w *window, forward bool) {
	count := 0
	for _, f := range fields {
		if !h1.EqualFold(f.Name, "range") {
			continue
		}
		count++
		unit, spec, ok := bytes.Cut(f.Value, []byte("="))
		if !ok || !h1.EqualFold(bytes.TrimSpace(unit), "bytes") {
			forward = true
			continue
		}
		w = parseWindow(bytes.TrimSpace(spec))
	}
	if count != 1 {
		return nil, false
	}
	return w, forward || w != nil
}

func parseWindow(spec []byte) *window {
	first, last, ok := bytes.Cut(spec, []byte("-"))
	if !ok {
		return nil
	}
	w := &window{first: -1, last: -1, suffix: -1}
	if len(first) == 0 {
		if w.suffix, ok = number(last); !ok || w.suffix == 0 {
			return nil
		}
		return w
	}
	if w.first, ok = number(first); !ok {
		return nil
	}
	if len(last) == 0 {
		return w
	}
	if w.last, ok = number(last); !ok || w.last < w.first {
		return nil
	}
	return w
}

// number parses a decimal number that leaves room for the margin.
func number(digits []byte) (int64, bool) {
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(string(digits), 10, 64)
	return n, err == nil && n < math.MaxInt64-2*margin
}

// appendTo writes the range to request from the API.
func (w *window) appendTo(b []byte) []byte {
	b = append(b, "bytes="...)
	if w.suffix >= 0 {
		return strconv.AppendInt(append(b, '-'), w.suffix+margin, 10)
	}
	b = append(strconv.AppendInt(b, max(0, w.first-margin), 10), '-')
	if w.last >= 0 {
		b = strconv.AppendInt(b, w.last+margin, 10)
	}
	return b
}

// contentRange is the range in a response: bytes first to last of size, which is negative if unknown.
type contentRange struct{ first, last, size int64 }

// parseContentRange reads "bytes first-last/size"; ok is false for everything else.
func parseContentRange(value []byte) (r contentRange, ok bool) {
	unit, rest, ok := bytes.Cut(value, []byte(" "))
	if !ok || !h1.EqualFold(unit, "bytes") {
		return r, false
	}
	span, size, ok1 := bytes.Cut(bytes.TrimSpace(rest), []byte("/"))
	first, last, ok2 := bytes.Cut(span, []byte("-"))
	r.first, ok = number(first)
	var ok3 bool
	r.last, ok3 = number(last)
	if !ok || !ok1 || !ok2 || !ok3 || len(first)*len(last) == 0 || r.last < r.first {
		return r, false
	}
	r.size = -1
	if string(size) != "*" {
		if r.size, ok = number(size); !ok || r.size <= r.last {
			return r, false
		}
	}
	return r, true
}

// within returns the part of a response that the step gets. ok is false if the API's range does not begin as requested,
// or is too short to recognise a key at its end.
func (w *window) within(r contentRange) (first, last int64, ok bool) {
	first, last = w.first, w.last
	if w.suffix >= 0 {
		if r.size < 0 {
			return 0, 0, false
		}
		first = max(0, r.size-w.suffix)
	}
	// An API may send less than requested (RFC 9110 section 15.3.7); its last bytes are then the margin.
	limit, whole := r.last-margin, r.last == r.size-1
	if whole {
		limit = r.last
	}
	if last < 0 || last > limit {
		last = limit
	}
	return first, last, (r.first == 0 || r.first <= first-margin) && (whole || first <= last)
}

// narrow changes the head of a partial response to the range that the step requested; trim shortens the body. If the
// response cannot be narrowed, it returns an error.
func (x *exchange) narrow() error {
	resp := &x.c.resp
	i := fieldIndex(resp.Fields, "content-range")
	if i < 0 {
		if resp.Status == 206 && x.ranged || severalRanges(resp.Fields) {
			return errPartial
		}
		return nil
	}
	r, ok := parseContentRange(resp.Fields[i].Value)
	if !ok {
		return nil // another unit, or no range at all
	}
	if x.window == nil {
		return errPartial
	}
	first, last, ok := x.window.within(r)
	if !ok {
		return errPartial
	}
	size := "*"
	if r.size >= 0 {
		size = strconv.FormatInt(r.size, 10)
	}
	value := "bytes " + strconv.FormatInt(first, 10) + "-" + strconv.FormatInt(last, 10) + "/" + size
	x.window.skip, x.window.left = first-r.first, last-first+1
	if first > last { // beyond the end, so that only the margin overlaps the data
		resp.Status, resp.Reason, value = 416, []byte("Range Not Satisfiable"), "bytes */"+size
		x.window.left = 0
	}
	resp.Fields[i].Value = []byte(value)
	if i := fieldIndex(resp.Fields, "content-length"); i >= 0 {
		resp.Fields[i].Value = strconv.AppendInt(nil, x.window.left, 10)
	}
	x.trimming = true
	return nil
}

// severalRanges reports whether the body contains several ranges, each with its own head. The older of the two types
// is Apache's, for its Request-Range.
func severalRanges(fields []h1.Field) bool {
	i := fieldIndex(fields, "content-type")
	if i < 0 {
		return false
	}
	media, _, _ := bytes.Cut(fields[i].Value, []byte(";"))
	media = bytes.TrimSpace(media)
	return h1.EqualFold(media, "multipart/byteranges") || h1.EqualFold(media, "multipart/x-byteranges")
}

// trim moves the requested bytes to the front of a piece of the body, and returns their number.
func (w *window) trim(piece []byte) int {
	skip := min(w.skip, int64(len(piece)))
	w.skip -= skip
	n := copy(piece, piece[skip:][:min(w.left, int64(len(piece))-skip)])
	w.left -= int64(n)
	return n
}

func fieldIndex(fields []h1.Field, name string) int {
	for i, f := range fields {
		if h1.EqualFold(f.Name, name) {
			return i
		}
	}
	return -1
}
