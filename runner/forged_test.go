package runner_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner"
)

// attackPrelude finds the channel in the step's own memory, and sends what it likes with the job's nonce.
const attackPrelude = `
import gc, json, os
channel = next(o for o in gc.get_objects() if type(o).__name__ == "Channel")
nonce = next(v for v in vars(channel).values() if isinstance(v, str) and len(v) == 32)
def stream(body):
    data = memoryview(len(body).to_bytes(4, "big") + body)
    while data: data = data[os.write(97, data):]
def frame(kind, **fields): return json.dumps({"k": kind, "n": nonce, **fields}, separators=(",", ":")).encode()
def send(kind, **fields): os.write(96, frame(kind, **fields))
def result(**fields): stream(frame("result", **fields))
def wait():
    import time
    time.sleep(60)
entry = {"method": "GET", "url": "http://x/", "headers": {}, "body": None, "session": False, "requestSubmittedAt": "now",
    "responseStatusCode": None, "responseHeaders": None, "responseBody": None, "requestErrorType": None, "duration": None}
`

// told counts what an observer hears.
type told struct{ logs, calls int }

func (o *told) Log(string)            { o.logs++ }
func (o *told) HTTP(runner.HTTPEntry) { o.calls++ }

// TestForgedFramesAreBoundedAsIfThereWereNoHarness: each of these sent the sidecar to gigabytes, or into the caller's result.
func TestForgedFramesAreBoundedAsIfThereWereNoHarness(t *testing.T) { forge(t, false) }

func TestTortureFloodsOfForgedFramesAreBounded(t *testing.T) { forge(t, true) }

