# no process can be traced or its memory copied
for pid in (1, SIDECAR, os.getppid()):
    sys_refused("ptrace attach", 101, 16, pid, 0, 0)
    sys_refused("ptrace seize", 101, 0x4206, pid, 0, 0)
    buffer = ctypes.create_string_buffer(64)
    iov = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 64)
    sys_refused("process_vm_readv", 310, pid, iov, 1, iov, 1, 0)
    sys_refused("process_vm_writev", 311, pid, iov, 1, iov, 1, 0)
sys_refused("ptrace traceme", 101, 0, 0, 0, 0)
