# there is no capability to be had
# refused only to users other than root
status = dict(line.split(":\t", 1) for line in open("/proc/self/status"))
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    if int(status[name], 16) and (name != "CapBnd" or BOUNDING): broken(name, status[name])
if status["NoNewPrivs"].strip() != "1": broken("new privileges")
if status["Seccomp"].strip() != "2": broken("no filter")
if os.getuid() == 0 or os.geteuid() == 0 or 0 in os.getgroups(): broken("root", os.getgroups())
for call in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.mknod(os.environ["HOME"] + "/m", 0o20666, os.makedev(1, 1))):
    refused("privileged call", call, errno.EPERM, errno.EINVAL, errno.EACCES)
