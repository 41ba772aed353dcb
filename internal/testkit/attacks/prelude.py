# Common to all programs. If an attack succeeds, its program reports this; otherwise it prints nothing.
import ctypes, errno, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def broken(*what): print("BROKEN:", *what, flush=True)
def refused(what, call, *wanted):
    try: got = call()
    except OSError as e:
        if wanted and e.errno not in wanted: broken(what, "failed otherwise:", e)
    else: broken(what, "gave", repr(got)[:200])
def sys_refused(what, number, *arguments, wanted=(errno.EPERM,)):
    ctypes.set_errno(0)
    got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if got != -1: broken(what, "gave", got)
    elif ctypes.get_errno() not in wanted: broken(what, "failed otherwise:", errno.errorcode.get(ctypes.get_errno()))
def read(path):
    with open(path, "rb") as f: return f.read(100)
