package runner

import (
	"errors"
	"math"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// These limits do not rely on the harness: a step shares its process with the harness, can read the nonce in its own
// memory, and can then send anything. The real harness stays far below them.

const (
	// maxEvents is the maximal number of events of one execution: twice the maximal number of one-byte log messages.
	maxEvents = 2 * maxLogTotal
	// maxEventBytes is the maximal total size of all events of one execution.
	maxEventBytes = 128 * mib
	// maxFrames is the maximal number of frames on the stream of one execution; the real harness sends five.
	maxFrames = 100
	// maxSmallFrame is the maximal size in bytes of a frame on the stream, except the result.
	maxSmallFrame = maxEvent
	// maxFrameElements is the maximal number of list elements in all outputs together; each output is limited to
	// maxElements.
	maxFrameElements = 10 * maxElements
	// maxRecord is the maximal total size of the texts of all HTTP entries; further calls are only counted.
	maxRecord = 8 * mib
	// maxProcessName is the maximal length of the name of a step's process.
	maxProcessName = 32
	// maxCount is an upper bound of a dropped count; a step cannot reach it within MaxWall.
	maxCount = 1 << 40
	// margin is how many bytes beyond the kept part of a text are examined, to recognise a secret that begins in the
	// kept part.
	margin = 8 << 10
)

// errTooManyFrames reports a step that sent more frames than the harness ever does.
var errTooManyFrames = errors.New("more frames than a step may send")

// meter adds up the CPU time that the sidecar spends on a step's messages. It is safe for concurrent use.
type meter struct {
	// charge adds CPU time of the sidecar to the step's.
	charge func(time.Duration)

	mu    sync.Mutex
	spent time.Duration
}

// spend runs work caused by a step, and charges the step with its CPU time.
func (m *meter) spend(work func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begun := threadTime()
	work()
	took := threadTime() - begun
	m.charge(took)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spent += took
}

// total returns the CPU time that the sidecar has spent.
func (m *meter) total() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spent
}

// threadTime returns the CPU time of the calling thread.
func threadTime() time.Duration {
	var used unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &used) // every kernel has this clock
	return time.Duration(used.Nano())
}

// addCount adds a count that a process of the step reports, and clamps it.
func addCount(sum, more int64) int64 { return min(sum+min(max(more, 0), maxCount), maxCount) }

// bound returns an entry with truncated and redacted texts and clamped numbers.
func (c *collector) bound(e HTTPEntry) HTTPEntry {
	e.Method = c.redact.cutName(e.Method, 64)
	e.URL = c.redact.cut(e.URL, maxRequestBody)
	e.Headers = c.cutHeaders(e.Headers)
	e.ResponseHeaders = c.cutHeaders(e.ResponseHeaders)
	e.Body = c.cutPointer(e.Body, maxRequestBody)
	e.ResponseBody = c.cutPointer(e.ResponseBody, maxResponseBody)
	if e.RequestErrorType != nil {
		class := c.redact.cutName(*e.RequestErrorType, 256)
		e.RequestErrorType = &class
	}
	// a time contains no secret
	if _, err := time.Parse(time.RFC3339, e.RequestSubmittedAt); err != nil || len(e.RequestSubmittedAt) > 64 {
		e.RequestSubmittedAt = c.redact.cut(e.RequestSubmittedAt, 64)
	}
	if s := e.ResponseStatusCode; s != nil && (*s < 0 || *s > 999) {
		e.ResponseStatusCode = nil
	}
	if d := e.Duration; d != nil {
		possible := math.Min(math.Max(*d, 0), float64(MaxWall.Milliseconds()))
		e.Duration = &possible
	}
	return e
}

func (c *collector) cutPointer(s *string, n int) *string {
	if s == nil {
		return nil
	}
	cut := c.redact.cut(*s, n)
	return &cut
}

// maxHeaders is how many bytes of a message's header fields are kept, and maxHeaderFields how many fields: Python's own
// client accepts 100 in a response.
const (
	maxHeaders      = 16 << 10
	maxHeaderFields = 200
)

func (c *collector) cutHeaders(headers map[string]string) map[string]string {
	size := 0
	for i, name := range sortedKeys(headers) {
		size += len(name) + len(headers[name])
		if i >= maxHeaderFields || size > maxHeaders {
			delete(headers, name)
		}
	}
	return c.redact.headers(headers)
}

// The approximate size of an entry and of a header field without their texts, in bytes.
const (
	entrySize       = 512
	headerFieldSize = 64
)

// size returns the approximate size of an entry in memory, or in a result if that is more, in bytes.
func (e HTTPEntry) size() int {
	size := entrySize + len(e.Method) + quoted(e.URL) + headersSize(e.Headers) + headersSize(e.ResponseHeaders)
	for _, text := range []*string{e.Body, e.ResponseBody, e.RequestErrorType} {
		if text != nil {
			size += quoted(*text)
		}
	}
	return size
}

func headersSize(headers map[string]string) int {
	size := 0
	for name, value := range headers {
		size += headerFieldSize + quoted(name) + quoted(value)
	}
	return size
}

// quoted returns the length of s as a JSON string, without the quotes: a control character takes six bytes.
func quoted(s string) int {
	size := len(s)
	for i := range len(s) {
		switch b := s[i]; {
		case b < 0x20:
			size += 5
		case b == '"' || b == '\\':
			size++
		}
	}
	return size
}

// cut returns at most n bytes of the beginning of s, redacted; its cost does not grow with s, and it does not keep s in
// memory.
func (r redactor) cut(s string, n int) string {
	return copyCut(s, r.text(cutString(s, n+margin)), n)
}

// cutName is cut for the name of a field, a method or a class.
func (r redactor) cutName(s string, n int) string {
	return copyCut(s, r.name(cutString(s, n+margin)), n)
}

// copyCut returns at most n bytes of text. If it is shorter than s, it is copied, because it may be a part of s.
func copyCut(s, text string, n int) string {
	if text = cutString(text, n); len(text) < len(s) {
		return strings.Clone(text)
	}
	return text
}

// cutEnd returns at most n bytes of the end of s, redacted, beginning with a whole character; its cost does not grow
// with s.
func (r redactor) cutEnd(s string, n int) string {
	if len(s) <= n+margin {
		return lastBytes(r.text(s), n)
	}
	// The examined part may begin in the middle of a secret, which is then not recognised.
	text := r.text(lastBytes(s, n+margin))
	return lastBytes(text, min(n, max(0, len(text)-margin)))
}
