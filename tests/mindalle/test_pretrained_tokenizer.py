"""minDALL-E's tokenizer gives the ids of its own library, and refuses damaged files."""

import json

import pytest
import torch

from mindalle import InputError, MinDALLETokenizer
from mindalle.pretrained_tokenizer import split_words
from published_dalle import PAIRS, TOKENS, publish_tokenizer


# The ids are those of minDALL-E's own tokenizer, tokenizers 0.23.3's CharBPETokenizer, on this vocabulary.
@pytest.mark.parametrize("text, ids", [
    ("a small red circle on the desert.", [58, 98, 121, 129, 92, 84, 126, 57]),
    ("A LARGE Pink ELEPHANT", [58, 96, 128, 130]),
    ("it's a man's hat, isn't it?", [131, 67, 60, 58, 168, 67, 60, 171, 65, 176, 67, 49, 131, 54]),
    ("   ", []),
    ("a\tred\ncat\r\nhere", [58, 121, 118, 28, 25, 36, 63]),
    ("café CAFÉ cafe\u0301", [119, 119, 85, 26, 25, 1]),  # accents stay, and are not composed
    ("日本 sign日本語", [64, 62, 163, 64, 62, 1]),  # a Chinese character is a word
    ("한국어", [1, 1, 1]),  # a Korean one is not
    ("a cat😀 👍🏽", [58, 85, 38, 1, 1, 1]),  # nor an emoji; each unknown character is one [UNK]
    ("$5 + 3 = 8 <b> ^_^ a|b ~`", [72, 66, 1, 74, *[1] * 8, 58, *[1] * 4]),
    ("“curly” — dash… ‘q’", [1, 23, 39, 36, 31, 76, 1, 80, 24, 21, 37, 48, 1, 1, 1, 1]),
    ("©®™ €£ § ¶ ¿que? «x»", [*[1] * 9, 117, 54, 1, 1, 1]),
    ("[PAD] [UNK] [pad] [unk]", [0, 1, 1, 35, 21, 79, 1, 1, 39, 33, 69, 1]),
    ("a[UNK]b", [58, 1, 1]),
    ("a\u00a0b\u2009c\u3000d\u200be", [58, 1, 1, 24, 63]),
    ("\u0000ctrl\u0007\ufffdx\u00ady", [23, 38, 36, 31, 1, 76]),
    ("İSTANBUL ẞ ΣΑΣ Σ", [29, 1, 160, 21, 33, 22, 39, 50, 1, 1, 1, 1, 1]),
    ("supercalifragilisticexpialidocious", [161, 35, 25, 36, 85, 31, 29, 143, 21, 27, 29, 31, 147, 38, 29, 23, 25, 1,
                                            35, 29, 21, 31, 29, 140, 106, 34, 39, 60]),
    ("a\u0301", [21, 1]),
])
def test_text_becomes_the_ids_of_mindalles_own_tokenizer(tmp_path, text, ids):
    tokenizer = MinDALLETokenizer.load(publish_tokenizer(tmp_path))
    assert tokenizer.encode(text, 64).tolist() == [ids + [0] * (64 - len(ids))]


# As the same library splits them; the vocabulary above has too few letters to show it.
@pytest.mark.parametrize("text, words", [
    ("ΣΑΣ İ ẞ Ünï", ["σας".replace("ς", "σ"), "i\u0307", "ß", "ünï"]),
    ("x² ½ 3.5%", ["x²", "½", "3", ".", "5", "%"]),
    ("日々〇カ한\uf900\U00020000b", ["日", "々〇カ한", "\uf900", "\U00020000", "b"]),
    ("a".join("\u3400\u9fff\ufaff\U0002a6df\U0002a700\U0002b81f\U0002b920\U0002ceaf\U0002f800\U0002fa1f"),
     [*"\u3400a\u9fffa\ufaffa\U0002a6dfa\U0002a700a\U0002b81fa\U0002b920a\U0002ceafa\U0002f800a\U0002fa1f"]),
    ("\U0002b820a\U0002b91f", ["\U0002b820a\U0002b91f"]),
    ("a".join("!$+<=>^`|~@_"), [*"!a$a+a<a=a>a^a`a|a~a@a_"]),
    ("a\x0bb\x0cc\x1cd\x85e\u180ef\ue000g", ["abcdefg"]),
    ("a\u2028b\u1680c", ["a", "b", "c"]),
    ("a\u0378b", ["a\u0378b"]),  # unassigned, as the newest emoji are to an older Python
    ("don’t_stop—now", ["don", "’", "t", "_", "stop", "—", "now"]),
])
def test_text_is_cut_into_words_as_by_mindalles_own_tokenizer(text, words):
    assert split_words(text) == words


