"""The tokenizer: training, encoding, decoding, and the files it is read from."""

import gzip
import json
import os
import random

import pytest
import torch
from published_clip import FIRST_MERGES
from small_clip import CAPTIONS

import minclip
from minclip import InputError, Tokenizer, normalise


def test_ids_of_single_letters_are_those_of_the_published_vocabulary():
    encoded = Tokenizer([]).encode("A . 5 o ' & !", 9)
    assert encoded.tolist() == [[512, 320, 269, 276, 334, 262, 261, 256, 513]]


def test_merges_are_replayed_in_the_order_in_which_they_were_learned():
    tokenizer = Tokenizer([("b", "c"), ("a", "b"), ("a", "bc"), ("abc", "d</w>")])
    assert tokenizer.encode("abcd", 3).tolist() == [[516, 515, 517]]
    assert tokenizer.encode("abd", 4).tolist() == [[516, 513, 256 + 67, 517]]


def test_training_merges_the_most_frequent_pair_first():
    merges = Tokenizer.train(["aab aab", "aac"], 515).merges
    assert merges == [("a", "a")]
    # "aa" "b</w>" stands twice, "aa" "c</w>" once; after both every word is one token
    merges = Tokenizer.train(["aab aab", "aac"], 640).merges
    assert merges == [("a", "a"), ("aa", "b</w>"), ("aa", "c</w>")]


def test_training_counts_a_caption_as_often_as_it_stands_there():
    assert Tokenizer.train(["ab", "ab", "ab", "yz yz"], 515).merges == [("a", "b</w>")]


def test_training_counts_as_if_it_recounted_after_every_merge():
    words = {"".join(random.Random(seed).choices("abc", k=8)): 1 + seed % 3
             for seed in range(40)}
    slow, tokens = [], {word: minclip.tokenizer.split_bytes(word) for word in words}
    for _ in range(30):
        counts = {}
        for word, count in words.items():
            for pair in zip(tokens[word], tokens[word][1:]):
                counts[pair] = counts.get(pair, 0) + count
        slow.append(max(counts, key=lambda pair: (counts[pair], pair)))
        tokens = {word: minclip.tokenizer.merge(tokens[word], slow[-1]) for word in words}
    assert minclip.tokenizer.learn_merges(words, 30) == slow


def test_training_does_not_depend_on_the_order_of_the_captions(tokenizer):
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert Tokenizer.train(shuffled, 640).merges == tokenizer.merges
    assert Tokenizer.train(iter(shuffled), 640).fingerprint == tokenizer.fingerprint


def test_training_on_few_words_stops_when_every_word_is_one_token(tokenizer):
    assert 514 < tokenizer.vocab_size < 640
    assert tokenizer.encode(CAPTIONS, 9).shape == (64, 9)
    assert (tokenizer.encode(CAPTIONS, 9)[:, -1] == tokenizer.end).all()
    assert Tokenizer.train(CAPTIONS, 530).vocab_size == 530


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    assert Tokenizer.train(CAPTIONS, 514).merges == []
    with pytest.raises(InputError, match="514 or more"):
        Tokenizer.train(CAPTIONS, 513)


@pytest.mark.parametrize("text, words", [
    ("It's   5 o'clock &amp; RAINING!!", "it 's 5 o ' clock & raining !!"),
    ("&amp;lt;3 &amp;amp;amp;", "< 3 &"),
    ("<b> &amp;amp;amp;", "< b > & amp ;"),
    ("\t a\u00a0b\n\nc \u3000", "a b c"),
    ("12²½Ⅷ x2y", "1 2 ² ½ ⅷ x 2 y"),
    ("“they’re” here", "\" they 're \" here"),
    ("cafe\u0301 ÉCOLE", "caf\u00e9 école"),
    ("snake_case 一二 मानक", "snake _ case 一二 म ा नक"),
    ("half \ud800 pair \ud83d\ude00", "half \ufffd pair \U0001f600"),
    ("ﬁne ＡＢＣ　ﾊﾝ ŉ \x80\x93\x94", "fine abc ハン ' n €\"\""),
    ("red\x00dish \x1b[31mcircle\x1b[0m\ufeff", "reddish circle"),
    ("'ſ café", "'ſ café"),
    ("", ""), (" \n ", ""),
])
def test_normalise_cuts_words_as_documented(text, words):
    assert normalise(text) == words


