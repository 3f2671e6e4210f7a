"""The one error that says something is wrong with what the user gave; all other exceptions are bugs."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Say in one line what is wrong with the input, naming it, and what to do instead."""


@contextmanager
def explained(problem: str, remedy: str = "repair or remove it",
              kind: type[Exception] = Exception) -> Iterator[None]:
    """Turn an error within the `with` into one line: "dog.txt cannot be read (Is a directory); ...".

    kind: by default any, since broken files raise all kinds of exceptions; wrap only their parsing.
    """
    try:
        yield
    except (InputError, BrokenPipeError):  # already one line; nobody reads the progress any more
        raise
    except kind as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{problem} ({' '.join(reason.split())}); {remedy}") from error
