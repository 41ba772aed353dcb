# /proc tells nothing of the machine
# refused only with namespaces
for name in ("cmdline", "pressure", "pressure/cpu", "loadavg", "locks", "interrupts", "diskstats", "partitions", "modules", "keys", "stat", "net"):
    refused(name, lambda: os.stat("/proc/" + name), errno.ENOENT)
