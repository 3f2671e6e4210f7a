"""Read texts: files in the encodings that editors and Excel save, and the captions in a cell."""

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import Any, TextIO


def open_text(path: Path) -> TextIO:
    """Open a text file in UTF-8, or in UTF-16 if it begins with that mark. Line ends are kept."""
    with open(path, "rb") as file:
        wide = file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE)
    if wide:
        return open(path, encoding="utf-16", errors="replace", newline="")
    # the surrogates keep a file name whose bytes are not UTF-8
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")


def as_texts(cell: Any) -> list[str]:
    """Return the captions in a cell, a text or a list of texts: stripped, without empty ones.

    Bytes that were not UTF-8 become U+FFFD; what is no text is dropped.
    """
    cells = cell if isinstance(cell, list) else [cell]
    texts = (re.sub("[\ud800-\udfff]", "\ufffd", text).strip() for text in cells if isinstance(text, str))
    return [text for text in texts if text]
