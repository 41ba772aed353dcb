"""Prepares a warm interpreter before its job arrives. It handles no data of an execution."""

import gc
import posix
import sys

from . import lazy_site

_MODULES = ("requests", "json", "ssl", "datetime", "uuid", "decimal", "random", "tempfile", "traceback", "linecache")

_loader = 0  # the id of the process that loaded everything


def preload() -> None:
    """Imports the whole harness and the modules that most steps use. Opens no socket and starts no thread."""
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
    gc.freeze()  # the collector never scans these objects again, so their pages stay shared after a fork


def renew() -> None:
    """Gives a job, or the fork that runs it, its own random numbers."""
    for name in ("random", "numpy.random"):
        module = sys.modules.get(name)
        if module is not None:
            module.seed()
    openssl = sys.modules.get("_ssl")
    if openssl is not None and posix.getpid() == _loader:
        # OpenSSL reseeds itself when the process ID changes. A fork in its own PID namespace may have the same ID, so
        # reseed OpenSSL here, which costs 2 ms.
        openssl.RAND_add(posix.urandom(32), 32.0)


def _import(name: str) -> None:
    try:
        __import__(name)
    except ImportError:  # a step that imports it sees the error itself
        pass
