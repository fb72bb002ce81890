"""A lock keeps a file to one process: the system lets go of it when the process ends, however."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCKLESS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems answer that cannot lock; there nobody is kept out."""


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
        raise ValueError(f"cannot write {path}: {error.strerror}.") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {path.parent}. Wait until it ends, or choose "
                "another --out."
            ) from None
        except OSError as error:
            if error.errno not in LOCKLESS:
                raise
        yield
