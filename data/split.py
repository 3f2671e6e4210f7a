"""Tell the split of a file by a word in its name, or hold out a twentieth by a hash of the names."""

import re
from collections.abc import Mapping
from hashlib import sha256

TRAIN = ("train", "training", "trainval", "restval")
HELD_OUT = ("val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation", "t10k")
WORDS = dict.fromkeys(TRAIN, "train") | dict.fromkeys(HELD_OUT, "held-out")


def split_of_name(name: str) -> str | None:
    """Read a split off a name: "captions_val2014.json" is "held-out", as is "testImages".

    Returns None if it has no word for a split, or words for both.
    """
    words = (word.removesuffix("images") for word in re.findall("t10k|[a-z]+", name.lower()))
    kinds = {WORDS[word] for word in words if word in WORDS}
    return kinds.pop() if len(kinds) == 1 else None


def fraction(name: str) -> float:
    """Hash a name to a number in [0, 1), the same in every process and on every machine."""
    content = name.encode(errors="surrogatepass")  # a file name may hold bytes that are not text
    return int.from_bytes(sha256(content).digest()[:6], "big") / 2**48


def members(splits: Mapping[str, str | None], split: str) -> list[str]:
    """Choose the names of a split, shuffled by their hashes: the first few show all kinds.

    splits: name -> "train", "held-out" or None. If all are None, a twentieth is held out by the hash,
    so that a name stays held out as the folder grows; below 20 names, each is in both.
    """
    names = sorted(splits, key=fraction)
    if any(splits.values()):
        return [name for name in names if splits[name] == split]
    if len(names) < 20:
        return names
    count = max(1, sum(fraction(name) < 1 / 20 for name in names))
    return names[:count] if split == "held-out" else names[count:]
