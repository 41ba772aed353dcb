# there are no core files
# refused without a sandbox too
import resource
if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0): broken("core files", resource.getrlimit(resource.RLIMIT_CORE))
for name in ("RLIMIT_CORE", "RLIMIT_NPROC", "RLIMIT_NOFILE", "RLIMIT_FSIZE"):
    hard = resource.getrlimit(getattr(resource, name))[1]
    try: resource.setrlimit(getattr(resource, name), (hard + 1, hard + 1))
    except ValueError: pass
    else: broken("raised", name)
