package runner

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"unicode/utf8"
)

// The runner and the harness exchange frames over a socket pair: four bytes of length, big-endian, then as many bytes
// of JSON. The runner sends the harness's code as the first frame and one job as the second. The harness answers with
// frames that carry a kind and, once it has the job, the job's nonce, the last of them the result. Log messages and
// call records go over a second pair, which preserves message boundaries, so that all processes of the step can send:
// one message is one frame, without a length.

// job is the job frame for the harness.
type job struct {
	ExecutionID string            `json:"execution_id"`
	Script      string            `json:"script"`
	Filename    string            `json:"filename"`
	Path        string            `json:"path"`
	Inputs      Inputs            `json:"inputs"`
	OutputTypes map[string]Type   `json:"output_types"`
	Secrets     map[string]string `json:"secrets"`
	APIURL      string            `json:"api_url"`
	APIRoot     string            `json:"api_root"`
	Nonce       string            `json:"nonce"`
	Traceparent string            `json:"traceparent"`
	Limits      jobLimits         `json:"limits"`
}

type jobLimits struct {
	LogMessage   int   `json:"log_message"`
	LogTotal     int   `json:"log_total"`
	HTTPEntries  int   `json:"http_entries"`
	RequestBody  int   `json:"request_body"`
	ResponseBody int   `json:"response_body"`
	Result       int64 `json:"result"`
}

func newJob(e Execution, limits Limits, sourceDir string) job {
	types := make(map[string]Type, len(e.Outputs))
	for _, output := range e.Outputs {
		types[output.Name] = output.Type
	}
	secrets := make(map[string]string, len(e.Secrets))
	for name, secret := range e.Secrets {
		secrets[name] = secret.Reveal()
	}
	inputs := e.Inputs
	if inputs == nil {
		inputs = Inputs{}
	}
	return job{
		ExecutionID: e.ID, Script: string(e.Script), Filename: ScriptName, Path: filepath.Join(sourceDir, ScriptName),
		Inputs: inputs, OutputTypes: types,
		Secrets: secrets, APIURL: e.APIURL, APIRoot: e.APIRoot, Nonce: newNonce(), Traceparent: e.Traceparent,
		Limits: jobLimits{
			LogMessage: maxLogMessage, LogTotal: maxLogTotal, HTTPEntries: maxRequests,
			RequestBody: maxRequestBody, ResponseBody: maxResponseBody, Result: limits.Result,
		},
	}
}

func newNonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand crashes the program instead
	return hex.EncodeToString(b[:])
}

// The kinds of frames that the harness sends.
const (
	kindReady       = "ready"
	kindStarted     = "started"
	kindEnding      = "ending"
	kindLog         = "log"
	kindLogsDropped = "logs_dropped"
	kindHTTP        = "http"
	kindHTTPDropped = "http_dropped"
	kindResult      = "result"
)

// message is any frame of the harness.
type message struct {
	Kind  string `json:"k"`
	Nonce string `json:"n"`

	Log     string `json:"m"`
	LogCut  int64  `json:"x"`
	Dropped int64  `json:"c"`

	// Process identifies a process of the step; empty for the first.
	Process string     `json:"p"`
	Index   int        `json:"i"`
	Entry   *HTTPEntry `json:"e"`

	// Thread is the identifier of the main thread, in hexadecimal.
	Thread string `json:"t"`
	// Threads lists the hexadecimal identifiers and the names of the threads that the step must join; Handlers
	// reports that its exit handlers run. The same message contains the failure of its body, if any.
	Threads  [][2]string `json:"threads"`
	Handlers bool        `json:"handlers"`

	OK      bool                  `json:"ok"`
	Values  map[string]rawMessage `json:"values"`
	Failure string                `json:"kind"`
	Error   string                `json:"error"`
	Detail  string                `json:"detail"`

	size int64 // of the frame, in bytes
}

type rawMessage = json.RawMessage

// errNotAFrame reports bytes on the socket that the harness cannot have written, because the harness keeps its results
// within the limit.
var errNotAFrame = errors.New("not a frame of the harness")

// frameReader reads frames into one reused buffer.
type frameReader struct {
	from io.Reader
	// result is the size in bytes of the largest result.
	result int64
	// meter, if not nil, records the time for decoding.
	meter  *meter
	buffer []byte
}

// resultFrame is the beginning of a result frame. No other frame is larger than maxSmallFrame.
var resultFrame = []byte(`{"k":"result",`)

// next reads one frame. The next call overwrites the returned message. It checks a frame's size before it reads it, and
// the number of values before it decodes it.
func (r *frameReader) next() (message, error) {
	var header [4]byte
	if _, err := io.ReadFull(r.from, header[:]); err != nil {
		return message{}, err
	}
	size := int64(binary.BigEndian.Uint32(header[:]))
	if size > max(r.result, maxSmallFrame) {
		return message{}, fmt.Errorf("%w: its length is %d", errNotAFrame, size)
	}
	if int64(cap(r.buffer)) < size {
		r.buffer = make([]byte, size)
	}
	body := r.buffer[:size]
	if _, err := io.ReadFull(r.from, body); err != nil {
		return message{}, err
	}
	if size > maxSmallFrame && !bytes.HasPrefix(body, resultFrame) {
		return message{}, fmt.Errorf("%w: its length is %d", errNotAFrame, size)
	}
	if r.meter == nil {
		return decodeFrame(body)
	}
	var m message
	var err error
	r.meter.spend(func() { m, err = decodeFrame(body) })
	return m, err
}

func decodeFrame(body []byte) (message, error) {
	if !utf8.Valid(body) { // decoding would replace each invalid byte by three
		return message{}, fmt.Errorf("%w: it is not UTF-8", errNotAFrame)
	}
	if err := CheckJSON(body, maxFrameElements); err != nil {
		return message{}, fmt.Errorf("%w: %w", errNotAFrame, err)
	}
	var m message
	if err := json.Unmarshal(body, &m); err != nil {
		return message{}, fmt.Errorf("%w: %w", errNotAFrame, err)
	}
	m.size = int64(len(body))
	return m, nil
}

func writeFrame(w io.Writer, body []byte) error {
	frame := make([]byte, 0, 4+len(body))
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(body)))
	if _, err := w.Write(append(frame, body...)); err != nil {
		return fmt.Errorf("send to the harness: %w", err)
	}
	return nil
}
