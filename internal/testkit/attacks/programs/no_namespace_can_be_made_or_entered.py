# no namespace can be made or entered
for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
    sys_refused(f"unshare {flag:#x}", 272, flag)
    sys_refused(f"clone {flag:#x}", 56, flag | 17, 0, 0, 0, 0)
    sys_refused(f"clone {flag:#x} with the upper half set", 56, flag | 17 | 1 << 40, 0, 0, 0, 0)
sys_refused("setns", 308, 0, 0)
sys_refused("clone3", 435, 0, 0, wanted=(errno.ENOSYS,))
