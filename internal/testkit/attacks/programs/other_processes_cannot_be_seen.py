# other processes cannot be seen
# refused only with namespaces
mine = [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]
if mine: broken("visible", mine)
for pid in (1, SIDECAR):
    for name in ("environ", "cmdline", "mem", "maps", "fd", "root", "cwd", "exe", "stat"):
        refused(f"/proc/{pid}/{name}", lambda: read(f"/proc/{pid}/{name}"), errno.ENOENT)
