# files of the host cannot be read
for path in ("/etc/shadow", "/etc/gshadow", "/root", "/home", "/var/lib", "/var/log", "/run", "/boot", "/srv", "/mnt", "/sys/kernel", SECRET, PROJECT,
             "/root/.bashrc", "/root/.ssh", "/etc/sudoers", "/etc/ssl/private", "/etc/kizen", "/proc/kcore", "/proc/1/root/etc/shadow"):
    if os.path.isdir(path) and sys.base_prefix.startswith(path + "/"):
        way = sys.base_prefix[len(path):].split("/")[1]  # to this Python, which the step may read
        try: others = [name for name in os.listdir(path) if name != way]
        except OSError: continue
        if others: broken(path, "gave", others)
        continue
    refused(path, lambda: (os.listdir if os.path.isdir(path) else read)(path))
