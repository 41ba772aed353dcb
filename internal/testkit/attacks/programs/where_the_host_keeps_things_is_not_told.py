# where the host keeps things is not told
# refused only with namespaces
for line in open("/proc/self/cgroup"):
    if not line.rstrip().endswith(":/"): broken("cgroup", line)
if socket.gethostname() == HOSTNAME: broken("host name", HOSTNAME)
