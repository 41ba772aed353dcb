# the sidecar cannot be signalled
import signal
for n in (0, signal.SIGURG, signal.SIGCHLD):
    refused(f"signal {n}", lambda: os.kill(SIDECAR, n), errno.ESRCH, errno.EPERM)
