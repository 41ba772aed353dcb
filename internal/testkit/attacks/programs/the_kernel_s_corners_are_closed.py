# the kernel's corners are closed
for name, number in {"keyctl": 250, "add_key": 248, "request_key": 249, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "kexec_load": 246, "kexec_file_load": 320,
        "init_module": 175, "finit_module": 313, "delete_module": 176, "reboot": 169, "swapon": 167, "syslog": 103,
        "settimeofday": 164, "clock_settime": 227, "acct": 163, "quotactl": 179, "iopl": 172, "ioperm": 173, "modify_ldt": 154,
        "kcmp": 312, "pidfd_getfd": 438, "personality": 135, "fanotify_init": 300, "io_setup": 206}.items():
    sys_refused(name, number, -1, -1, -1, -1, -1)