// forge runs the attacks that are floods, or those that are not.
func forge(t *testing.T, floods bool) {
	r := newRunner(t, runner.Config{})
	for _, c := range []struct {
		name, script string
		outcome      runner.Outcome
		most         int // bytes of the document
		check        func(t *testing.T, result runner.Result, heard told)
	}{
		{
			"one entry, unanswered and answered in turns", `
for i in range(500):
    send('http', i=0, e={**entry, 'body': 'x' * 8192})
    send('http', i=0, e={**entry, 'body': 'x' * 8192, 'responseStatusCode': 200})`,
			outcomes.OK, 64 << 10,
			func(t *testing.T, result runner.Result, heard told) {
				if heard.calls != 1 || result.HTTP.Count != 1 {
					t.Errorf("heard of %d calls, recorded %d", heard.calls, result.HTTP.Count)
				}
			},
		},
		{
			"calls of very many processes with long names", `
for i in range(300): send('http', p=str(i) + 'x' * 50000, i=0, e=entry)`,
			outcomes.OK, 64 << 10,
			func(t *testing.T, result runner.Result, heard told) {
				if h := result.HTTP; h.Count != 300 || len(h.Requests) != 100 {
					t.Errorf("%d calls, %d of them recorded", h.Count, len(h.Requests))
				}
			},
		},
		{
			"counts beyond any number", `
for i in range(3):
    send('http_dropped', c=9223372036854775708)
    send('logs_dropped', c=9223372036854775708)
    send('http', i=9223372036854775707 - i, e=entry)
    send('log', m='x', x=9223372036854775707)
    send('log', m='x', x=-9223372036854775707)
send('http', i=0, e={**entry, 'responseStatusCode': 9223372036854775707, 'duration': 1e308})`,
			outcomes.OK, 64 << 10,
			func(t *testing.T, result runner.Result, heard told) {
				h := result.HTTP
				last := h.Requests[len(h.Requests)-1]
				if h.Count < 4 || h.Count > 1<<41 || last.ResponseStatusCode != nil || *last.Duration > 1e6 {
					t.Errorf("the record is %+v", h)
				}
				if d := result.Dropped; d.Messages < 0 || d.Messages > 1<<41 || d.Bytes < 0 || d.Bytes > 1<<41 {
					t.Errorf("dropped %+v", d)
				}
			},
		},
		{
			"a record of control characters", `
for i in range(100):
    e = {**entry, 'body': '\x01' * 8192, 'url': '\x01' * 8192, 'headers': {'a': '\x01' * 16000}}
    send('http', i=i, e=e)
    send('http', i=i, e={**e, 'responseStatusCode': 200, 'duration': 1})`,
			outcomes.OK, 10 << 20,
			func(t *testing.T, result runner.Result, heard told) {
				if h := result.HTTP; h.Count != 100 || h.NotLogged == 0 || len(h.Requests) == 0 || int(h.NotLogged)+len(h.Requests) != 100 {
					t.Errorf("%d calls, %d of them not logged", h.Count, h.NotLogged)
				}
			},
		},
		{
			"an error of 5 MB", `
result(ok=False, kind='exception', error='E' * 2500000, detail='D' * 2500000)
wait()`,
			outcomes.Exception, 64 << 10, nil,
		},
		{
			"a result over the limit", `
result(ok=True, values={'x': {'t': 's', 'v': 'x' * (6 << 20)}})
wait()`,
			outcomes.ResultMissing, 64 << 10, nil, // the frame is refused before it is read
		},
		{
			"a result of 30 nested lists around 800,000 objects", `
lists = '{"t":"l","v":[' * 30 + '{},' * 800000 + '{}' + ']}' * 30
stream(b'{"k":"result","n":"' + nonce.encode() + b'","ok":true,"values":{"l":' + lists.encode() + b'}}')
wait()`,
			outcomes.ResultNotSerialisable, 64 << 10, nil,
		},
		{
			"a result of 4.5 MB of nested lists", `
lists = '{"t":"l","v":[' * 30 + ','.join(['[[]]'] * 900000) + ']}' * 30
stream(b'{"k":"result","n":"' + nonce.encode() + b'","ok":true,"values":{"l":' + lists.encode() + b'}}')
wait()`,
			outcomes.ResultMissing, 64 << 10, nil,
		},
		{
			"a log frame of 7.5 MB", `
stream(frame('log', m='x' * 7500000))
wait()`,
			outcomes.ResultMissing, 64 << 10, nil,
		},
		{
			"logs without end", `
body = frame('log', m='x' * 100000)
while True: os.write(96, body)`,
			outcomes.OutputLimit, 1 << 20,
			func(t *testing.T, result runner.Result, heard told) {
				if heard.logs > 100 {
					t.Errorf("heard of %d messages", heard.logs)
				}
			},
		},
		{
			"events without end, with another nonce", `
while True: os.write(96, b'{}')`,
			outcomes.OutputLimit, 64 << 10, nil,
		},
		{
			"frames without end on the stream", `
many = ((2).to_bytes(4, 'big') + b'{}') * 1000
while True: os.write(97, many)`,
			outcomes.OutputLimit, 64 << 10, nil,
		},
	} {
		if floods != strings.Contains(c.name, "without end") {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			heard := &told{}
			var result runner.Result
			var err error
			used := allocated(func() {
				result, err = r.Run(context.Background(), runner.Execution{
					ID: "forged", Timeout: runner.MaxWall, Script: []byte(attackPrelude + c.script), Observer: heard,
					Outputs: runner.Outputs{{Name: "x", Type: "s"}, {Name: "l", Type: "l"}},
				})
			})
			if err != nil {
				t.Fatal(err)
			}
			if result.Outcome != c.outcome {
				t.Fatalf("got %s, want %s: %+.300v", result.Outcome, c.outcome, result.Error)
			}
			document, err := result.MarshalJSON()
			if err != nil || len(document) > c.most {
				t.Errorf("the document has %d bytes, %v", len(document), err)
			}
			if c.check != nil {
				c.check(t, result, *heard)
			}
			memory := uint64(512 << 20) // in all, of which little at a time
			if strings.HasPrefix(c.name, "a result") {
				memory = 32 << 20
			}
			if used > memory {
				t.Errorf("it took %d bytes of memory", used)
			}
			if result.Error != nil && strings.Contains(result.Error.Message, strings.Repeat("E", 9000)) {
				t.Error("the error is not cut")
			}
		})
	}
}

// TestTheSidecarsTimeForAStepCountsAsTheSteps: each of these records costs the sidecar many times what sending it costs the step.
func TestTheSidecarsTimeForAStepCountsAsTheSteps(t *testing.T) {
	r := newRunner(t, runner.Config{Limits: runner.Limits{CPU: time.Second}})
	script := attackPrelude + `
body = frame('http', i=0, e={**entry, 'headers': {str(i): '' for i in range(10000, 28000)}})
for i in range(600): os.write(96, body)
wait()`
	result, err := r.Run(context.Background(), runner.Execution{ID: "costly", Script: []byte(script), Timeout: runner.MaxWall})
	if err != nil {
		t.Fatal(err)
	}
	if result.Outcome != outcomes.CPULimit || result.Evidence.CPU < time.Second {
		t.Errorf("got %s after %s of processor time: %+v", result.Outcome, result.Evidence.CPU, result.Error)
	}
}
