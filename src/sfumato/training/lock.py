"""A lock reserves a file for one process; the system releases it however the process ends."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfumato.errors import Refused

LOCKLESS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of file systems without locks; there `held` excludes no other process."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Within, `path` is locked: a second `held` of it fails, in this process or in another.

    Args:
        path: a file that is never replaced; made where it is missing.

    Raises:
        ValueError: it is locked already, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror}.") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"another process is training in {path.parent}. Wait until it ends, or choose "
                "another --out."
            ) from None
        except OSError as error:
            if error.errno not in LOCKLESS:
                raise
        yield
