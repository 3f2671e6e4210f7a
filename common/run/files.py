"""Files that a crash must not halve, and folders that two processes must not write."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError, file_errors


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file beside `path`, then rename it over: a crash at any moment leaves the old one or the new one, whole.

    Raises InputError if it cannot be written, on a full disk say; the old file is then still there.
    """
    temporary = path.with_name(f"{path.name}.new")
    try:
        with file_errors():
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, InputError):
            kept = "the file from before is still there" if path.exists() else "nothing was saved"
            raise InputError(f"{path} could not be written ({error}); {kept}") from error
        raise


def lock(file: Any) -> bool:
    """Lock an open file until this process ends, in whatever way; False if another process has it locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True
