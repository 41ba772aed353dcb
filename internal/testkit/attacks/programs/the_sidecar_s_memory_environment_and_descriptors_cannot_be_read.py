# the sidecar's memory, environment and descriptors cannot be read
# refused only to users other than root
for name in ("environ", "mem", "maps", "syscall", "auxv", "pagemap"):
    refused(name, lambda: read(f"/proc/{SIDECAR}/{name}"))
refused("fd", lambda: os.listdir(f"/proc/{SIDECAR}/fd"))
for name in ("root", "cwd", "exe"):
    refused(name, lambda: os.listdir(f"/proc/{SIDECAR}/{name}/"))
