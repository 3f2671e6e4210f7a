"""Encode captions as integers by byte-pair encoding [Sennrich et al. 2016; CLIP sec. 2.4].

    "A red circle!"  --words-->   a     red       circle           !
                     --bytes-->   a</w> r e d</w> c i r c l e</w>  !</w>
                     --merges-->  a</w> red</w>   circle</w>       !</w>
                     --ids-->     start 320 513 518 256 end 0 0 0

A word starts as its UTF-8 bytes; `</w>` marks the last one. Training repeatedly merges the most
frequent pair of neighbours into a new token; encoding replays those merges in the same order. Any
text is bytes, so there is no unknown word: a word never seen in training only takes more tokens.

Ids are in CLIP's order: 256 bytes, the same 256 with `</w>`, one id per merge, start, end. So
CLIP's 48,894 merges, passed to `Tokenizer(merges)`, give its published 49,408 ids.

Where we depart: a special token such as `<|endoftext|>` in a caption is read as plain characters,
since a caption could otherwise end itself early (with published merges it becomes its id, as in
the published code). Of the repairs that the published code leaves to the package ftfy we make all
but one, that of mojibake: "cafÃ©" is not read as "café".
"""

import gzip
import hashlib
import html
import json
import os
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, groupby, pairwise, takewhile
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor

from .errors import InputError

END_OF_WORD = "</w>"
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
PIECES = re.compile(  # special token | contraction | letters and numerals | others but space
    rf"{'|'.join(map(re.escape, SPECIAL_TOKENS))}|'(?:[sſ]|t|re|ve|m|ll|d)|[^\W_]+|(?:[^\w\s]|_)+")
ENTITY = re.compile(r"&#?\w+;")
TERMINAL_COLOURS = re.compile("\x1b\\[[\\d;]*[a-zA-Z]")

# The repairs of ftfy that act on single characters: quotes straightened; ligatures, full and half
# width as plain letters; the bytes 80 to 9F read as Windows-1252; control characters dropped.
STRAIGHT_QUOTES = str.maketrans({**dict.fromkeys("‘’‚‛ʼ", "'"), **dict.fromkeys("“”„‟", '"')})
COMPATIBILITY = [*"ĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳﬀﬁﬂﬃﬄﬆ", chr(0x3000), *map(chr, range(0xFF01, 0xFFF0))]
CONTROLS = [*range(9), 11, *range(14, 32), 127, *range(0x206A, 0x2070), 0xFEFF,
            *range(0xFFF9, 0xFFFD)]
REPAIRS = {ord(letter): unicodedata.normalize("NFKC", letter) for letter in COMPATIBILITY}
for byte in range(0x80, 0xA0):
    REPAIRS[byte] = bytes([byte]).decode("cp1252", "ignore") or chr(byte)
REPAIRS = {code: repaired.translate(STRAIGHT_QUOTES) for code, repaired in REPAIRS.items()}
REPAIRS = STRAIGHT_QUOTES | REPAIRS | dict.fromkeys(CONTROLS, "")
CLIP_MERGES = 48_894  # the published list is longer; CLIP has ids only for these
FILES = ("tokenizer.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz",
         "bpe_simple_vocab_16e6.txt")

# CLIP's order of the bytes: first the 188 printable ones, written as themselves, then the others,
# written as the characters from 256 on. So no token contains a space, and a merge is a line of
# text: "re d</w>".
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1),
             *range(ord("®"), ord("ÿ") + 1)]
UNPRINTABLE = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_TO_CHARACTER = ({byte: chr(byte) for byte in PRINTABLE}
                     | {byte: chr(256 + i) for i, byte in enumerate(UNPRINTABLE)})
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def split_words(text: str) -> list[str]:
    """Clean a caption and split it into words, as CLIP's published code does.

    Cleaning: HTML entities are resolved as often as they were escaped (twice if the text has a
    tag), characters replaced by REPAIRS, halves of a surrogate pair joined or replaced by U+FFFD,
    accents composed (NFC), letters lower-cased. A word is a contraction ('s), a run of letters, a
    single numeral, or a run of anything else; white space only separates.
    """
    escaped = None
    while "<" not in text and text != escaped:  # a text with tags may mean its entities literally
        text, escaped = ENTITY.sub(lambda entity: html.unescape(entity[0]), text), text
    text = TERMINAL_COLOURS.sub("", text).translate(REPAIRS)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = html.unescape(html.unescape(unicodedata.normalize("NFC", text))).lower()

    words = []
    for piece in PIECES.findall(text):
        if piece.isalpha() or not piece[0].isalnum():
            words.append(piece)
            continue
        # `re` counts numerals such as ² and ½ as letters; str.isalpha does not
        for letters, run in groupby(piece, str.isalpha):
            words.extend(["".join(run)] if letters else run)
    return words