def test_the_earliest_merge_goes_first_and_of_equal_ones_the_leftmost():
    tokens = ["[PAD]", "[UNK]", "a", "b", "a</w>", "bb", "ab", "aa", "aa</w>", "abb"]
    tokenizer = MinDALLETokenizer({token: i for i, token in enumerate(tokens)},
                          [("b", "b"), ("a", "b"), ("a", "a"), ("a", "a</w>"), ("a", "bb")])

    def split(word):
        return [tokens[i] for i in tokenizer.encode(word, 9)[0].tolist() if i]

    assert split("abba") == ["abb", "a</w>"]
    assert split("bbba") == ["bb", "b", "a</w>"]
    assert split("aaaaa") == ["aa", "aa", "a</w>"]
    assert split("aaaa") == ["aa", "aa</w>"]


def test_the_example_of_the_tokenizers_docstring_is_true(tmp_path):
    tokenizer = MinDALLETokenizer.load(publish_tokenizer(tmp_path))
    rows = tokenizer.encode(["A red circle, [UNK]ž", ""], 8)
    assert rows.dtype == torch.int64 and rows.tolist() == [[58, 121, 129, 65, 1, 1, 0, 0], [0] * 8]
    assert tokenizer.decode(rows[0]) == "a red circle , [UNK][UNK]" and tokenizer.decode(rows[1]) == ""
    assert tokenizer.encode("A red circle, [UNK]ž", 3).tolist() == [[58, 121, 129]]  # cut
    assert (tokenizer.vocab_size, tokenizer.pad, tokenizer.unknown) == (187, 0, 1)


def test_special_tokens_go_by_name_not_by_number():
    tokenizer = MinDALLETokenizer({"a</w>": 0, "[UNK]": 1, "[PAD]": 2}, [])
    assert tokenizer.encode("a ?", 4).tolist() == [[0, 1, 2, 2]] and tokenizer.decode([0, 1, 2, 2]) == "a [UNK]"


def test_a_tokenizer_loads_from_its_file_or_a_folder_around(tmp_path):
    folder = publish_tokenizer(tmp_path / "tokenizer")
    marks = {MinDALLETokenizer.load(path).fingerprint for path in (tmp_path, folder, folder / "bpe-16k-vocab.json")}
    assert len(marks) == 1 and len(min(marks)) == 12
    others = [MinDALLETokenizer.load(publish_tokenizer(folder, pairs=PAIRS[::-1])),
              MinDALLETokenizer.load(publish_tokenizer(folder, tokens=[*TOKENS[:2], *TOKENS[:1:-1]]))]
    assert len({*marks, *(other.fingerprint for other in others)}) == 3


@pytest.mark.parametrize("name, content, message", [
    ("vocab.json", b"{", "damaged"),
    ("vocab.json", b"[1, 2]", "damaged"),
    ("vocab.json", b'{"[PAD]": 0, "a": 1}', "lacks"),
    ("vocab.json", json.dumps({token: 7 for token in TOKENS}).encode(), "not 0, 1, 2"),
    ("vocab.json", json.dumps({token: str(i) for i, token in enumerate(TOKENS)}).encode(), "not 0, 1, 2"),
    ("merges.txt", b"#version: 0.2\na b c\n", "damaged"),
    ("merges.txt", b"#version: 0.2\na\n", "damaged"),
    ("merges.txt", b"h zz\n", "lacks 'hzz'"),
    ("merges.txt", b"\xff\xfe", "damaged"),
])
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path, name, content, message):
    (publish_tokenizer(tmp_path) / f"bpe-16k-{name}").write_bytes(content)
    with pytest.raises(InputError, match=f"bpe-16k-vocab.json and bpe-16k-merges.txt.*{message}") as error:
        MinDALLETokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_half_of_a_tokenizer_says_so(tmp_path):
    (publish_tokenizer(tmp_path) / "bpe-16k-merges.txt").unlink()
    with pytest.raises(InputError, match="bpe-16k-merges.txt: No such file"):
        MinDALLETokenizer.load(tmp_path)
