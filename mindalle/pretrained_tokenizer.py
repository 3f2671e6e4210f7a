"""Encode captions as minDALL-E does: byte pairs over characters [Sennrich 2016, sec. 3.2].

    "A red circle, [UNK]ž"
      words        a     red       circle           ,      [UNK]  ž
      characters   a</w> r e d</w> c i r c l e</w>  ,</w>  [UNK]  [UNK]
      merges       a</w> red</w>   circle</w>       ,</w>  [UNK]  [UNK]
      ids          58    121       129              65     1      1      0 0

A word starts as its characters; `</w>` on the last one marks the end of the word. The merges then
join neighbours into longer tokens, in the order in which they were learned. A character that the
vocabulary lacks becomes [UNK]. A caption has no start and no end token: it is cut to its length, or
filled up with [PAD].

This only reads the two files that minDALL-E publishes (the ids above are those of a smaller
vocabulary). Our own DALL·E reads captions through minclip/tokenizer.py.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from .errors import InputError

END_OF_WORD, PAD, UNKNOWN = "</w>", "[PAD]", "[UNK]"
SPECIAL = re.compile(r"(\[PAD\]|\[UNK\])")
# control, format, private use, surrogates; unassigned characters stay: a new emoji may be one
INVISIBLE = ("Cc", "Cf", "Co", "Cs")
SYMBOLS = "$+<=>^`|~"  # words of their own, though not punctuation in Unicode
IDEOGRAPHS = re.compile(  # those of the `tokenizers` library, with its gap from 2b820
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f"
    "\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f]"
)


def split_words(text: str) -> list[str]:
    """Clean a text and split it into words as BERT does, but keeping accents.

    Control and format characters are removed. White space separates words; each punctuation mark
    and each Chinese character is a word of its own; everything else is lower-cased.
    """
    cleaned = []
    for character in text:
        category = unicodedata.category(character)
        if category[0] == "Z" or character in "\t\n\r":
            cleaned.append(" ")
        elif category[0] == "P" or character in SYMBOLS or IDEOGRAPHS.match(character):
            cleaned.append(f" {character} ")
        elif category not in INVISIBLE and character != "\N{REPLACEMENT CHARACTER}":
            cleaned.append(character.lower())  # lower() of a Greek word would end in ς, not σ
    return "".join(cleaned).split()


class MinDALLETokenizer:
    """Encode captions as rows of ids, ... [PAD] [PAD], and decode them again.

    vocabulary  token -> id, with [PAD] and [UNK]
    merges      pairs of tokens, in the order in which they were learned
    """

    def __init__(self, vocabulary: dict[str, int], merges: Iterable[tuple[str, str]]):
        self.ids = dict(vocabulary)
        self.merges = [tuple(pair) for pair in merges]
        needed = {PAD, UNKNOWN}.union(*((*pair, "".join(pair)) for pair in self.merges))
        if missing := needed - self.ids.keys():
            raise InputError(
                f"the vocabulary lacks {min(missing)!r}, which the merges or the padding need")
        if sorted(self.ids.values()) != list(range(len(self.ids))):
            raise InputError(
                f"the {len(self.ids)} ids of the vocabulary are not 0, 1, 2, ..., each once")
        self.pad, self.unknown, self.vocab_size = self.ids[PAD], self.ids[UNKNOWN], len(self.ids)
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.tokens = sorted(self.ids, key=self.ids.get)  # id -> token
        self.cache: dict[str, list[int]] = {}  # word -> ids: the same words occur in most captions

    @classmethod
    def load(cls, path: str | PathLike) -> "MinDALLETokenizer":
        """Read ...vocab.json and the ...merges.txt beside it, both as published.

        path is the first of them, minDALL-E's folder `tokenizer`, or the folder `1.3B` around it.
        Raises InputError if a file is missing or damaged.
        """
        path = Path(path)
        if os.path.isdir(path):
            if os.path.isdir(path / "tokenizer"):
                path = path / "tokenizer"
            path = path / "bpe-16k-vocab.json"
        merges = path.with_name(path.name.replace("vocab.json", "merges.txt"))
        try:
            vocabulary = json.loads(path.read_text(encoding="utf-8"))
            lines = merges.read_text(encoding="utf-8").split("\n")  # and nowhere else: no splitlines
            pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
            return cls(vocabulary, ((first, second) for first, second in pairs))
        except OSError as error:
            raise InputError(f"{error.filename}: {error.strerror}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} and {merges.name} are damaged, or not minDALL-E's tokenizer: "
                             f"{error}") from error

    @property
    def fingerprint(self) -> str:
        """Identify this vocabulary by 12 hexadecimal digits, equal for equal ids and merges."""
        return hashlib.sha256(json.dumps([self.tokens, self.merges]).encode()).hexdigest()[:12]

    def encode(self, texts: str | Sequence[str], context_length: int) -> Tensor:
        """Encode captions as ids (b t) int64, t = context_length: cut, or padded with [PAD].

        One string is a batch of one. `[PAD]` and `[UNK]`, written like this in a caption, become
        those tokens.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows = []
        for text in texts:
            ids = [i for part in SPECIAL.split(text) for i in self._encode_part(part)]
            rows.append((ids + [self.pad] * context_length)[:context_length])
        return torch.tensor(rows, dtype=torch.int64).reshape(len(texts), context_length)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """Decode ids (t) without [PAD], a space after each word: "a [UNK]at" for "a ♞at"."""
        tokens = [self.tokens[i] for i in torch.as_tensor(ids).tolist() if i != self.pad]
        return "".join(tokens).replace(END_OF_WORD, " ").removesuffix(" ")

    def _encode_part(self, part: str) -> list[int]:
        """Encode one special token, or the text between two of them."""
        if SPECIAL.fullmatch(part):
            return [self.ids[part]]
        return [i for word in split_words(part) for i in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        """Replay the merges: the earliest learned first, and among equal pairs the leftmost."""
        if word not in self.cache:
            tokens = [token if token in self.ids else UNKNOWN
                      for token in (*word[:-1], word[-1] + END_OF_WORD)]
            while known := [(self.ranks[pair], i) for i, pair in enumerate(pairwise(tokens))
                            if pair in self.ranks]:
                _, i = min(known)
                tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
            self.cache[word] = [self.ids[token] for token in tokens]
        return self.cache[word]
