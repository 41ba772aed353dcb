package attacks

// Hostile is a step that tries to disable the sidecar or its neighbours. It declares the output "x", a text.
type Hostile struct {
	Name, Source string
	// Kind is a regular expression that matches the kind of its failure under its time limit, 128 MiB of memory and 8
	// MiB in /tmp. If a step uses up all descriptors, the kind depends on the modules that are already loaded.
	Kind string
}

// LimitMS returns the step's time limit in milliseconds. It is short for steps that would not end otherwise.
func (h Hostile) LimitMS() int {
	if h.Kind == "timeout" {
		return 3000
	}
	return 50_000
}

// HostileSteps returns all hostile steps. marker is an argument of a process that one of them leaves behind.
func HostileSteps(marker string) []Hostile {
	forge := func(body string) string {
		return "import os, json\nbody = " + body +
			"\nfor fd in range(3, 256):\n  try: os.write(fd, body)\n  except OSError: pass\nraise ValueError('really')"
	}
	return []Hostile{
		{"endless", "while True: pass", "timeout"},
		{"memory", "b = []\nwhile True: b.append(bytearray(b'x' * (8 << 20)))", "memory_limit"},
		{"killed", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed_by_signal"},
		{"exits", "import os\nos._exit(3)", "exited"},
		{"full disk", "open('/tmp/x', 'wb').write(bytes(64 << 20))", "output_limit"},
		{"leaves child", "import subprocess\nsubprocess.Popen(['sleep', '" + marker +
			"'], start_new_session=True)\nraise SystemError('x')", "exception"},
		{"deaf", "import signal, time\nfor s in (1, 2, 3, 13, 14, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(99)",
			"timeout"},
		{"log flood", "while True: outputs.log('x' * 8192)", "timeout"},
		{"output flood", "while True: print('x' * (1 << 16))", "timeout"},
		{"huge result", "outputs.x = 'x' * (8 << 20)", "output_limit"},
		{"forged result",
			forge("json.dumps({'k': 'result', 'n': '0' * 32, 'ok': True, 'values': {}}).encode()\nbody = len(body).to_bytes(4, 'big') + body"), "exception"},
		{"forged length", forge("b'\\xff\\xff\\xff\\xff' + b'x' * 65536"), "result_missing"},
		{"shuts up", "import os\nos.closerange(0, 1024)", "result_missing"},
		{"call flood",
			"import threading\ndef f():\n  while True: kizen.api.get('/x')\nall = [threading.Thread(target=f) for _ in range(16)]\nfor t in all: t.start()\nfor t in all: t.join()", "timeout"},
		{"files", "all = []\nwhile True: all.append(open('/dev/null'))", "exception|result_missing"},
	}
}

// ForkBomb is only for sandboxes that are certain to stop it: with a PID namespace and a cgroup for processes.
var ForkBomb = Hostile{"fork bomb", `
import os
while True:
    try: os.fork()
    except OSError: pass`, "timeout"}

// BuffersStep fills the buffers of 100 TCP connections and 100 UDP sockets, and logs how many MiB they took. Without
// limits by the sandbox, each takes 4 MiB.
const BuffersStep = `
import socket
def fill(a, b):
    b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
    a.setblocking(False)
    b.setblocking(False)
    try:
        for _ in range(70): a.send(bytes(60000))
    except OSError: pass
pairs = []
for kind in [socket.SOCK_STREAM, socket.SOCK_DGRAM] * 100:
    b = socket.socket(socket.AF_INET, kind)
    b.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM: b.listen(1)
    a = socket.create_connection(b.getsockname()) if kind == socket.SOCK_STREAM else socket.socket(socket.AF_INET, kind)
    if kind == socket.SOCK_STREAM: b = b.accept()[0]
    else: a.connect(b.getsockname())
    pairs.append((a, b))
    fill(a, b)
held = 0
for _, b in pairs:
    try:
        while got := len(b.recv(1 << 16)): held += got
    except OSError: pass
outputs.log(held >> 20)
`
