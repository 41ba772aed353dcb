# only standard descriptors are inherited
# refused without a sandbox too
open_now = set(os.listdir("/proc/self/fd"))
extra = [f for f in open_now - DESCRIPTORS if os.path.exists("/proc/self/fd/" + f)]
if extra: broken("inherited", [os.readlink("/proc/self/fd/" + f) for f in extra])
