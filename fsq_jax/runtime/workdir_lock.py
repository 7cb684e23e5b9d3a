"""One training in a workdir at a time: WORKDIR/lock says whose it is.

The filesystem's own lock is let go of when its holder dies, however that was. Where a filesystem
has none, or another host's is not seen, the file's holder counts as alive while it is on this host
and its process is there, or while it goes on refreshing the file.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from fsq_jax.runtime import outputs
from fsq_jax.runtime.user_error import UserError

REFRESH_SECONDS = 5.0
WATCH_SECONDS = 3 * REFRESH_SECONDS  # in which another host's holder shows that it lives


def take(workdir: str) -> "WorkdirLock | None":
    """The lock of a workdir, which the first process of a run holds for all of them.

    The first makes the workdir, too, before others look at it: what one makes and removes to see
    whether it may write, another would miss.

    Raises:
      UserError: in every process, where another training has the workdir, or it can't be written
        to.
    """
    lock = refused = None
    if jax.process_index() == 0:
        try:
            outputs.check_folder(workdir)
            lock = WorkdirLock(workdir)
        except (UserError, OSError) as error:
            refused = error
    if jax.process_count() > 1:
        taken = multihost_utils.broadcast_one_to_all(np.int32(refused is None))
        if not taken and refused is None:
            refused = UserError(f"{workdir!r} can't be trained in; process 0 says why.")
    if refused is not None:
        raise refused
    if lock is None:  # every process writes its part of a checkpoint
        outputs.check_folder(workdir)
    return lock


class WorkdirLock:
    """Held from its making until `close`; the processes of one run share the first one's.

    Raises:
      UserError: with the holder's host and process, where another training has the workdir.
    """

    def __init__(self, workdir: str):
        self._path = os.path.join(os.path.abspath(workdir), "lock")
        self._made = not os.path.isdir(workdir)
        os.makedirs(workdir, exist_ok=True)
        self._file = open(self._path, "a+")  # noqa: SIM115
        try:
            self._take(workdir)
        except BaseException:
            self._file.close()
            raise
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Lets the workdir go, and leaves no folder that was made for the lock alone."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            os.remove(self._path)
        self._file.close()
        if self._made:
            with contextlib.suppress(OSError):  # there is something in it
                os.rmdir(os.path.dirname(self._path))

    def _take(self, workdir: str) -> None:
        locked = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                self._refuse(workdir)
            locked = False  # the filesystem has no locks
        if not os.path.exists(self._path) or os.stat(self._path).st_ino != self._inode():
            self._refuse(workdir)  # its holder has just let go of it, and another one took it
        holder = self._holder()
        if holder and holder.get("host") != socket.gethostname():
            if self._is_refreshed():
                self._refuse(workdir)
        elif holder and not locked and _is_running(holder):
            self._refuse(workdir)
        own = {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}
        self._file.truncate(0)
        self._file.write(json.dumps(own))
        self._file.flush()

    def _refuse(self, workdir: str) -> None:
        holder = self._holder()
        who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
        raise UserError(
            f"{workdir!r} is being trained in by {who}; wait for it, end it, or give another "
            "--workdir."
        )

    def _inode(self) -> int:
        return os.fstat(self._file.fileno()).st_ino

    def _holder(self) -> dict:
        """What the file says; {} where it was let go of, or says nothing sensible."""
        self._file.seek(0)
        try:
            holder = json.loads(self._file.read(4096))
            return {"host": str(holder["host"]), "pid": int(holder["pid"])} | dict(holder)
        except (ValueError, KeyError, TypeError, OSError):
            return {}

    def _is_refreshed(self) -> bool:
        """Whether somebody touches the file while it is looked at; clocks of hosts may differ."""
        first, until = os.stat(self._path).st_mtime_ns, time.monotonic() + WATCH_SECONDS
        while time.monotonic() < until:
            time.sleep(REFRESH_SECONDS / 5)
            if os.stat(self._path).st_mtime_ns != first:
                return True
        return False

    def _refresh(self) -> None:
        while not self._closed.wait(REFRESH_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _is_running(holder: dict) -> bool:
    """Whether the process is there, and is not another one that got its number."""
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return holder.get("began", "") == _began(holder["pid"])


def _began(pid: int) -> str:
    """When a process began, in clock ticks since the host's start; "" where /proc says nothing."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
