# nobody else's limits can be changed
import resource
same = resource.getrlimit(resource.RLIMIT_MEMLOCK)
refused("prlimit", lambda: resource.prlimit(os.getppid(), resource.RLIMIT_MEMLOCK, same), errno.EPERM)
sys_refused("prlimit with the upper half set", 302, os.getppid() | 1 << 32, resource.RLIMIT_MEMLOCK, struct.pack("QQ", *same), 0)