def normalise(text: str) -> str:
    """Return what encoding keeps of a text: decode(encode(text)) == normalise(text), for any text.

    Encoding keeps the words but not the gaps between them: "It's RED!" -> "it 's red !".
    """
    return " ".join(split_words(text))


def split_bytes(word: str) -> list[str]:
    """Split a word into one token per UTF-8 byte: "red" -> ["r", "e", "d</w>"]."""
    characters = [BYTE_TO_CHARACTER[byte] for byte in word.encode("utf-8")]
    return [*characters[:-1], characters[-1] + END_OF_WORD]


def token_bytes(token: str) -> bytes:
    """Return the bytes of a token, END_OF_WORD as a space: "ed</w>" -> b"ed "."""
    characters = token.removesuffix(END_OF_WORD)
    space = b" " if characters != token else b""
    return bytes(CHARACTER_TO_BYTE[character] for character in characters) + space


def merge(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    """Merge every occurrence of a pair: ["a", "b", "c"], ("a", "b") -> ["ab", "c"]."""
    merged, i = [], 0
    while i < len(tokens):
        width = 2 if tuple(tokens[i : i + 2]) == pair else 1
        merged.append("".join(tokens[i : i + width]))
        i += width
    return merged


def learn_merges(word_counts: dict[str, int], limit: int) -> list[tuple[str, str]]:
    """Learn at most `limit` merges, the most frequent pair first [Sennrich et al., algorithm 1].

    A tie goes to the last pair in alphabetical order, so that the order of the captions changes
    nothing. Stops early once every word is a single token.
    """
    words = [split_bytes(word) for word in word_counts]
    counts = list(word_counts.values())
    pair_counts = Counter()
    words_with = defaultdict(set)  # pair -> words that ever contained it: a merge visits only those

    def count(index: int, sign: int) -> None:
        for pair in pairwise(words[index]):
            pair_counts[pair] += sign * counts[index]
            words_with[pair].add(index)

    for index in range(len(words)):
        count(index, +1)
    merges = []
    while len(merges) < limit and pair_counts:
        best, most = max(pair_counts.items(), key=itemgetter(1, 0))  # by count, then by the pair
        if most == 0:
            break
        merges.append(best)
        for index in words_with.pop(best):
            count(index, -1)
            words[index] = merge(words[index], best)
            count(index, +1)
    return merges


class Tokenizer:
    """Encode captions as rows of ids, start ... end 0 0 0, and decode them again.

    merges: pairs of tokens, in the order in which they were learned
    special_tokens: read SPECIAL_TOKENS in a text as `start` and `end`, as the published code does
    Public: `start`, `end` (always the highest id), `vocab_size`, `merges`, `fingerprint`.
    """

    def __init__(self, merges: Iterable[tuple[str, str]], special_tokens: bool = False):
        self.merges = [tuple(pair) for pair in merges]
        characters = list(BYTE_TO_CHARACTER.values())
        tokens = [*characters, *(character + END_OF_WORD for character in characters),
                  *map("".join, self.merges)]
        self.start = len(tokens)
        self.end = self.start + 1
        self.vocab_size = self.end + 1
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.token_bytes = [*map(token_bytes, tokens), b"", b""]  # start and end have none
        self.cache: dict[str, list[int]] = {}  # word -> ids: captions repeat the same few words
        if special_tokens:
            self.cache.update(zip(SPECIAL_TOKENS, ([self.start], [self.end])))

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn merges from captions until there are `vocab_size` ids, or nothing is left to merge.

        Raises InputError for a vocab_size too small for the bytes.
        """
        smallest = 256 + 256 + 2
        if vocab_size < smallest:
            raise InputError(f"vocab_size {vocab_size} has no room for the bytes: choose "
                             f"{smallest} or more")
        word_counts = Counter()
        for caption, count in Counter(captions).items():  # equal captions are split only once
            for word in split_words(caption):
                word_counts[word] += count
        return cls(learn_merges(word_counts, vocab_size - smallest))

    @property
    def fingerprint(self) -> str:
        """Return 12 hexadecimal digits that identify the vocabulary, equal for equal merges."""
        merges = "\n".join(map(" ".join, self.merges))
        return hashlib.sha256(merges.encode("utf-8")).hexdigest()[:12]

    def encode(self, texts: str | Sequence[str], context_length: int,
               truncate: bool = False) -> Tensor:
        """Encode captions as ids (b t) int64, t = context_length: start ... end, then zeros.

        One string is a batch of one. A caption that is too long raises InputError, unless
        `truncate` cuts it and makes its last id `end`.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows = []
        for text in texts:
            words = map(self._encode_word, split_words(text))
            ids = [self.start, *chain.from_iterable(words), self.end]
            if len(ids) > context_length:
                if not truncate:
                    raise InputError(f"the caption {text!r} takes {len(ids)} tokens with its start "
                                     f"and end, the limit is {context_length}: shorten it, or pass "
                                     "truncate=True")
                ids = [*ids[: context_length - 1], self.end]
            rows.append(ids + [0] * (context_length - len(ids)))
        return torch.tensor(rows, dtype=torch.int64).reshape(len(texts), context_length)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """Decode ids (t) up to the first `end`; broken UTF-8 becomes U+FFFD.

        What follows `end` is padding. Its 0 is also the id of "!", so only `end` separates them.
        """
        ids = takewhile(lambda i: i != self.end, torch.as_tensor(ids).tolist())
        text = b"".join(self.token_bytes[i] for i in ids).decode("utf-8", "replace")
        return text.removesuffix(" ")

    def save(self, path: str | os.PathLike) -> None:
        """Write the merges as JSON, to a temporary file that then replaces `path`."""
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            merges = list(map(" ".join, self.merges))
            json.dump({"merges": merges}, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Read what `save` wrote, or CLIP's published merges; of a folder, the first of FILES.

        Published are OpenAI's bpe_simple_vocab_16e6.txt, gzipped or not, and Hugging Face's
        merges.txt (with its vocab.json) or tokenizer.json. Anything else raises InputError.
        """
        if os.path.isdir(path):
            found = [name for name in FILES if os.path.exists(os.path.join(path, name))]
            if not found:
                raise InputError(f"{path} has no tokenizer: looked for {', '.join(FILES)}")
            path = os.path.join(path, found[0])
        path = Path(path)
        vocabulary = path if path.suffix == ".json" else path.with_name("vocab.json")
        try:
            opener = gzip.open if path.suffix == ".gz" else open
            text, ids = opener(path, "rt", encoding="utf-8").read(), {}
            if path.suffix != ".json":  # merges alone, below a line with the version
                merges, published = text.splitlines()[1 : 1 + CLIP_MERGES], True
                if vocabulary.exists():
                    ids = json.loads(vocabulary.read_text(encoding="utf-8"))
            else:
                content = json.loads(text)
                published = "merges" not in content
                model = content["model"] if published else content
                merges, ids = model["merges"], model.get("vocab", {})
            pairs = (line.split() if isinstance(line, str) else line for line in merges)
            tokenizer = cls(((first, second) for first, second in pairs), special_tokens=published)
            moved = [token for token, i in ids.items() if tokenizer.ids.get(token, i) != i]
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, gzip.BadGzipFile,
                zlib.error) as error:
            raise InputError(f"{path} is not a tokenizer: expected what Tokenizer.save wrote, or "
                             "CLIP's merges") from error
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        if moved:
            raise InputError(f"{vocabulary} gives {moved[0]!r} another id than CLIP does: its text "
                             "model cannot be ours")
        return tokenizer

    def _encode_word(self, word: str) -> list[int]:
        """Replay the merges on one word, the earliest learned first."""
        if word not in self.cache:
            tokens = split_bytes(word)
            while known := [pair for pair in pairwise(tokens) if pair in self.ranks]:
                tokens = merge(tokens, min(known, key=self.ranks.get))
            self.cache[word] = [self.ids[token] for token in tokens]
        return self.cache[word]
