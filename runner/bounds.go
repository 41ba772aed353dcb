package runner

import (
	"errors"
	"math"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What a step sends is bounded here as if there were no harness: a step shares its process with the harness, can read the nonce in
// its own memory, and then sends what it likes. An honest harness stays far below these bounds.

const (
	// maxEvents is how many events one execution may send: as many as all log messages of a byte each of two processes.
	maxEvents = 2 * maxLogTotal
	// maxEventBytes is how many bytes all events of one execution may have together.
	maxEventBytes = 128 * mib
	// maxFrames is how many frames may come on the stream of one execution; an honest harness sends five.
	maxFrames = 100
	// maxSmallFrame is the size in bytes of the largest frame on the stream that is no result.
	maxSmallFrame = maxEvent
	// maxFrameElements is how many elements the lists of all outputs together may have: each output is held to maxElements.
	maxFrameElements = 10 * maxElements
	// maxRecord is how many bytes the texts of all HTTP entries may have together; further calls are only counted.
	maxRecord = 8 * mib
	// maxProcessName is the length of what tells one process of a step from the others.
	maxProcessName = 32
	// maxCount is the most that a step can have dropped; more cannot happen within MaxWall.
	maxCount = 1 << 40
	// margin is how many bytes more than are kept of a text are looked at, so that a secret which begins in what is kept ends there.
	margin = 8 << 10
)

// errTooManyFrames reports a step that sent more frames than any honest one does.
var errTooManyFrames = errors.New("more frames than a step may send")

// meter adds up the processor time that the sidecar spends on what a step sends. It is safe for concurrent use.
type meter struct {
	// charge makes processor time of the sidecar count towards the step's limit.
	charge func(time.Duration)

	mu    sync.Mutex
	spent time.Duration
}

// spend runs work that a step causes, and charges the step with the processor time that it takes.
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

// total is the processor time that the sidecar has spent.
func (m *meter) total() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spent
}

// threadTime is the processor time of the calling thread.
func threadTime() time.Duration {
	var used unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &used) // every kernel has this clock
	return time.Duration(used.Nano())
}

// addCount adds what a process of the step says it dropped, whatever that is.
func addCount(sum, more int64) int64 { return min(sum+min(max(more, 0), maxCount), maxCount) }

// bound returns an entry whose texts are cut and without secrets, and whose numbers are possible ones.
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
	if _, err := time.Parse(time.RFC3339, e.RequestSubmittedAt); err != nil || len(e.RequestSubmittedAt) > 64 { // a time holds no secret
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

// maxHeaders is how many bytes of one message's header fields are kept.
const maxHeaders = 16 << 10

func (c *collector) cutHeaders(headers map[string]string) map[string]string {
	size := 0
	for _, name := range sortedKeys(headers) {
		size += len(name) + len(headers[name])
		if size > maxHeaders {
			delete(headers, name)
		}
	}
	return c.redact.headers(headers)
}

// size is about how many bytes the texts of an entry take in a result.
func (e HTTPEntry) size() int {
	size := len(e.Method) + quoted(e.URL) + headersSize(e.Headers) + headersSize(e.ResponseHeaders)
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
		size += quoted(name) + quoted(value)
	}
	return size
}

// quoted is how many bytes s has as a JSON string, without the quotes: a control character is written as six.
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

// cut is the beginning of s without secrets, at most n bytes; its cost does not grow with s.
func (r redactor) cut(s string, n int) string {
	return cutString(r.text(cutString(s, n+margin)), n)
}

// cutName is cut for the name of a field, a method or a class.
func (r redactor) cutName(s string, n int) string {
	return cutString(r.name(cutString(s, n+margin)), n)
}

// cutEnd is the end of s without secrets, from a whole character on, at most n bytes; its cost does not grow with s.
func (r redactor) cutEnd(s string, n int) string {
	if len(s) <= n+margin {
		return lastBytes(r.text(s), n)
	}
	// What is looked at may begin in the middle of a secret, which is then not recognised.
	text := r.text(lastBytes(s, n+margin))
	return lastBytes(text, min(n, max(0, len(text)-margin)))
}
