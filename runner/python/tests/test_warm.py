"""Tests the state that a warm interpreter renews before its job."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from sidecar import PYTHON

# A fork server makes processes in their own PID namespaces, so that all have the server's process id.
FORKS = """
import ctypes, os, ssl, sys
sys.path.insert(0, sys.argv[1])
from kizen_runtime import warm
libc, new_user, new_pids = ctypes.CDLL(None), 0x10000000, 0x20000000

def fork(*namespaces):
    for namespace in namespaces:
        if libc.unshare(namespace):
            os._exit(75)
    if os.fork() == 0:
        return True
    if status := os.waitstatus_to_exitcode(os.wait()[1]):
        os._exit(status)
    return False

if fork(new_user | new_pids):
    warm.preload()
    ssl.RAND_bytes(1)
    for _ in range(2):
        if fork():
            if fork(new_pids):
                warm.renew()
                print(os.getpid(), ssl.RAND_bytes(8).hex(), flush=True)
            os._exit(0)
    os._exit(0)
"""


def test_random_numbers_of_openssl_differ_between_forks_of_one_process_id() -> None:
    ended = subprocess.run([sys.executable, "-c", FORKS, str(PYTHON)], capture_output=True, text=True)
    if ended.returncode == 75 and not os.environ.get("KIZEN_TEST_REQUIRE"):
        pytest.skip("user namespaces are not available")
    assert ended.returncode == 0, ended.stderr
    (first_pid, first), (second_pid, second) = (line.split() for line in ended.stdout.splitlines())
    assert first_pid == second_pid and first != second