def test_decoding_returns_the_normalised_text_for_any_unicode(tokenizer):
    generator = random.Random(0)
    special = "' 's ’ll &amp; &#39; &lt </w> <|endoftext|> \x00 \u200d ! ² İ ς".split(" ")
    special += [" ", "\n"]
    sources = (
        lambda: chr(generator.randrange(0x110000)),
        lambda: generator.choice(special),
        lambda: chr(generator.randrange(32, 127)),
        lambda: generator.choice(CAPTIONS[0].split()),
    )
    for _ in range(1500):
        text = "".join(generator.choice(sources)() for _ in range(generator.randrange(12)))
        row = tokenizer.encode(text, 128)[0]
        assert tokenizer.decode(row) == normalise(text), repr(text)
        assert (row == tokenizer.end).sum() == 1 and (row == tokenizer.start).sum() == 1


def test_a_special_token_in_a_caption_is_only_characters(tokenizer):
    row = tokenizer.encode("red <|endoftext|> circle <|startoftext|>", 48)[0]
    assert (row == tokenizer.end).sum() == 1 and (row == tokenizer.start).sum() == 1
    assert tokenizer.decode(row) == "red <|endoftext|> circle <|startoftext|>"


def test_decoding_stops_at_the_end_and_tells_padding_from_exclamation_marks(tokenizer):
    row = tokenizer.encode("red!", 8)[0]
    assert tokenizer.decode(row) == tokenizer.decode(row.tolist()) == "red !"
    assert tokenizer.decode([0, 0, 256, tokenizer.end, 0, 300]) == "!!!"
    assert tokenizer.decode(tokenizer.encode("€", 8)[0, 1:2]) == "\ufffd"  # one of three bytes


def test_rows_are_start_words_end_and_zeros(tokenizer):
    rows = tokenizer.encode(["red", "a red circle"], 6)
    red = tokenizer.ids["red</w>"]
    assert rows.dtype == torch.int64
    assert rows[0].tolist() == [tokenizer.start, red, tokenizer.end, 0, 0, 0]
    assert rows[1, [0, 2, 4, 5]].tolist() == [tokenizer.start, red, tokenizer.end, 0]
    assert torch.equal(tokenizer.encode("red", 6), rows[:1])
    assert tokenizer.end == tokenizer.vocab_size - 1 == tokenizer.start + 1
    assert tokenizer.encode([], 6).shape == (0, 6)


def test_a_caption_too_long_is_refused_with_limit_and_remedy(tokenizer):
    assert tokenizer.encode("red circle", 4).shape == (1, 4)
    with pytest.raises(InputError, match="takes 5 tokens .* limit is 4: shorten it, or pass trunc"):
        tokenizer.encode("red red circle", 4)


def test_truncating_keeps_the_first_tokens_and_makes_the_last_one_end(tokenizer):
    whole = tokenizer.encode("red green blue", 5)[0]
    cut = tokenizer.encode("red green blue", 4, truncate=True)[0]
    assert cut.tolist() == [*whole[:3].tolist(), tokenizer.end]
    assert torch.equal(tokenizer.encode("red green blue", 5, truncate=True)[0], whole)


def test_a_word_from_the_cache_is_encoded_like_a_new_one(tokenizer):
    fresh = Tokenizer(tokenizer.merges)
    assert torch.equal(fresh.encode("red redred red", 8), fresh.encode("red redred red", 8))
    assert fresh.cache["red"] == [fresh.ids["red</w>"]]


