"""Turn captions into integers by byte-pair encoding [Sennrich et al. 2016, sec. 3.2; CLIP sec. 2.4].

    "A red circle!"  --words-->   a     red       circle           !
                     --bytes-->   a</w> r e d</w> c i r c l e</w>  !</w>
                     --merges-->  a</w> red</w>   circle</w>       !</w>
                     --ids-->     start 320 513 518 256 end 0 0 0

A word starts as its UTF-8 bytes, the last of them marked `</w>`: the word ends here. Training joins the two
neighbours that occur most into a new token, over and over; encoding replays those merges in the same order.
Any text is bytes, so nothing is ever unknown: a word never seen in training only takes more tokens.

Ids stand in CLIP's order: 256 bytes, the same 256 with `</w>`, one id per merge, start, end. So its published
list of 48,894 merges, handed to `Tokenizer(merges)`, gives its published 49,408 ids.

Where we depart: a marker such as `<|endoftext|>` in a caption is read as the characters that it is, or else a
caption could end itself early (with published merges it is the id, as in the published code); of the repairs that
the published code leaves to the package ftfy we make all but one, that of mojibake: "cafÃ©" is not read as "café".
"""

import gzip
import hashlib
import html
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise, takewhile
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor

END_OF_WORD = "</w>"
MARKERS = ("<|startoftext|>", "<|endoftext|>")
PIECES = re.compile(  # marker | contraction | letters and numerals | anything else but space
    rf"{'|'.join(map(re.escape, MARKERS))}|'(?:[sſ]|t|re|ve|m|ll|d)|[^\W_]+|(?:[^\w\s]|_)+")
ENTITY = re.compile(r"&#?\w+;")
TERMINAL_COLOURS = re.compile("\x1b\\[[\\d;]*[a-zA-Z]")

# What ftfy mends letter by letter: quotes straightened; ligatures, full and half width as plain letters; the bytes
# 80 to 9F as Windows meant them; control characters dropped. The published merges were learnt on text so mended.
STRAIGHT = str.maketrans({**dict.fromkeys("‘’‚‛ʼ", "'"), **dict.fromkeys("“”„‟", '"')})
PLAIN = [*"ĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳﬀﬁﬂﬃﬄﬆ", chr(0x3000), *map(chr, range(0xFF01, 0xFFF0))]
CONTROLS = [*range(9), 11, *range(14, 32), 127, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
MENDED = str.maketrans({
    **STRAIGHT,
    **{ord(letter): unicodedata.normalize("NFKC", letter).translate(STRAIGHT) for letter in PLAIN},
    **{byte: (bytes([byte]).decode("cp1252", "ignore") or chr(byte)).translate(STRAIGHT) for byte in range(0x80, 0xA0)},
    **dict.fromkeys(CONTROLS, ""),
})
CLIP_MERGES = 48_894  # the published list goes on, CLIP's ids do not
FILES = ("tokenizer.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")

# CLIP's order of the bytes: first the 188 that print, as themselves, then the others, each as a character
# from 256 on. Spelt in these letters no token contains a space, so a merge is a line of text: "re d</w>".
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
LETTERS = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(OTHERS)}
BYTES = {letter: byte for byte, letter in LETTERS.items()}


def split_words(text: str) -> list[str]:
    """Clean a caption and cut it into the words that are encoded one by one, as CLIP's published code does.

    Cleaning: HTML entities are resolved as often as they were escaped (twice where a tag stands), letters MENDED,
    halves of a surrogate pair joined or made U+FFFD, accents composed (NFC), letters lower-cased.
    A word is a contraction ('s), a run of letters, a single numeral, or a run of anything else; white space
    only separates.
    """
    while "<" not in text and (plainer := ENTITY.sub(lambda entity: html.unescape(entity[0]), text)) != text:
        text = plainer  # with tags in it a text may well mean its entities
    text = TERMINAL_COLOURS.sub("", text).translate(MENDED)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = html.unescape(html.unescape(unicodedata.normalize("NFC", text))).lower()

    words = []
    for piece in PIECES.findall(text):
        if piece.isalpha() or not piece[0].isalnum():
            words.append(piece)
            continue
        # `re` takes numerals such as ² and ½ for letters; str.isalpha is exactly Unicode's class of letters
        for letters, run in groupby(piece, str.isalpha):
            words.extend(["".join(run)] if letters else run)
    return words


