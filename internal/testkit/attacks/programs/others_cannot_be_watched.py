# others cannot be watched
import fcntl, tempfile
for name, number, *arguments in ("inotify_init1", 294, 0), ("inotify_init", 253), ("inotify_add_watch", 254, -1, b"/usr/lib", 1):
    sys_refused(name, number, *arguments)
directory = os.open("/usr/lib", os.O_RDONLY)
refused("dnotify", lambda: fcntl.fcntl(directory, fcntl.F_NOTIFY, fcntl.DN_ACCESS), errno.EPERM)
# A lease blocks other processes that open the file, until its holder releases it.
lease = tempfile.TemporaryFile()
refused("a lease", lambda: fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK), errno.EPERM)