def test_saving_and_loading_gives_the_same_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    Tokenizer.train(["größe größe 猫猫 猫猫", *CAPTIONS], 640).save(path)
    first = Tokenizer.load(path)
    assert normalise("größe 猫猫") == first.decode(first.encode("größe 猫猫", 4)[0])
    tokenizer.save(path)
    again = Tokenizer.load(str(path))
    assert again.merges == tokenizer.merges
    assert again.fingerprint == tokenizer.fingerprint != first.fingerprint
    assert torch.equal(again.encode(CAPTIONS, 9), tokenizer.encode(CAPTIONS, 9))
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path):
    contents = "{", "[1]", "{}", '{"merges": ["a b c"]}', '{"merges": [3]}', '{"merges": ["猫 b"]}'
    for i, content in enumerate([*map(str.encode, contents), b"\x80"]):
        name = f"{i}.json"
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is not a tokenizer"):
            Tokenizer.load(tmp_path / name)
    packed = gzip.compress(b"#version: 0.2\ni n\n" * 50)
    flipped = packed[:20] + b"\xff" + packed[21:]
    for i, content in enumerate([packed[:-9], flipped, packed[:-8] + bytes(8), b"no gzip"]):
        (tmp_path / f"{i}.gz").write_bytes(content)
        with pytest.raises(InputError, match=f"{i}.gz is not a tokenizer"):
            Tokenizer.load(tmp_path / f"{i}.gz")


def test_a_tokenizer_that_cannot_be_opened_is_named_with_the_reason(tmp_path):
    (tmp_path / "tokenizer.json").mkdir()
    for path in (tmp_path / "missing.json", tmp_path / ("long" * 99), tmp_path):
        with pytest.raises(InputError, match=f"{tmp_path}/.*: [A-Z][a-z]") as refusal:
            Tokenizer.load(path)
        assert "\n" not in str(refusal.value)


# ---- Published merges: the first of CLIP's list ---------------------------------------------


@pytest.mark.parametrize("name", ["bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt",
                                  "merges.txt", "tokenizer.json", "folder"])
def test_published_merges_are_found_in_each_of_their_files(name, tmp_path):
    path = tmp_path / ("merges.txt" if name == "folder" else name)
    pairs = [tuple(line.split()) for line in FIRST_MERGES]
    if name == "tokenizer.json":
        model = {"merges": list(map(list, pairs)), "vocab": Tokenizer(pairs).ids}
        path.write_text(json.dumps({"model": model}))
    else:
        text = "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *FIRST_MERGES, ""]).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    tokenizer = Tokenizer.load(tmp_path if name == "folder" else path)
    assert tokenizer.merges == pairs
    row = tokenizer.encode("the <|endoftext|>", 5)[0].tolist()
    assert row == [522, 518, 523, 523, 0]  # a marker in a text is the id, as in the published code


def test_transformers_encodes_as_we_do_with_the_same_merges(tokenizer, tmp_path):
    """Left out is what it cleans only with ftfy: quotes, entities, control characters."""
    transformers = pytest.importorskip("transformers")
    ids = tokenizer.ids | {"<|startoftext|>": tokenizer.start, "<|endoftext|>": tokenizer.end}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    merges = ["#version: 0.2", *map(" ".join, tokenizer.merges), ""]
    (tmp_path / "merges.txt").write_text("\n".join(merges))
    theirs = transformers.CLIPTokenizer.from_pretrained(str(tmp_path))
    ours = Tokenizer.load(tmp_path)
    for text in ("A RED  circle!", "it's 12 stars² they'll", "naïve café 日本 😀 मानक",
                 "x <|endoftext|> y", "", "snake_case ... 3½"):
        expected = theirs(text)["input_ids"]
        assert ours.encode(text, len(expected))[0].tolist() == expected, text


def test_a_vocabulary_in_another_order_is_refused(tmp_path):
    (tmp_path / "merges.txt").write_text("#version: 0.2\ni n\nt h\n")
    (tmp_path / "vocab.json").write_text(json.dumps({"!": 0, "in": 513}))
    with pytest.raises(InputError, match="'in' another id"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text("[3]")
    with pytest.raises(InputError, match="merges.txt is not a tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(InputError, match="has no tokenizer: looked for tokenizer.json"):
        Tokenizer.load(tmp_path / "..")
