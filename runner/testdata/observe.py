# What a step can see of where it runs: one log message for each observation, its name and what was seen.
import sys

modules_before = sorted(sys.modules)
meta_path_before = [type(finder).__name__ for finder in sys.meta_path]
globals_before = {name: type(value).__name__ for name, value in globals().items()}
path_before = list(sys.path)

import builtins

builtins_before = {name: repr(value)[:60].partition(" at 0x")[0] for name, value in vars(builtins).items()}

import os


def see(name, look):
    try:
        seen = look()
    except BaseException as error:
        seen = f"{type(error).__name__}: {error}"
    outputs.log(f"{name}={seen!r}")


def descriptors():
    kinds = {}
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}").partition(":[")[0]
            with open(f"/proc/self/fdinfo/{fd}") as info:
                flags = info.read().split("flags:\t")[1].split()[0]
            kinds[fd] = target.partition("/fd")[0], flags, os.get_inheritable(fd)
        except FileNotFoundError:
            pass
    return kinds


def status(*names):
    with open("/proc/self/status") as lines:
        return {line.split(":")[0]: line.split()[1:] for line in lines if line.split(":")[0] in names}


def traced(source):
    import traceback

    try:
        exec(compile(source, "script.py", "exec"), {})
    except BaseException:
        return traceback.format_exc()


def printed(name):
    import contextlib, io

    with contextlib.redirect_stdout(io.StringIO()) as text:
        print(getattr(builtins, name))
    return text.getvalue()[:300]


see("builtins", lambda: sorted(builtins_before.items()))
see("globals", lambda: globals_before)
see("__name__", lambda: (__name__, __file__, __doc__, __package__, __spec__, type(__loader__).__name__))
see("sys.argv", lambda: sys.argv)
see("sys.orig_argv", lambda: sys.orig_argv[:4] + sys.orig_argv[5:])
see("sys.flags", lambda: sys.flags)
see("sys.path", lambda: path_before)
see("sys.path_hooks", lambda: len(sys.path_hooks))
see("sys.meta_path", lambda: meta_path_before)
see("sys.modules", lambda: modules_before)
see("own modules", lambda: [name for name in ("__main__", "kizen", "inputs", "outputs") if name in modules_before])
see("prefixes", lambda: (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, sys.executable))
see("version", lambda: (sys.version, sys.implementation.name, sys.platform))
see("limits of the interpreter", lambda: (sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits()))
see("encodings", lambda: (sys.getdefaultencoding(), sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()))
see("hooks", lambda: [getattr(sys, name) is getattr(sys, f"__{name}__") for name in ("excepthook", "displayhook", "unraisablehook", "breakpointhook")])
see("tracing", lambda: (sys.gettrace(), sys.getprofile(), getattr(sys, "tracebacklimit", None), sys.is_finalizing()))
see("options", lambda: (sys.warnoptions, sys._xoptions, sys.dont_write_bytecode, sys.pycache_prefix, sys.getdlopenflags()))
for stream in ("stdin", "stdout", "stderr"):
    found = getattr(sys, stream)
    names = ("encoding", "errors", "line_buffering", "write_through", "newlines", "mode", "name", "closed")
    see(f"sys.{stream}", lambda: [(name, getattr(found, name, None)) for name in names] + [found.isatty(), found.fileno()])
see("stdin has", lambda: sys.stdin.read())

import signal

see("signals", lambda: [(int(number), str(signal.getsignal(number))) for number in signal.valid_signals()])
see("signals of the kernel", lambda: status("SigIgn", "SigCgt", "SigBlk", "SigPnd"))
see("timers", lambda: [signal.getitimer(which) for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)])
see("descriptors", descriptors)
see("cwd", os.getcwd)
see("umask", lambda: os.umask(os.umask(0o22)))
see("environment", lambda: sorted(os.environ.items()))
see("process id", os.getpid)
see("processes", lambda: (os.getppid(), os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()))
see("ids", lambda: (len(os.getresuid()), os.getresuid()[0] == os.getresuid()[2], len(set(os.getresgid())), os.getgroups()))
see("privileges", lambda: status("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Threads"))
see("priority", lambda: (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), sorted(os.sched_getaffinity(0))))
see("oom", lambda: open("/proc/self/oom_score_adj").read())
see("host name", lambda: os.uname().nodename)
see("folders", lambda: {path: sorted(os.listdir(path)) for path in ("/", "/tmp", "/dev", "/dev/shm", "/step", "/etc")})
see("writable", lambda: [path for path in ("/", "/tmp", "/dev/shm", "/step", "/etc", "/usr", "/proc/self/oom_score_adj") if os.access(path, os.W_OK)])

import resource

names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
see("resource limits", lambda: [(name, resource.getrlimit(getattr(resource, name))) for name in names])

import gc

see("garbage", lambda: (gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.callbacks, gc.garbage))
see("frozen", lambda: gc.get_freeze_count() > 0)

import locale
import time

see("locale", lambda: (locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(False), locale.localeconv()["decimal_point"]))
see("time zone", lambda: (time.tzname, time.timezone))

import threading

see("threads", lambda: [(t.name, t.daemon, t is threading.main_thread(), t is threading.current_thread()) for t in threading.enumerate()])
see("threads of the kernel", lambda: len(os.listdir("/proc/self/task")))
see("thread settings", lambda: (threading.stack_size(), threading.gettrace(), threading.excepthook is threading.__excepthook__))

import atexit
import contextvars
import decimal
import faulthandler
import linecache
import logging
import socket
import tempfile
import warnings

see("exit handlers", atexit._ncallbacks)
see("context", lambda: len(list(contextvars.copy_context())))
see("decimals", lambda: str(decimal.getcontext()))
see("faulthandler", faulthandler.is_enabled)
see("linecache", lambda: [name for name in linecache.cache if "script" in name])
see("logging", lambda: (logging.root.handlers, logging.root.level, logging.lastResort))
see("sockets", socket.getdefaulttimeout)
see("temporary files", tempfile.gettempdir)
see("warnings", lambda: [str(each) for each in warnings.filters])

import importlib.metadata
import importlib.util
import pkgutil
import site

see("find_spec", lambda: [getattr(importlib.util.find_spec(name), "origin", None) for name in ("requests", "json", "no_such_module")])
see("iter_modules", lambda: sorted({module.name for module in pkgutil.iter_modules()})[:200])
see("metadata", lambda: importlib.metadata.version("requests"))
see("site", lambda: (site.getsitepackages(), site.ENABLE_USER_SITE))
see("requests", lambda: (__import__("requests").__file__, str(__import__("inspect").signature(__import__("requests").get))))
see("multiprocessing", lambda: __import__("multiprocessing").get_start_method())
see("kizen", lambda: (repr(kizen.api), sorted(dir(kizen)), repr(inputs), repr(outputs), secrets))
see("source", lambda: (open(__file__).read(20), oct(os.stat(__file__).st_mode)))
for name in ("copyright", "credits", "license", "exit", "quit", "help"):
    see(f"printed {name}", lambda: printed(name))
see("traceback of quit(1)", lambda: traced("quit(1)"))
see("traceback of a missing module", lambda: traced("import no_such_module"))
see("traceback of an input", lambda: traced("1 / 0"))
