# the first process cannot be ended or slowed down by its own user
# for a step that runs as the sidecar's own user
SYS = {"x86_64": (62, 234, 129, 297, 200, 424, 302, 203, 144, 142, 314, 251),
       "aarch64": (129, 131, 138, 240, 130, 424, 261, 122, 119, 118, 274, 30)}[os.uname().machine]
kill, tgkill, sigqueue, tgsigqueue, tkill, pidfd, prlimit, affinity, scheduler, parameters, attributes, ioprio = SYS
stage, zeroes = os.getppid(), ctypes.create_string_buffer(128)
for target in (stage, SIDECAR, -stage, -SIDECAR, -GROUP, -1):
    sys_refused(f"kill {target}", kill, target, 0)
    sys_refused(f"kill {target} with the upper half set", kill, target | 1 << 40, 0)
    sys_refused(f"rt_sigqueueinfo {target}", sigqueue, target, 0, zeroes)
for target in (stage, SIDECAR):
    sys_refused("tgkill", tgkill, target, target, 0)
    sys_refused("rt_tgsigqueueinfo", tgsigqueue, target, target, 0, zeroes)
    sys_refused("tkill", tkill, target, 0)
    sys_refused("prlimit", prlimit, target, 0, 0, zeroes)
    sys_refused("sched_setaffinity", affinity, target, 0, 0)
    sys_refused("sched_setscheduler", scheduler, target, -1, 0)
    sys_refused("sched_setparam", parameters, target, 0)
    sys_refused("sched_setattr", attributes, target, 0, 0)
    sys_refused("ioprio_set", ioprio, 1, target, -1)
    refused("setpriority", lambda: os.setpriority(os.PRIO_PROCESS, target, 0), errno.EPERM)
    sys_refused("pidfd_send_signal", pidfd, os.pidfd_open(target), 0, 0, 0)
refused("setpriority of the user", lambda: os.setpriority(os.PRIO_USER, 0, 0), errno.EPERM)
import fcntl
a, b = socket.socketpair()
refused("F_SETOWN", lambda: fcntl.fcntl(a, fcntl.F_SETOWN, stage), errno.EPERM)
refused("F_SETOWN_EX", lambda: fcntl.fcntl(a, 15, struct.pack("ii", 1, stage)), errno.EPERM)
for command in (0x8901, 0x8902): refused("owner of a socket", lambda: fcntl.ioctl(a, command, struct.pack("i", stage)), errno.EPERM)
