package attacks

// BlockingStep is a step that would block forever. The sidecar must end it at its time limit, with all its processes.
type BlockingStep struct{ Name, Source string }

// BlockingSteps returns all such steps. None uses ptrace, because a step cannot be traced; see Programs.
func BlockingSteps() []BlockingStep {
	const start = "import ctypes, os, signal, subprocess, threading, time\nlibc = ctypes.CDLL(None)\n" +
		"vfork = lambda: libc.syscall({'x86_64': 56, 'aarch64': 220}[os.uname().machine], 0x4111, 0, 0, 0, 0)  # CLONE_VM | CLONE_VFORK | SIGCHLD\n"
	return []BlockingStep{
		{"stops itself", start + "os.kill(os.getpid(), signal.SIGSTOP)"},
		{"stops as for a terminal", start +
			"os.kill(os.getpid(), signal.SIGTSTP)\nos.kill(os.getpid(), signal.SIGTTIN)\ntime.sleep(99)"},
		{"stops its children in new sessions", start + `
children = [subprocess.Popen(["sleep", "1000"], start_new_session=True) for _ in range(5)]
for child in children: os.kill(child.pid, signal.SIGSTOP)
os.kill(os.getpid(), signal.SIGSTOP)`},
		{"is stopped and continued by its child", start + `
parent = os.getpid()
if os.fork() == 0:
    os.setsid()
    while True:
        os.kill(parent, signal.SIGSTOP); os.kill(parent, signal.SIGCONT)
while True: pass`},
		{"forks children that stop themselves", start + `
for _ in range(20):
    if os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(99)`},
		// The parent of a vfork waits in state D, in which only SIGKILL ends it.
		{"waits for a vfork that spins", start + "if vfork() == 0:\n    while True: pass"},
		{"waits for a vfork that sleeps", start + "if vfork() == 0: libc.sleep(1000)"},
		{"waits for a vfork that stopped", start + "if vfork() == 0: os.kill(os.getpid(), signal.SIGSTOP)"},
		{"waits for a vfork that waits for a vfork", start + "if vfork() == 0 and vfork() == 0: libc.sleep(1000)"},
		{"waits for vforks on threads", start + `
def wait():
    if vfork() == 0: libc.sleep(1000)
for _ in range(8): threading.Thread(target=wait).start()`},
		{"blocks every signal", start + `
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True: time.sleep(99)`},
		{"ignores every signal", start + `
for n in range(1, 65):
    try: signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: time.sleep(99)`},
	}
}
