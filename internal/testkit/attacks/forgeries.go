package attacks

// Forgery is a step that impersonates the harness: it reads the nonce from its own memory, and sends the sidecar
// arbitrary frames.
type Forgery struct {
	Name string
	// Flood marks a step that sends until the sidecar ends it.
	Flood bool
	// Outcome is the outcome of the execution, whose result document must have at most Most bytes. The step declares
	// the outputs "x", a text, and "l", a list.
	Outcome string
	Most    int

	code string
}

// Source is the step's code.
func (f Forgery) Source() string { return ForgeryPrelude + f.code }

// ForgeryPrelude finds the harness's channel.
const ForgeryPrelude = `
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

// Forgeries returns all forgeries.
func Forgeries() []Forgery { return forgeries }

var forgeries = []Forgery{
	{
		"one entry, unanswered and answered in turns", false, "ok", 64 << 10, `
for i in range(500):
    send('http', i=0, e={**entry, 'body': 'x' * 8192})
    send('http', i=0, e={**entry, 'body': 'x' * 8192, 'responseStatusCode': 200})`,
	},
	{
		"calls of very many processes with long names", false, "ok", 64 << 10, `
for i in range(300): send('http', p=str(i) + 'x' * 50000, i=0, e=entry)`,
	},
	{
		"counts beyond any number", false, "ok", 64 << 10, `
for i in range(3):
    send('http_dropped', c=9223372036854775708)
    send('logs_dropped', c=9223372036854775708)
    send('http', i=9223372036854775707 - i, e=entry)
    send('log', m='x', x=9223372036854775707)
    send('log', m='x', x=-9223372036854775707)
send('http', i=0, e={**entry, 'responseStatusCode': 9223372036854775707, 'duration': 1e308})`,
	},
	{
		"a record of control characters", false, "ok", 10 << 20, `
for i in range(100):
    e = {**entry, 'body': '\x01' * 8192, 'url': '\x01' * 8192, 'headers': {'a': '\x01' * 16000}}
    send('http', i=i, e=e)
    send('http', i=i, e={**e, 'responseStatusCode': 200, 'duration': 1})`,
	},
	{
		"100 calls of 7,000 header fields each", false, "ok", 1 << 20, `
headers = {'h%04d' % i: '' for i in range(7000)}
for i in range(100):
    send('http', i=i, e={**entry, 'headers': headers, 'responseHeaders': headers, 'responseStatusCode': 200, 'duration': 1})`,
	},
	{
		"an error of 5 MB", false, "exception", 64 << 10, `
result(ok=False, kind='exception', error='E' * 2500000, detail='D' * 2500000)
wait()`,
	},
	{
		"a result over the limit", false, "result_missing", 64 << 10, `
result(ok=True, values={'x': {'t': 's', 'v': 'x' * (6 << 20)}})
wait()`,
	},
	{
		"a result of 30 nested lists around 800,000 objects", false, "result_not_serialisable", 64 << 10, `
lists = '{"t":"l","v":[' * 30 + '{},' * 800000 + '{}' + ']}' * 30
stream(b'{"k":"result","n":"' + nonce.encode() + b'","ok":true,"values":{"l":' + lists.encode() + b'}}')
wait()`,
	},
	{
		"a result of 4.5 MB of nested lists", false, "result_missing", 64 << 10, `
lists = '{"t":"l","v":[' * 30 + ','.join(['[[]]'] * 900000) + ']}' * 30
stream(b'{"k":"result","n":"' + nonce.encode() + b'","ok":true,"values":{"l":' + lists.encode() + b'}}')
wait()`,
	},
	{
		"a log frame of 7.5 MB", false, "result_missing", 64 << 10, `
stream(frame('log', m='x' * 7500000))
wait()`,
	},
	{
		"logs without end", true, "output_limit", 1 << 20, `
body = frame('log', m='x' * 100000)
while True: os.write(96, body)`,
	},
	{
		"events without end, with another nonce", true, "output_limit", 64 << 10, `
while True: os.write(96, b'{}')`,
	},
	{
		"frames without end on the stream", true, "output_limit", 64 << 10, `
many = ((2).to_bytes(4, 'big') + b'{}') * 1000
while True: os.write(97, many)`,
	},
}
