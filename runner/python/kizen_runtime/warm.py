"""What a warm interpreter has done before its job arrives: nothing here, and nothing it loads, belongs to an execution."""

import gc
import posix
import sys

from . import lazy_site

_MODULES = ("requests", "json", "ssl", "datetime", "uuid", "decimal", "random", "tempfile", "traceback", "linecache")

_loader = 0  # the id of the process that has loaded all this


def preload() -> None:
    """Imports what most steps use and the whole harness. Opens no socket and starts no thread."""
    global _loader
    _loader = posix.getpid()
    lazy_site.enable()
    for name in _MODULES:
        _import(name)
    if "requests" in sys.modules:
        for name in ("client", "http_record"):
            _import(f"kizen_runtime.{name}")
    for name in ("datatypes", "failure", "globals", "job"):
        _import(f"kizen_runtime.{name}")
    gc.collect()
    gc.freeze()  # what is loaded is never looked at again, and its pages stay shared after a fork


def renew() -> None:
    """Gives a job, or the fork that runs it, random numbers of its own."""
    for name in ("random", "numpy.random"):
        module = sys.modules.get(name)
        if module is not None:
            module.seed()
    openssl = sys.modules.get("_ssl")
    if openssl is not None and posix.getpid() == _loader:
        # It renews itself in a process of another id. In a namespace of its own a fork may have the same, and this costs 2 ms.
        openssl.RAND_add(posix.urandom(32), 32.0)


def _import(name: str) -> None:
    try:
        __import__(name)
    except ImportError:  # the step that needs it is told
        pass
