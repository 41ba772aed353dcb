# nothing can be written outside /tmp
for directory in ("/", "/usr", "/usr/lib", "/usr/bin", "/etc", "/dev", "/proc", "/proc/sys/kernel", "/lib", "/var/tmp", "/run"):
    path = directory + "/kizen-attack"
    refused(directory, lambda: open(path, "x"))
    if os.path.exists(path): os.unlink(path)
for path in ("/etc/passwd", "/etc/hosts", "/usr/bin/env", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/self/oom_score_adj", "/proc/self/mem"):
    refused(path, lambda: open(path, "r+b"))
refused("link", lambda: os.link(VICTIM, os.environ["HOME"] + "/link"))
refused("rename", lambda: os.rename(VICTIM, VICTIM + "2"))
refused("remove", lambda: os.unlink(VICTIM))
