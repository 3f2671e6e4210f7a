"""Decide what is held out by a hash of its name: the decision is the same in every run and on every machine."""

from collections.abc import Sequence
from hashlib import sha256


def fraction(name: str) -> float:
    """Hash a name to a number in [0, 1): the same in every process and year, which Python's hash() is not."""
    letters = name.encode(errors="surrogatepass")  # a file name may hold bytes that are not text
    return int.from_bytes(sha256(letters).digest()[:6], "big") / 2**48


def train_and_held_out(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hold out a twentieth of the names by their hash; below 20 names, each is in both.

    A hash below 1/20 keeps a name held out as the folder grows. Both lists are in the order of the hashes: shuffled.
    """
    names = sorted(names, key=fraction)
    if len(names) < 20:
        return names, names
    count = max(1, sum(fraction(name) < 1 / 20 for name in names))
    return names[count:], names[:count]
