"""Decide what is held out by a hash of its name: the decision is the same in every run and on every machine."""

from hashlib import sha256


def fraction(name: str) -> float:
    """Hash a name to a number in [0, 1): the same in every process and year, which Python's hash() is not."""
    letters = name.encode(errors="surrogatepass")  # a file name may hold bytes that are not text
    return int.from_bytes(sha256(letters).digest()[:6], "big") / 2**48
