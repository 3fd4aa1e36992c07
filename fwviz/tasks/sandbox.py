"""Programs a model wrote, each in a process of its own: bounded in time, memory and files, cut off from the network."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile

from fwviz.types import FwvizError

WALL_SECONDS = 10.0  # of one program
# What a program finds itself in. First a network of its own in which there is nothing, not even this machine: Linux
# gives it to anybody with a new space of users (CLONE_NEWUSER | CLONE_NEWNET). Then limits that cannot be raised again
# on processor seconds, memory and files. One byte down the pipe says that all of this has been done.
_CUT = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000 | 0x40000000):
    os._exit(1)
"""
_GUARD = """
import os, resource, sys
for kind, most in ((resource.RLIMIT_CPU, 5), (resource.RLIMIT_AS, 512 << 20), (resource.RLIMIT_FSIZE, 1 << 20),
                   (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(kind, (most, most))
os.write(int(sys.argv[1]), b".")
os.close(int(sys.argv[1]))
exec(compile(sys.stdin.read(), "program", "exec"), {"__name__": "__main__"})
"""
_KNOCK = "import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2).sendall(b'here')\n"


def passes(program: str, *, cut_off: bool = True) -> bool:
    """Whether a program of Python runs to its end, in an empty folder and without the environment.

    With ``cut_off`` it reaches no network, not even other programs of this machine; sockets that lie in the file system
    stay. Raises FwvizError if that cannot be had.
    """
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as folder, open(reader, "rb") as guarded:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", (_CUT if cut_off else "") + _GUARD, str(writer)],
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "HOME": folder},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(writer,),
            )
        finally:
            os.close(writer)
        try:
            with contextlib.suppress(BrokenPipeError):
                process.communicate(program.encode(), timeout=WALL_SECONDS)
            passed = process.returncode == 0
        except subprocess.TimeoutExpired:
            passed = False
        finally:
            # The whole group, so that nothing it started outlives it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if guarded.read(1) != b".":
            raise FwvizError("a program could not be held in bounds on this machine: choose a task of another metric.")
        return passed


@functools.cache
def can_cut_off() -> bool:
    """Whether this machine lets a program be cut off from the network: tried once, with one that knocks at a door."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        try:
            reached = passes(_KNOCK.format(port=door.getsockname()[1]))
        except FwvizError:
            return False
        door.settimeout(0)
        try:
            door.accept()[0].close()
        except OSError:
            return not reached
        return False