def normalise(text: str) -> str:
    """Return what survives of a text: decode(encode(text)) == normalise(text), for any text whatever.

    Encoding keeps words, not the gaps between them; each comes back as a space: "It's RED!" -> "it 's red !".
    """
    return " ".join(split_words(text))


def split_bytes(word: str) -> list[str]:
    """Spell a word with one token per UTF-8 byte, the last one marked: "red" -> ["r", "e", "d</w>"]."""
    letters = [LETTERS[byte] for byte in word.encode("utf-8")]
    return [*letters[:-1], letters[-1] + END_OF_WORD]


def spell(token: str) -> bytes:
    """Return the bytes that a token stands for, its mark as a space: "ed</w>" -> b"ed "."""
    letters = token.removesuffix(END_OF_WORD)
    return bytes(BYTES[letter] for letter in letters) + (b" " if letters != token else b"")


def merge(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of a pair, from left to right: ["a", "b", "c"], ("a", "b") -> ["ab", "c"]."""
    merged, i = [], 0
    while i < len(tokens):
        width = 2 if tuple(tokens[i : i + 2]) == pair else 1
        merged.append("".join(tokens[i : i + width]))
        i += width
    return merged


def learn_merges(word_counts: dict[str, int], limit: int) -> list[tuple[str, str]]:
    """Learn at most `limit` merges, the most frequent pair first [Sennrich et al. 2016, algorithm 1].

    A tie goes to the pair that is last in the alphabet, so that the order of the captions changes nothing.
    Stops early once every word is a single token.
    """
    words = [split_bytes(word) for word in word_counts]
    counts = list(word_counts.values())
    pair_counts = Counter()
    words_with = defaultdict(set)  # pair -> words where it was ever seen: a merge need not visit any others

    def count(index: int, sign: int) -> None:
        for pair in pairwise(words[index]):
            pair_counts[pair] += sign * counts[index]
            words_with[pair].add(index)

    for index in range(len(words)):
        count(index, +1)
    merges = []
    while len(merges) < limit and pair_counts:
        best, most = max(pair_counts.items(), key=itemgetter(1, 0))  # by count, then by the pair itself
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

    merges: pairs of tokens, in the order in which they were learnt
    markers: read MARKERS in a text as the ids `start` and `end`, as the published code does
    Public: `start`, `end` (always the highest id), `vocab_size`, `merges`, `fingerprint`.
    """

    def __init__(self, merges: Iterable[tuple[str, str]], markers: bool = False):
        self.merges = [tuple(pair) for pair in merges]
        letters = list(LETTERS.values())
        tokens = letters + [letter + END_OF_WORD for letter in letters] + list(map("".join, self.merges))
        self.start = len(tokens)
        self.end = self.start + 1
        self.vocab_size = self.end + 1
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.spelling = [spell(token) for token in tokens] + [b"", b""]  # start and end spell nothing
        self.cache: dict[str, list[int]] = {}  # word -> ids: captions repeat a few words over and over
        if markers:
            self.cache.update(zip(MARKERS, ([self.start], [self.end])))

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn merges from captions until there are `vocab_size` ids, or fewer if they hold too few words.

        Raises ValueError for a vocab_size too small for the bytes.
        """
        smallest = 256 + 256 + 2
        if vocab_size < smallest:
            raise ValueError(f"vocab_size {vocab_size} has no room for the bytes: choose {smallest} or more")
        word_counts = Counter()
        for caption, count in Counter(captions).items():  # equal captions are cut into words once
            for word in split_words(caption):
                word_counts[word] += count
        return cls(learn_merges(word_counts, vocab_size - smallest))

    @property
    def fingerprint(self) -> str:
        """Name this vocabulary in 12 hexadecimal digits: equal for equal merges, on any machine."""
        return hashlib.sha256("\n".join(map(" ".join, self.merges)).encode("utf-8")).hexdigest()[:12]

    def encode(self, texts: str | Sequence[str], context_length: int, truncate: bool = False) -> Tensor:
        """Encode captions as ids (b t) int64, t = context_length, each row start ... end and zeros after it.

        One string is a batch of one. A caption that is too long raises ValueError, unless `truncate` cuts it
        and makes its last id `end`.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows = torch.zeros(len(texts), context_length, dtype=torch.int64)
        for row, text in zip(rows, texts):
            ids = [self.start, *(i for word in split_words(text) for i in self._encode_word(word)), self.end]
            if len(ids) > context_length:
                if not truncate:
                    raise ValueError(
                        f"the caption {text!r} takes {len(ids)} tokens with its start and end, the limit is "
                        f"{context_length}: shorten it (in code, truncate=True cuts it)"
                    )
                ids = [*ids[: context_length - 1], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """Decode ids (t,) up to the first `end`, with one space between words; broken UTF-8 becomes U+FFFD.

        Whatever follows `end` is padding. Its 0 is also the id of "!", so only `end` tells them apart.
        """
        ids = takewhile(lambda i: i != self.end, torch.as_tensor(ids).tolist())
        return b"".join(self.spelling[i] for i in ids).decode("utf-8", "replace").removesuffix(" ")

    def save(self, path: str | os.PathLike) -> None:
        """Write the merges as JSON, to a file beside `path` that then takes its place: never half a file."""
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"merges": list(map(" ".join, self.merges))}, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Read what `save` wrote, or CLIP's published merges, from a file or the first of FILES in a folder.

        Published are OpenAI's bpe_simple_vocab_16e6.txt, packed or not, and Hugging Face's merges.txt (with its
        vocab.json) or tokenizer.json. Anything else raises ValueError.
        """
        path = Path(path)
        if path.is_dir():
            found = [path / name for name in FILES if (path / name).exists()]
            if not found:
                raise ValueError(f"{path} has no tokenizer: looked for {', '.join(FILES)}")
            path = found[0]
        try:
            text = (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8").read()
            ids = {}
            if path.suffix != ".json":  # merges alone, below a line about the version
                merges, published = text.splitlines()[1 : 1 + CLIP_MERGES], True
                if (path.parent / "vocab.json").exists():
                    ids = json.loads((path.parent / "vocab.json").read_text(encoding="utf-8"))
            else:
                content = json.loads(text)
                published = "merges" not in content
                model = content["model"] if published else content
                merges, ids = model["merges"], model.get("vocab", {})
            pairs = (line.split() if isinstance(line, str) else line for line in merges)
            tokenizer = cls(((first, second) for first, second in pairs), markers=published)
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is not a tokenizer: expected what Tokenizer.save wrote, or CLIP's merges") from error
        if moved := [token for token, i in ids.items() if tokenizer.ids.get(token, i) != i]:
            raise ValueError(f"{path} gives {moved[0]!r} another id than CLIP does: its text model cannot be ours")
        return tokenizer

    def _encode_word(self, word: str) -> list[int]:
        """Replay the merges on one word, the earliest learnt first."""
        if word not in self.cache:
            tokens = split_bytes(word)
            while len(tokens) > 1:
                best = min(pairwise(tokens), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
                if best not in self.ranks:
                    break
                tokens = merge(tokens, best)
            self.cache[word] = [self.ids[token] for token in tokens]
        return self.cache[word]
