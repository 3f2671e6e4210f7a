"""Turn errors in the user's input into one line; let every other exception keep its traceback.

A wrong flag, a broken file or a caption that is too long is for the user to correct: the package
that notices it raises its InputError, and the script ends with that line and exit code 2. Any other
exception is a bug, perhaps in code that a reader is changing, who needs to see where.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import data
import mindalle
import minclip
import minvqgan


class InputError(ValueError):
    """Say in one line what is wrong with the input, naming it, and what to do instead."""


USER_ERRORS = (InputError, data.InputError, minclip.InputError, minvqgan.InputError,
               mindalle.InputError)


@contextmanager
def file_errors() -> Iterator[None]:
    """Make an InputError of any OSError of this block, as of a full disk or a missing folder.

    torch.save, stopped by one, still tries to end its archive, which fails with a RuntimeError.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or str(cause)
        raise InputError(f"{cause.filename}: {reason}" if cause.filename else reason) from error


def one_line_errors(main: Callable[[], None], name: str | None = None) -> None:
    """Run a script. Exit codes: 2 for bad input, 130 after Ctrl-C, 1 where nobody reads the output."""
    name, code = name or Path(sys.argv[0]).name, 0
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    try:
        main()
        sys.stdout.flush()
    except USER_ERRORS as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as error:
        print(f"\n{name}: {error or 'interrupted'}", file=sys.stderr)
        code = 130
    except BrokenPipeError as error:
        ignore_output()
        print(f"{name}: the output was closed: {error}", file=sys.stderr)
        code = 1
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # Python's own way of ending aborts now and then: a thread of torch finds the interpreter gone
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        raise SystemExit(code)


def ignore_output() -> None:
    """Discard further output: Python would raise again when it flushes a closed pipe at exit."""
    if sys.stdout is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
