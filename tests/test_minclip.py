"""Claims about minclip, each exact or against a reference, each able to fail."""

import dataclasses
import gzip
import json
import math
import os
import pickle
import random
import struct
import zipfile
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import minclip
import seeded
from minclip import LOSSES, CLIP, CLIPConfig, InputError, Tokenizer, normalise, sigmoid_loss, softmax_loss
from minclip.layers import ACTIVATIONS, Block, attention_weights, convolutional_stem

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
CAPTIONS = [f"a {colour} {shape} on a black background" for colour in COLOURS for shape in SHAPES]
SMALL = CLIPConfig(
    image_size=16, patch_size=8, stem_width=0, vision_width=32, vision_layers=2, text_width=32, text_layers=2, embed_dim=16
)


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, 640)


@pytest.fixture
def model() -> CLIP:
    return CLIP(SMALL).eval()


@pytest.fixture(params=sorted(LOSSES))
def objective(request) -> str:
    """Every test that takes this runs once for each loss in the table."""
    return request.param


def with_objective(objective: str) -> CLIP:
    return CLIP(dataclasses.replace(SMALL, loss=objective)).eval()


def loss_of(model: CLIP, images: torch.Tensor, ids: torch.Tensor, same: torch.Tensor | None = None) -> torch.Tensor:
    return LOSSES[model.config.loss].loss(model.logits(*model(images, ids)), same)


def logits_of(model: CLIP, image: torch.Tensor, text: torch.Tensor, logit_scale: float) -> torch.Tensor:
    nn.init.constant_(model.logit_scale, logit_scale)
    return model.logits(image, text)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(16, 3, 16, 16) * 2 - 1


@pytest.fixture
def ids(tokenizer) -> torch.Tensor:
    return tokenizer.encode(CAPTIONS[:16], SMALL.context_length)


def gradients(model: CLIP) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def furthest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between two sets of gradients, in units of the first's largest entry."""
    assert first.keys() == second.keys()
    scale = max(gradient.abs().max() for gradient in first.values())
    return max((first[name] - second[name]).abs().max() / scale for name in first).item()


def furthest_of_any(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Return the largest relative difference between the gradients of one parameter, by their norms."""
    assert first.keys() == second.keys()
    return max(((first[name] - second[name]).norm() / first[name].norm()).item() for name in first)


# ---- Tokenizer -----------------------------------------------------------------------------------


def test_ids_of_single_letters_are_those_of_the_published_vocabulary():
    encoded = Tokenizer([]).encode("A . 5 o ' & !", 9)
    assert encoded.tolist() == [[512, 320, 269, 276, 334, 262, 261, 256, 513]]


def test_merges_are_replayed_in_the_order_in_which_they_were_learnt():
    tokenizer = Tokenizer([("b", "c"), ("a", "b"), ("a", "bc"), ("abc", "d</w>")])
    assert tokenizer.encode("abcd", 3).tolist() == [[516, 515, 517]]
    assert tokenizer.encode("abd", 4).tolist() == [[516, 513, 256 + 67, 517]]


def test_training_merges_the_most_frequent_pair_first():
    merges = Tokenizer.train(["aab aab", "aac"], 515).merges
    assert merges == [("a", "a")]
    # "aa" "b</w>" stands twice, "aa" "c</w>" once; after both every word is one token
    assert Tokenizer.train(["aab aab", "aac"], 640).merges == [("a", "a"), ("aa", "b</w>"), ("aa", "c</w>")]


def test_training_counts_a_caption_as_often_as_it_stands_there():
    assert Tokenizer.train(["ab", "ab", "ab", "yz yz"], 515).merges == [("a", "b</w>")]


def test_training_counts_as_if_it_recounted_every_pair_after_every_merge():
    words = {"".join(random.Random(seed).choices("abc", k=8)): 1 + seed % 3 for seed in range(40)}
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
    special = "' 's ’ll &amp; &#39; &lt </w> <|endoftext|> \x00 \u200d ! ² İ ς".split(" ") + [" ", "\n"]
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


def test_decoding_stops_at_the_end_and_so_tells_padding_from_exclamation_marks(tokenizer):
    row = tokenizer.encode("red!", 8)[0]
    assert tokenizer.decode(row) == tokenizer.decode(row.tolist()) == "red !"
    assert tokenizer.decode([0, 0, 256, tokenizer.end, 0, 300]) == "!!!"
    assert tokenizer.decode(tokenizer.encode("€", 8)[0, 1:2]) == "\ufffd"  # the first of its three bytes


def test_rows_are_start_words_end_and_zeros(tokenizer):
    rows = tokenizer.encode(["red", "a red circle"], 6)
    red = tokenizer.ids["red</w>"]
    assert rows.dtype == torch.int64
    assert rows[0].tolist() == [tokenizer.start, red, tokenizer.end, 0, 0, 0]
    assert rows[1, [0, 2, 4, 5]].tolist() == [tokenizer.start, red, tokenizer.end, 0]
    assert torch.equal(tokenizer.encode("red", 6), rows[:1])
    assert tokenizer.end == tokenizer.vocab_size - 1 == tokenizer.start + 1
    assert tokenizer.encode([], 6).shape == (0, 6)


def test_a_caption_too_long_is_refused_with_its_length_the_limit_and_the_remedy(tokenizer):
    assert tokenizer.encode("red circle", 4).shape == (1, 4)
    with pytest.raises(InputError, match="takes 5 tokens .* limit is 4: shorten it, or pass truncate=True"):
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
    for i, content in enumerate([packed[:-9], packed[:20] + b"\xff" + packed[21:], packed[:-8] + bytes(8), b"no gzip"]):
        (tmp_path / f"{i}.gz").write_bytes(content)
        with pytest.raises(InputError, match=f"{i}.gz is not a tokenizer"):
            Tokenizer.load(tmp_path / f"{i}.gz")


def test_a_tokenizer_that_cannot_be_opened_is_named_with_the_reason(tmp_path):
    (tmp_path / "tokenizer.json").mkdir()
    for path in (tmp_path / "missing.json", tmp_path / ("long" * 99), tmp_path):
        with pytest.raises(InputError, match=f"{tmp_path}/.*: [A-Z][a-z]") as refusal:
            Tokenizer.load(path)
        assert "\n" not in str(refusal.value)


# ---- Layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_attend_equals_torchs_scaled_dot_product_attention(causal):
    q, k, v = torch.randn(3, 2, 4, 7, 8)
    mask = torch.ones(7, 7, dtype=torch.bool).tril() if causal else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attention_weights(q, k, mask) @ v, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_block_equals_torchs_pre_normalised_encoder_layer(activation):
    ours = Block(32, 4, 128, activation)
    reference = nn.TransformerEncoderLayer(
        32, 4, 128, 0.0, ACTIVATIONS[activation], batch_first=True, norm_first=True
    )
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    names = {
        "ln_1": "norm1", "ln_2": "norm2", "mlp.expand": "linear1", "mlp.contract": "linear2",
        "attention.qkv.": "self_attn.in_proj_", "attention.out": "self_attn.out_proj",
    }
    renamed = {}
    for name, weight in ours.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        renamed[name.replace(prefix, names[prefix])] = weight
    reference.load_state_dict(renamed)
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(ours(x), reference(x), rtol=0, atol=1e-4)


def test_quick_gelu_is_near_gelu_but_not_equal_to_it():
    x = torch.linspace(-4, 4, 101)
    difference = (ACTIVATIONS["quick_gelu"](x) - ACTIVATIONS["gelu"](x)).abs().max()
    assert 0.01 < difference < 0.03


# ---- Model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset, parameters", [
    ("vit_b_32", 151_277_313), ("vit_b_16", 149_620_737),
    ("vit_l_14", 427_616_513), ("vit_l_14_336", 427_944_193),
])
def test_a_preset_has_exactly_as_many_parameters_as_the_published_model(preset, parameters):
    with torch.device("meta"):
        model = CLIP(getattr(CLIPConfig, preset)())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


def test_the_toy_model_is_the_default():
    assert CLIPConfig.tiny() == CLIPConfig()


def test_an_image_is_normalised_patched_and_read_at_the_class_token(images):
    """Compare with the same steps written out in plain indexing, for a model without blocks."""
    model = CLIP(SMALL)
    encoder = model.image_encoder
    encoder.transformer.blocks = nn.ModuleList()
    image = images[0]
    pixels = image * 0.5 + 0.5 - torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    pixels = pixels / torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    # without blocks the class token never meets the patches
    token = encoder.ln_post(encoder.ln_pre(encoder.class_embedding + encoder.positions[0]))
    torch.testing.assert_close(model.encode_image(images), (token @ encoder.projection).expand(16, -1))

    seen = []
    encoder.ln_pre.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.encode_image(images)
    right_of_first = torch.einsum("dchw,chw->d", encoder.patch_embedding.weight, pixels[:, :8, 8:])
    torch.testing.assert_close(seen[0][0, 2], right_of_first + encoder.positions[2], rtol=0, atol=1e-5)


def test_a_stem_doubles_its_channels_as_it_halves_the_picture():
    channels = [layer.out_channels for layer in convolutional_stem(8, 24, 16) if isinstance(layer, nn.Conv2d)]
    assert channels == [8, 16, 32, 24]


def test_a_stem_makes_one_token_of_each_patch_and_looks_beyond_its_edge():
    for patch in (2, 4, 8):
        stem = convolutional_stem(16, 24, patch)
        pixels = torch.randn(1, 3, 16, 16)
        tokens = stem(pixels)
        assert tokens.shape == (1, 24, 16 // patch, 16 // patch) and len(stem) == 3 * patch.bit_length() - 5
        pixels[:, :, patch - 1, patch - 1] += 1  # in the first patch, at the corner where four meet
        assert (stem(pixels) - tokens)[0, :, 1, 1].abs().max() > 1e-4


def text_outputs(model: CLIP, ids: torch.Tensor) -> torch.Tensor:
    """Return what the text encoder knows at every position, (b t d)."""
    seen = []
    ln_final = model.text_encoder.ln_final
    handle = ln_final.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.encode_text(ids)
    handle.remove()
    return seen[0]


def test_a_later_token_changes_nothing_before_it(model, ids):
    changed = ids.clone()
    changed[:, 5] = 300
    before, after = text_outputs(model, ids), text_outputs(model, changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:8], after[:, 5:8])


def test_equal_tokens_differ_by_their_positions_alone(model):
    ids = torch.full((1, 8), 300)
    assert not torch.allclose(text_outputs(model, ids)[:, 1:], text_outputs(model, ids)[:, :-1], atol=1e-3)
    nn.init.zeros_(model.text_encoder.positions)
    torch.testing.assert_close(text_outputs(model, ids)[:, 1:], text_outputs(model, ids)[:, :-1])


def test_without_the_causal_mask_the_future_leaks(model, ids, monkeypatch):
    monkeypatch.setattr("minclip.layers.attention_weights", lambda q, k, mask=None: attention_weights(q, k))
    changed = ids.clone()
    changed[:, 5] = 300
    assert not torch.allclose(text_outputs(model, ids)[:, :5], text_outputs(model, changed)[:, :5])


def test_images_are_read_without_a_mask(model, images):
    changed = images.clone()
    changed[:, :, 8:, 8:] = 0
    # the class token comes first, and yet sees the last patch
    assert not torch.allclose(model.encode_image(images), model.encode_image(changed))


def test_what_follows_the_end_changes_nothing(model, ids, tokenizer):
    features = model.encode_text(ids)
    assert (ids[:, 9:] == 0).all()
    torch.testing.assert_close(model.encode_text(ids[:, :9]), features)
    padded = ids.clone()
    padded[:, 9:] = 123
    torch.testing.assert_close(model.encode_text(padded), features)


def test_a_caption_is_pooled_at_its_end(model, ids, tokenizer):
    at_end = text_outputs(model, ids)[torch.arange(16), (ids == tokenizer.end).nonzero()[:, 1]]
    torch.testing.assert_close(model.encode_text(ids), at_end @ model.text_encoder.projection)


def test_forward_normalises_what_encode_does_not(model, images, ids):
    for unit, raw in zip(model(images, ids), (model.encode_image(images), model.encode_text(ids))):
        torch.testing.assert_close(unit.norm(dim=-1), torch.ones(16))
        torch.testing.assert_close(unit * raw.norm(dim=-1, keepdim=True), raw)
        assert not torch.allclose(raw.norm(dim=-1), torch.ones(16), atol=0.1)


def test_the_weights_start_at_the_published_scales():
    model = CLIP(CLIPConfig(vision_width=256, vision_layers=4, text_width=256))
    text, image = model.text_encoder, model.image_encoder
    block = image.transformer.blocks[0]
    expected = [
        (text.token_embedding.weight, 0.02), (text.positions, 0.01), (text.projection, 256**-0.5),
        (image.class_embedding, 256**-0.5), (image.positions, 256**-0.5), (image.projection, 256**-0.5),
        (block.attention.qkv.weight, 256**-0.5), (block.attention.out.weight, 256**-0.5 * 8**-0.5),
        (block.mlp.expand.weight, 512**-0.5), (block.mlp.contract.weight, 256**-0.5 * 8**-0.5),
    ]
    for weight, std in expected:
        assert weight.std().item() == pytest.approx(std, rel=0.15)
    assert block.mlp.expand.bias.abs().max() == 0
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_the_model_runs_under_bfloat16_autocast_and_hands_out_float32(model, images, ids):
    with torch.autocast("cpu", torch.bfloat16):
        features = model(images, ids)
        logits = model.logits(*features)
        losses = [objective.loss(logits, None) for objective in LOSSES.values()]
    exact = model(images, ids)
    assert all(tensor.dtype == torch.float32 for tensor in (*features, logits, *losses))
    torch.testing.assert_close(features, exact, rtol=0, atol=0.05)
    assert torch.equal(logits, model.logits(*features))
    assert [loss.item() for loss in losses] == [objective.loss(logits, None).item() for objective in LOSSES.values()]


@pytest.mark.parametrize("change, remedy", [
    ({"patch_size": 5}, "choose a patch_size that divides"), ({"image_size": 30, "patch_size": 5}, "choose stem_width 0"),
    ({"stem_width": -1}, "stem_width is -1: choose 0 or more"),
    ({"text_heads": 3}, "text_heads 3: choose one"),
    ({"vision_width": 130}, "vision_heads 4: choose one"), ({"activation": "relu"}, "quick_gelu or gelu"),
    ({"text_layers": 0}, "text_layers is 0: choose 1 or more"), ({"loss": "triplet"}, "'triplet' is unknown: choose softmax or"),
    ({"vision_width": 64.0}, "vision_width is 64.0: choose 1 or more .int"), ({"text_width": "64"}, "text_width is '64': choose"),
    ({"vision_mlp_ratio": math.nan}, "vision_mlp_ratio is nan"), ({"vision_mlp_ratio": math.inf}, "vision_mlp_ratio is inf"),
])
def test_a_config_that_makes_no_sense_is_refused_with_the_remedy(change, remedy):
    with pytest.raises(InputError, match=remedy):
        CLIPConfig(**change)


def test_the_help_of_a_field_lists_every_entry_of_its_table():
    for field in dataclasses.fields(CLIPConfig):
        assert all(name in field.metadata["help"] for name in {"loss": LOSSES, "activation": ACTIVATIONS}.get(field.name, ()))


def test_inputs_of_another_size_are_refused_as_mistakes_of_the_caller(model, images, ids):
    for mistake, remedy in ((lambda: model.encode_image(images[:, :, :8]), "resize"),
                            (lambda: model.encode_text(torch.cat((ids, ids), dim=1)), "context_length")):
        with pytest.raises(ValueError, match=remedy) as refusal:
            mistake()
        assert not isinstance(refusal.value, InputError)


# ---- Losses: what holds for every entry of the table --------------------------------------------


def test_the_first_loss_is_near_that_of_cosine_zero(objective, tokenizer):
    """Directions drawn in 128 dimensions have cosines of 0 ± 0.09; four of these, times SigLIP's scale 10, are 3.5 of 10."""
    model = CLIP(CLIPConfig(loss=objective))
    images, ids = torch.rand(64, 3, 32, 32) * 2 - 1, tokenizer.encode(CAPTIONS, 16)
    expected = LOSSES[objective].loss(torch.full((64, 64), LOSSES[objective].logit_bias or 0.0), None)
    assert loss_of(model, images, ids).item() == pytest.approx(expected.item(), rel=0.35)


def test_a_model_has_the_temperature_and_the_bias_of_its_loss_and_no_other(objective):
    state, entry = with_objective(objective).state_dict(), LOSSES[objective]
    assert state["logit_scale"] == torch.tensor(entry.logit_scale)
    assert ("logit_bias" in state) == (entry.logit_bias is not None) and state.get("logit_bias") == entry.logit_bias
    assert all(state[name].shape == () for name in state if name.startswith("logit"))


def test_a_seed_gives_the_same_encoders_whatever_the_loss(objective):
    torch.manual_seed(5)
    first, after = CLIP(SMALL).state_dict(), torch.rand(1)
    torch.manual_seed(5)
    second = with_objective(objective).state_dict()
    assert after == torch.rand(1) and first.keys() - second.keys() == set()
    assert all(torch.equal(first[name], second[name]) for name in first if not name.startswith("logit"))


def test_a_loss_is_lowest_for_the_right_pairs(objective):
    model, concepts = with_objective(objective), torch.eye(4)
    losses = {order: LOSSES[objective].loss(model.logits(concepts, concepts[list(order)]), None).item()
              for order in permutations(range(4))}
    assert all(losses[0, 1, 2, 3] < losses[order] - 0.1 for order in losses if order != (0, 1, 2, 3))


def test_the_order_of_the_batch_changes_no_loss(objective):
    logits, order = 3 * torch.randn(6, 6), torch.tensor([3, 0, 5, 1, 4, 2])
    for same in (None, minclip.same_caption(torch.tensor([[1], [2], [1], [3], [2], [1]]))):
        permuted = None if same is None else same[order][:, order]
        torch.testing.assert_close(LOSSES[objective].loss(logits[order][:, order], permuted), LOSSES[objective].loss(logits, same))


def test_equal_captions_are_pushed_apart_only_when_counted_as_wrong(objective):
    concepts = torch.eye(4)[[0, 0, 0, 1]]
    same = minclip.same_caption(concepts)
    for right, pushed in ((same, False), (None, True)):
        image = concepts.clone().requires_grad_()
        text = concepts.clone()
        text[1, 2] = 1e-3  # without this the push is there, but falls along the vectors themselves
        LOSSES[objective].loss(logits_of(with_objective(objective), image, text, math.log(100)), right).backward()
        assert (image.grad[0, 2].item() > 1e-3) == pushed  # a step down the gradient moves the image away


def test_without_same_only_the_diagonal_is_right(objective):
    logits = torch.randn(6, 6)
    loss = LOSSES[objective].loss
    assert torch.equal(loss(logits, None), loss(logits, torch.eye(6, dtype=torch.bool)))


def test_the_scale_never_counts_for_more_than_a_hundred(objective):
    image, text = F.normalize(torch.randn(2, 6, 8), dim=-1)
    model, loss = with_objective(objective), LOSSES[objective].loss
    at_limit = loss(logits_of(model, image, text, math.log(100)), None)
    torch.testing.assert_close(loss(logits_of(model, image, text, 9.0), None), at_limit)
    assert loss(logits_of(model, image, text, 4.5), None) != at_limit


def test_a_clamped_temperature_can_learn_again(objective, images, ids):
    model = with_objective(objective)
    for start, expected in ((9.0, math.log(100)), (2.0, 2.0)):
        nn.init.constant_(model.logit_scale, start)
        model.clamp_temperature()
        assert model.logit_scale.item() == pytest.approx(expected)
    nn.init.constant_(model.logit_scale, 9.0)
    loss_of(model, images, ids).backward()
    assert model.logit_scale.grad.item() == 0  # beyond the limit there is nothing to learn from
    model.zero_grad()
    model.clamp_temperature()
    loss_of(model, images, ids).backward()
    assert model.logit_scale.grad.item() != 0


@pytest.mark.parametrize("chunks", [1, 4, 5])
def test_accumulated_gradients_equal_those_of_the_whole_batch(objective, images, ids, chunks):
    model = with_objective(objective)
    ids = ids[[*range(12), 0, 1, 2, 2]]  # some captions twice
    same = minclip.same_caption(ids)
    whole = loss_of(model, images, ids, same)
    whole.backward()
    expected = gradients(model)
    model.zero_grad()
    loss = minclip.accumulated_backward(model, images, ids, chunks, same)
    assert furthest(expected, gradients(model)) < 1e-5 and furthest_of_any(expected, gradients(model)) < 1e-4
    assert gradients(model)["logit_scale"].item() == pytest.approx(expected["logit_scale"].item(), rel=1e-5)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6) and not loss.requires_grad


@pytest.mark.parametrize("chunks", [1, 4, 5])
def test_accumulated_gradients_equal_those_of_the_whole_batch_under_autocast(objective, images, ids, chunks):
    """As far as bfloat16 can tell: it rounds by up to 2^-9 = 0.2 %, and chunks of other sizes round otherwise."""
    model = with_objective(objective)
    ids = ids[[*range(12), 0, 1, 2, 2]]
    same = minclip.same_caption(ids)
    with torch.autocast("cpu", torch.bfloat16):
        whole = loss_of(model, images, ids, same)
        whole.backward()
    expected = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = minclip.accumulated_backward(model, images, ids, chunks, same)
    assert furthest_of_any(expected, gradients(model)) < 0.05
    assert loss.item() == pytest.approx(whole.item(), rel=0.01, abs=0.01)


def test_accumulated_gradients_reach_every_weight_under_autocast(objective, images, ids):
    """Autocast keeps the weights that it has cast; those cast without a graph must not serve again."""
    model = with_objective(objective)
    minclip.accumulated_backward(model, images, ids, 4)
    expected = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        minclip.accumulated_backward(model, images, ids, 4)
    assert furthest(expected, gradients(model)) < 0.1


def test_a_model_survives_saving_with_its_loss_temperature_and_bias(objective, images, ids, tmp_path):
    model = with_objective(objective)
    for i, name in enumerate(name for name in model.state_dict() if name.startswith("logit")):
        nn.init.constant_(model.get_parameter(name), 1.5 - i)
    torch.save(checkpoint(model), tmp_path / "clip.pt")
    loaded = minclip.load(tmp_path / "clip.pt")
    assert loaded.config == model.config and loaded.config.loss == objective
    assert torch.equal(loaded.logits(*loaded(images, ids)), model.logits(*model(images, ids)))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_every_loss_learns_one_batch_by_heart(objective, images, ids):
    model = with_objective(objective).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(500):  # 190 were the most that six seeds took
        loss = loss_of(model, images, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.clamp_temperature()
        if step % 10 == 0 and minclip.recall_at_k(*model(images, ids), 1) == (1.0, 1.0):
            break
    assert minclip.recall_at_k(*model(images, ids), 1) == (1.0, 1.0)


# ---- Losses: each against its paper --------------------------------------------------------------


def test_the_first_loss_is_about_the_logarithm_of_the_batch(tokenizer):
    model = CLIP(CLIPConfig())
    images, ids = torch.rand(64, 3, 32, 32) * 2 - 1, tokenizer.encode(CAPTIONS, 16)
    loss = softmax_loss(model.logits(*model(images, ids)))
    assert loss.item() == pytest.approx(math.log(64), rel=0.1)


def test_the_softmax_loss_is_that_of_the_papers_pseudocode(model):
    image, text = F.normalize(torch.randn(2, 6, 8), dim=-1)
    logits = image @ text.T * math.exp(1.5)
    labels = torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(softmax_loss(logits_of(model, image, text, 1.5)), expected)
    torch.testing.assert_close(softmax_loss(logits_of(model, text, image, 1.5)), expected)


def test_the_sigmoid_loss_is_the_sum_over_all_pairs_that_the_paper_writes_down():
    logits = 3 * torch.randn(5, 5)
    repeated = minclip.same_caption(torch.tensor([[1], [2], [1], [3], [2]]))
    for same in (None, repeated):
        expected = 0.0
        for i in range(5):
            for j in range(5):
                right = i == j if same is None else same[i, j].item()
                expected -= math.log(1 / (1 + math.exp(-(1 if right else -1) * logits[i, j].item()))) / 5
        assert sigmoid_loss(logits, same).item() == pytest.approx(expected, rel=1e-5)
    model = with_objective("sigmoid")
    image, text = F.normalize(torch.randn(2, 6, 8), dim=-1)
    torch.testing.assert_close(model.logits(image, text), 10 * image @ text.T - 10)


def test_the_losses_of_an_untrained_model_and_of_a_guess_are_those_of_the_docstring():
    zeros, repeated = torch.zeros(128, 128), minclip.same_caption(torch.arange(128).unsqueeze(1) // 16)
    assert softmax_loss(zeros).item() == pytest.approx(math.log(128)) == pytest.approx(4.85, abs=0.005)
    assert sigmoid_loss(zeros - 10).item() == pytest.approx(10.01, abs=0.005)
    assert sigmoid_loss(zeros - 10, repeated).item() == pytest.approx(160, abs=0.01)
    guess = math.log(128) + 127 * math.log(128 / 127)
    assert sigmoid_loss(zeros - math.log(127)).item() == pytest.approx(guess, rel=1e-5) == pytest.approx(5.85, abs=0.005)
    assert all(sigmoid_loss(zeros - math.log(127) + shift).item() > guess for shift in (-0.1, 0.1))


def test_the_least_loss_with_repeated_captions_is_the_entropy_of_the_targets_for_softmax_and_zero_for_sigmoid():
    concepts = torch.eye(8)[torch.arange(128) // 16]
    same = minclip.same_caption(concepts)
    logits = 100 * concepts @ concepts.T - 50
    assert softmax_loss(logits, same).item() == pytest.approx(math.log(16), abs=1e-5)
    assert sigmoid_loss(logits, same).item() == pytest.approx(0, abs=1e-5)


def test_equal_captions_are_found():
    ids = torch.tensor([[1, 2, 9], [1, 3, 9], [1, 2, 9]])
    assert minclip.same_caption(ids).int().tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_equal_captions_share_the_target(model):
    """Two captions, three times and once: the best possible loss is the entropy of the targets, 3/4 ln 3."""
    concepts = torch.eye(4)[[0, 0, 0, 1]]
    same = minclip.same_caption(concepts)
    loss = softmax_loss(logits_of(model, concepts, concepts, math.log(100)), same)
    assert loss.item() == pytest.approx(0.75 * math.log(3), abs=1e-5)


def test_a_clamped_temperature_can_still_come_down(model, images, ids):
    nn.init.constant_(model.logit_scale, 9.0)
    model.clamp_temperature()
    loss_of(model, images, ids).backward()
    assert model.logit_scale.grad.item() > 0


def test_summing_the_losses_of_small_batches_gives_other_gradients(model, images, ids):
    loss_of(model, images, ids).backward()
    expected = gradients(model)
    model.zero_grad()
    for image_chunk, ids_chunk in zip(images.chunk(4), ids.chunk(4)):
        (loss_of(model, image_chunk, ids_chunk) / 4).backward()
    assert furthest(expected, gradients(model)) > 0.01


def test_accumulated_gradients_add_to_those_already_there(model, images, ids):
    minclip.accumulated_backward(model, images, ids, 2)
    once = gradients(model)
    minclip.accumulated_backward(model, images, ids, 2)
    assert furthest({name: 2 * gradient for name, gradient in once.items()}, gradients(model)) < 1e-6


def test_one_batch_is_learnt_by_heart(model, images, ids):
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for _ in range(60):
        loss = loss_of(model, images, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.clamp_temperature()
    assert loss.item() < 0.01
    assert minclip.recall_at_k(*model(images, ids), 1) == (1.0, 1.0)


# ---- Batches -------------------------------------------------------------------------------------


def test_a_batch_of_look_alikes_holds_captions_that_differ_in_little_and_are_not_the_same():
    texts = torch.tensor([[1, colour, shape, place] for colour in (2, 3, 4, 5) for shape in (6, 7, 8, 9) for place in (10, 11)] * 3)
    batch = texts[minclip.LookAlikes(texts).draw(20, group=5)]
    assert batch.shape == (20, 4)
    for first, *others in batch.split(5):
        for other in others:
            assert (other == first).sum() == 3  # one word of three is another, and the start is shared
    everyone = torch.cat([texts[minclip.LookAlikes(texts).draw(20, group=5)] for _ in range(50)])
    assert len(everyone.unique(dim=0)) == 32


def test_a_batch_of_look_alikes_sets_a_caption_beside_the_same_words_in_another_order():
    texts = torch.tensor([[1, a, 9, b] for a in range(2, 9) for b in range(2, 9) if a != b])  # a above b
    for first, second in texts[minclip.LookAlikes(texts).draw(20, group=2)].split(2):
        assert first.tolist() == second[[0, 3, 2, 1]].tolist()


def test_look_alikes_are_images_of_all_captions_and_fewer_where_captions_are_few():
    texts = torch.tensor([[1, caption] for caption in (2, 2, 2, 3, 4)])
    look_alikes, drawn = minclip.LookAlikes(texts), []
    for _ in range(60):
        batch = look_alikes.draw(6, group=2)
        assert all(first.ne(second).any() for first, second in texts[batch].split(2))
        drawn += batch.tolist()
    assert set(drawn) == {0, 1, 2, 3, 4} and len(look_alikes.draw(100, group=50)) == 5 * 3


# ---- Retrieval -----------------------------------------------------------------------------------


def test_probabilities_add_up_to_one_and_favour_the_closest_label(model, images, tokenizer):
    embeddings = minclip.class_embeddings(model, tokenizer, ["red", "green", "blue"])
    nn.init.constant_(model.logit_scale, 9.0)
    probabilities = minclip.classify(model, images, embeddings)
    assert probabilities.shape == (16, 3)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(16))
    cosines = F.normalize(model.encode_image(images), dim=-1) @ embeddings.T
    torch.testing.assert_close(probabilities, (100 * cosines).softmax(dim=-1), rtol=1e-3, atol=1e-5)


def test_a_class_is_the_mean_direction_of_its_prompts(model, tokenizer):
    templates = ("a {}", "{} on a {}")
    embeddings = minclip.class_embeddings(model, tokenizer, ["red", "{0} %s"], templates)
    first, second = F.normalize(model.encode_text(tokenizer.encode(["a red", "red on a red"], 16)), dim=-1)
    torch.testing.assert_close(embeddings[0], (first + second) / (first + second).norm())
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))
    assert not embeddings.requires_grad
    with pytest.raises(InputError, match="'a red' has no place"):
        minclip.class_embeddings(model, tokenizer, ["red"], ["a red"])
    assert all(template.count("{}") == 1 for template in minclip.TEMPLATES)


def test_search_ranks_by_cosine_whatever_the_lengths():
    index = torch.tensor([[1.0, 0.0], [9.0, 9.0], [0.0, 0.1], [-1.0, 0.0]])
    scores, indices = minclip.search(torch.tensor([0.0, 5.0]), index, 3)
    assert indices.tolist() == [2, 1, 0]
    torch.testing.assert_close(scores, torch.tensor([1.0, 0.5**0.5, 0.0]))
    assert minclip.search(torch.tensor([0.0, 5.0]), index, 9)[1].tolist() == [2, 1, 0, 3]


def test_recall_counts_each_direction_apart():
    image = torch.tensor([[1.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.5, 0.0], [0.8, 0.0, 0.5]])
    # each image is closest to its own caption, yet all three captions are closest to the first image
    assert minclip.recall_at_k(image, text, 1) == pytest.approx((1.0, 1 / 3))
    assert minclip.recall_at_k(image, text, 2) == (1.0, 1.0)
    assert minclip.recall_at_k(image, text, 7) == (1.0, 1.0)


def test_recall_takes_an_equal_caption_for_a_hit():
    image, text = torch.eye(3), torch.eye(3)[[1, 0, 2]]
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    assert minclip.recall_at_k(image, text, 1) == pytest.approx((1 / 3, 1 / 3))
    assert minclip.recall_at_k(image, text, 1, same) == (1.0, 1.0)


def test_nothing_changes_its_inputs(model, images, ids, tokenizer):
    image, text = model(images, ids)
    image, text, same = image.detach(), text.detach(), minclip.same_caption(ids)
    inputs = [images, ids, image, text, same, model.logit_scale]
    before = [tensor.clone() for tensor in inputs]
    captions = list(CAPTIONS)
    for objective in LOSSES.values():
        objective.loss(model.logits(image, text), same)
    minclip.accumulated_backward(model, images, ids, 3, same)
    minclip.LookAlikes(ids).draw(8, 4)
    minclip.recall_at_k(image, text, 2, same)
    minclip.search(image[0], text, 2)
    minclip.classify(model, images, text)
    tokenizer.decode(ids[0])
    Tokenizer.train(captions, 520).encode(captions, 64)
    assert all(torch.equal(now, then) for now, then in zip(inputs, before))
    assert not images.requires_grad and not image.requires_grad and captions == CAPTIONS


# ---- Files ---------------------------------------------------------------------------------------


def checkpoint(model: CLIP) -> dict:
    config = dataclasses.asdict(model.config)
    return {"kind": "clip", "config": config, "weights": model.state_dict(), "step": 7}


def test_a_saved_model_loads_as_the_same_function(model, images, ids, tmp_path):
    torch.save(checkpoint(model), tmp_path / "clip.pt")
    loaded = minclip.load(tmp_path / "clip.pt")
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(loaded.encode_image(images), model.encode_image(images))
    assert torch.equal(loaded.encode_text(ids), model.encode_text(ids))
    nn.init.zeros_(loaded.logit_scale)  # a copy: the file stays as it is
    assert minclip.load(str(tmp_path / "clip.pt")).logit_scale == model.logit_scale


def test_a_checkpoint_written_before_there_was_a_choice_of_loss_has_the_softmax_loss(model, tmp_path):
    content = checkpoint(model)
    del content["config"]["loss"]
    torch.save(content, tmp_path / "clip.pt")
    config = minclip.load(tmp_path / "clip.pt").config
    assert config == model.config and config.loss == "softmax"


def test_a_bug_in_a_layer_shows_itself_and_does_not_blame_the_file(model, tmp_path, monkeypatch):
    torch.save(checkpoint(model), tmp_path / "clip.pt")
    monkeypatch.setattr("minclip.model.Transformer.__init__", lambda self, *sizes: self.blocks)
    with pytest.raises(AttributeError, match="blocks"):
        minclip.load(tmp_path / "clip.pt")


def test_a_file_in_the_older_format_of_torch_loads_too(model, tmp_path):
    torch.save(checkpoint(model), tmp_path / "clip.pt", _use_new_zipfile_serialization=False)
    assert minclip.load(tmp_path / "clip.pt").config == model.config


@pytest.mark.parametrize("content, what", [
    ({"kind": "vqgan", "config": {}, "weights": {}}, "a checkpoint of kind 'vqgan'"),
    ({"state_dict": {}}, "a dict with 'state_dict'"), ({}, "nothing in it"), ([1, 2], "a list"),
])
def test_a_file_of_another_kind_is_refused_with_what_it_is_and_what_is_known(content, what, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError) as refusal:
        minclip.load(tmp_path / "other.pt")
    message = str(refusal.value)
    assert "other.pt" in message and what in message and "\n" not in message
    assert all(layout in message for layout in minclip.pretrained.LAYOUTS)


@pytest.mark.parametrize("change", [
    {"config": {"unknown": 3}}, {"config": {"text_heads": 5}}, {"config": dataclasses.asdict(CLIPConfig())},
    {"weights": {}}, {"weights": None}, {"config": {"loss": "triplet"}}, {"config": {"vision_heads": 0}}, {"config": None},
])
def test_a_checkpoint_whose_parts_do_not_fit_is_refused_in_one_line(model, change, tmp_path):
    torch.save(checkpoint(model) | change, tmp_path / "clip.pt")
    with pytest.raises(InputError, match="clip.pt") as refusal:
        minclip.load(tmp_path / "clip.pt")
    assert "\n" not in str(refusal.value)


def test_a_malicious_file_is_refused_and_does_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it-ran"),)

    torch.save({"kind": "clip", "config": Malicious()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    (tmp_path / "noise.pt").write_bytes(random.Random(0).randbytes(300))
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("zip.pt", "plain.pt", "noise.pt", "empty.pt"):
        with pytest.raises(InputError, match=name) as refusal:
            minclip.load(tmp_path / name)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "it-ran").exists()


def test_a_file_that_cannot_be_opened_is_named_with_the_reason(tmp_path):
    (tmp_path / "clip.pt").mkdir()
    for path in (tmp_path / "missing.pt", tmp_path / ("long" * 99), tmp_path):
        with pytest.raises(InputError, match=f"{tmp_path}/.*: [A-Z][a-z]") as refusal:
            minclip.load(path)
        assert "\n" not in str(refusal.value)


# ---- Published weights ---------------------------------------------------------------------------
# The original architectures were filled by seeded.fill, which depends on a tensor's published name and shape alone, and
# run once; the numbers below are what came out. openai/CLIP at d05afc4, mlfoundations/open_clip at 89fb801.


def openai_shapes(vision: int, text: int, embed: int, layers: tuple[int, int], patch: int, patches: int, context: int,
                  vocab: int, hidden: int | None = None) -> dict[str, tuple]:
    """List OpenAI's names and shapes, as facts about the published files: not derived from our code."""
    shapes = {"positional_embedding": (context, text), "text_projection": (text, embed), "logit_scale": (),
              "visual.class_embedding": (vision,), "visual.positional_embedding": (patches + 1, vision),
              "visual.proj": (vision, embed), "visual.conv1.weight": (vision, 3, patch, patch),
              "token_embedding.weight": (vocab, text)}
    for norm, width in (("visual.ln_pre", vision), ("visual.ln_post", vision), ("ln_final", text)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for side, width, count, wide in (("visual.", vision, layers[0], hidden or 4 * vision), ("", text, layers[1], 4 * text)):
        for block in range(count):
            at = f"{side}transformer.resblocks.{block}"
            for name, rows, columns in (("attn.out_proj", width, width), ("mlp.c_fc", wide, width), ("mlp.c_proj", width, wide)):
                shapes |= {f"{at}.{name}.weight": (rows, columns), f"{at}.{name}.bias": (rows,)}
            shapes |= {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{at}.{norm}.weight": (width,), f"{at}.{norm}.bias": (width,)}
    return shapes


SMALL_OPENAI = dict(vision=128, text=64, embed=32, layers=(2, 2), patch=8, patches=16, context=16, vocab=99)
SMALL_OPEN_CLIP = SMALL_OPENAI | dict(vision=160)
OPENAI_EXTRAS = {name: torch.tensor(value) for name, value in (("input_resolution", 32), ("context_length", 16), ("vocab_size", 99))}


def filled(shapes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    return {name: seeded.fill(name, shape) for name, shape in shapes.items()}


def assert_features(model: CLIP, image_numbers: tuple, text_numbers: tuple) -> None:
    """Hold both encoders against what the original computed: first, last, and the probe that sees every element."""
    features = model.encode_image(seeded.image(1, 3, 32)), model.encode_text(seeded.clip_ids(2, 3, 16, 99))
    for ours, (first, last, probe) in zip(features, (image_numbers, text_numbers)):
        assert ours.flatten()[:4].tolist() == pytest.approx(first, abs=1e-4)
        assert ours.flatten()[-2:].tolist() == pytest.approx(last, abs=1e-4)
        assert seeded.probe(ours) == pytest.approx(probe, abs=1e-4)


OPENAI_IMAGE = (1.710401, 3.210967, 0.3106199, -2.858905), (3.288693, -2.991224), -2.052128
OPENAI_TEXT = (-2.060569, 1.524246, -1.891435, 0.4972837), (-0.1792764, -0.4806809), -0.5794905


def test_openais_weights_give_openais_numbers(tmp_path):
    torch.save(filled(openai_shapes(**SMALL_OPENAI)) | OPENAI_EXTRAS, tmp_path / "ViT.pt")
    assert_features(minclip.load(tmp_path / "ViT.pt"), OPENAI_IMAGE, OPENAI_TEXT)


class Archive(nn.Module):
    """Own tensors by nested attributes, as the modules of a published archive do."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        for name, tensor in weights.items():
            head, _, rest = name.partition(".")
            if rest:
                nested = {n.partition(".")[2]: t for n, t in weights.items() if n.startswith(head + ".")}
                if not hasattr(self, head):
                    self.add_module(head, Archive(nested))
            else:
                self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def half_where_published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Store as OpenAI does: matrices in half precision; norms, embeddings, positions and the temperature in full."""
    whole = ("ln_", "token_embedding", "positional_embedding", "class_embedding", "logit_scale")
    return {name: tensor if any(part in name for part in whole) else tensor.half() for name, tensor in weights.items()}


def test_a_torchscript_archive_in_half_precision_gives_openais_numbers_without_running_its_code(tmp_path):
    weights = half_where_published(filled(openai_shapes(**SMALL_OPENAI))) | OPENAI_EXTRAS
    torch.jit.script(Archive(weights)).save(str(tmp_path / "ViT.pt"))
    model = minclip.load(tmp_path / "ViT.pt")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_features(model, ((1.71094, 3.212026, 0.3119245, -2.859152), (3.288689, -2.991807), -2.052238),
                    ((-2.059881, 1.523839, -1.892129, 0.4974556), (-0.1796196, -0.4808943), -0.5773402))


def test_a_torchscript_archive_that_asks_for_more_than_tensors_is_refused_by_name(tmp_path):
    torch.jit.script(Archive({"a": torch.ones(2)})).save(str(tmp_path / "good.pt"))
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            payload = b"\x80\x02cposix\nmkdir\n(X" + struct.pack("<I", len(b"it-ran")) + b"it-rantR."
            bad.writestr(name, payload if name.endswith("/data.pkl") else good.read(name))
    with pytest.raises(InputError, match="bad.pt asks to run posix.mkdir"):
        minclip.load(tmp_path / "bad.pt")
    assert not os.path.exists("it-ran")


OPEN_CLIP_CONFIG = {"embed_dim": 32, "vision_cfg": {"image_size": 32, "layers": 2, "width": 160, "head_width": 40, "patch_size": 8},
                    "text_cfg": {"context_length": 16, "vocab_size": 99, "width": 64, "heads": 2, "layers": 2}}
OPEN_CLIP_IMAGE = (0.2381817, 4.086735, -1.180387, 1.871333), (0.8960013, -2.36826), -0.08867984
OPEN_CLIP_TEXT = (-1.577188, 1.308183, -1.019468, 0.1312651), (0.08622839, -0.7962405), -0.5747675


def write_config(folder: Path, **changes) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP_CONFIG | changes, "preprocess_cfg": {}}))


def test_an_open_clip_folder_gives_open_clips_numbers(tmp_path):
    write_config(tmp_path)
    torch.save(filled(openai_shapes(**SMALL_OPEN_CLIP)), tmp_path / "open_clip_pytorch_model.bin")
    assert_features(minclip.load(tmp_path), OPEN_CLIP_IMAGE, OPEN_CLIP_TEXT)


def test_open_clips_quick_gelu_is_in_its_config_and_changes_the_numbers(tmp_path):
    write_config(tmp_path, quick_gelu=True)
    torch.save(filled(openai_shapes(**SMALL_OPEN_CLIP)), tmp_path / "open_clip_pytorch_model.bin")
    assert_features(minclip.load(tmp_path), ((0.2233416, 4.098789, -1.187055, 1.890183), (0.9072226, -2.37161), -0.07329671),
                    ((-1.590093, 1.318422, -1.038122, 0.1384565), (0.06581163, -0.7926863), -0.5752479))


def test_a_training_checkpoint_of_open_clip_loses_its_nesting_and_prefixes(tmp_path):
    write_config(tmp_path)
    weights = {f"module.{name}": tensor for name, tensor in filled(openai_shapes(**SMALL_OPEN_CLIP)).items()}
    weights["module.logit_scale"] = weights["module.logit_scale"].reshape(1)
    weights["module.logit_bias"] = torch.tensor(-10.0)
    torch.save({"epoch": 1, "name": "small", "state_dict": weights, "optimizer": {}}, tmp_path / "epoch_1.pt")
    model = minclip.load(tmp_path / "epoch_1.pt")
    assert_features(model, OPEN_CLIP_IMAGE, OPEN_CLIP_TEXT)
    assert model.logit_scale.shape == ()


def test_a_custom_text_clip_of_open_clip_has_its_text_encoder_under_a_prefix(tmp_path):
    write_config(tmp_path)
    names = [name if name.startswith(("visual", "logit")) else f"text.{name}" for name in openai_shapes(**SMALL_OPEN_CLIP)]
    torch.save(filled(dict(zip(names, openai_shapes(**SMALL_OPEN_CLIP).values()))), tmp_path / "epoch_1.pt")
    assert_features(minclip.load(tmp_path / "epoch_1.pt"), OPEN_CLIP_IMAGE,
                    ((0.6329471, 0.4269287, 0.4534346, -1.515893), (1.756037, 0.7992052), 1.653069))


def test_the_mlps_of_an_open_clip_model_may_have_another_width(tmp_path):
    vision = OPEN_CLIP_CONFIG["vision_cfg"] | {"width": 176, "head_width": 88, "mlp_ratio": 4.3637}
    write_config(tmp_path, vision_cfg=vision)
    torch.save(filled(openai_shapes(**SMALL_OPENAI | dict(vision=176, hidden=768))), tmp_path / "epoch_1.pt")
    assert_features(minclip.load(tmp_path / "epoch_1.pt"),
                    ((0.6866155, 0.5353321, -1.614393, -0.6810299), (2.544519, -1.414406), -0.1329905), OPEN_CLIP_TEXT)


@pytest.mark.parametrize("changes, reason", [
    ({"vision_cfg": OPEN_CLIP_CONFIG["vision_cfg"] | {"timm_model_name": "vit"}}, "asks for timm_model_name"),
    ({"vision_cfg": OPEN_CLIP_CONFIG["vision_cfg"] | {"layers": 3}}, "of another model: vision_layers 3 there, 2 in"),
    ({"text_cfg": OPEN_CLIP_CONFIG["text_cfg"] | {"pool_type": "last"}}, "asks for pool_type"),
])
def test_a_config_of_something_else_is_refused_by_name(changes, reason, tmp_path):
    write_config(tmp_path, **changes)
    torch.save(filled(openai_shapes(**SMALL_OPEN_CLIP)), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match=reason):
        minclip.load(tmp_path)


def test_pixels_normalised_otherwise_are_refused(tmp_path):
    content = {"model_cfg": OPEN_CLIP_CONFIG, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    torch.save(filled(openai_shapes(**SMALL_OPEN_CLIP)), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match="pixels of mean"):
        minclip.load(tmp_path)


def test_weights_with_nothing_beside_them_ask_for_a_preset_and_do_not_guess(tmp_path):
    shapes = openai_shapes(vision=768, text=64, embed=32, layers=(1, 1), patch=8, patches=16, context=16, vocab=99)
    torch.save(filled(shapes), tmp_path / "model.pt")
    with pytest.raises(InputError, match="open_clip_config.json beside them, or name a preset"):
        minclip.load(tmp_path / "model.pt")
    with pytest.raises(InputError, match="ViT-H-14 is 1280 wide, the image encoder here 768"):
        minclip.load(tmp_path / "model.pt", preset="ViT-H-14")
    with pytest.raises(InputError, match="preset ViT-X is unknown"):
        minclip.load(tmp_path / "model.pt", preset="ViT-X")
    config = minclip.load(tmp_path / "model.pt", preset="ViT-B-32").config
    assert (config.vision_heads, config.text_heads, config.activation) == (12, 1, "gelu")
    assert minclip.load(tmp_path / "model.pt", preset="ViT-B/32-quickgelu").config.activation == "quick_gelu"


# Hugging Face, from transformers 5.23.0: the names as published
def hugging_face_shapes(vision: int = 128, text: int = 64, embed: int = 32, layers: tuple[int, int] = (2, 2), patch: int = 8,
                        patches: int = 16, context: int = 16, vocab: int = 99) -> dict[str, tuple]:
    shapes = {"logit_scale": (), "visual_projection.weight": (embed, vision), "text_projection.weight": (embed, text),
              "text_model.embeddings.token_embedding.weight": (vocab, text),
              "text_model.embeddings.position_embedding.weight": (context, text),
              "vision_model.embeddings.class_embedding": (vision,),
              "vision_model.embeddings.patch_embedding.weight": (vision, 3, patch, patch),
              "vision_model.embeddings.position_embedding.weight": (patches + 1, vision)}
    for norm, width in (("text_model.final_layer_norm", text), ("vision_model.pre_layrnorm", vision), ("vision_model.post_layernorm", vision)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for side, width, count in (("vision", vision, layers[0]), ("text", text, layers[1])):
        for layer in range(count):
            at = f"{side}_model.encoder.layers.{layer}"
            linears = [(f"self_attn.{name}_proj", width, width) for name in ("k", "v", "q", "out")]
            for name, rows, columns in (*linears, ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width)):
                shapes |= {f"{at}.{name}.weight": (rows, columns), f"{at}.{name}.bias": (rows,)}
            for norm in ("layer_norm1", "layer_norm2"):
                shapes |= {f"{at}.{norm}.weight": (width,), f"{at}.{norm}.bias": (width,)}
    return shapes


def hugging_face_config(**text) -> dict:
    """Four heads of 32, not two of 64, in the image encoder: only the config can know."""
    return {"model_type": "clip", "projection_dim": 32,
            "text_config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "vocab_size": 99, "eos_token_id": 2, **text},
            "vision_config": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "quick_gelu"}}


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], **changes) -> None:
    """Write the format, or with changes to the entry of the first tensor a lie."""
    header, blob = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        data = tensor.contiguous().numpy().tobytes()
        kind = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(blob), len(blob) + len(data)]}
        blob += data
    header[next(iter(tensors))] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)


HUGGING_FACE_IMAGE = (-0.6213685, 0.8014829, 0.6875858, 0.07463169), (0.5563402, -0.1640259), 0.002717889
HUGGING_FACE_TEXT = (-1.0441, -0.9910598, 2.020156, -0.4180247), (-1.284805, 1.782638), -1.874997


def test_a_hugging_face_folder_gives_hugging_faces_numbers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config()))
    extras = {"text_model.embeddings.position_ids": torch.arange(16), "vision_model.embeddings.position_ids": torch.arange(17)}
    write_safetensors(tmp_path / "model.safetensors", filled(hugging_face_shapes()) | extras)
    assert_features(minclip.load(tmp_path), HUGGING_FACE_IMAGE, HUGGING_FACE_TEXT)


def test_the_older_pytorch_model_bin_gives_the_same(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config()))
    torch.save(filled(hugging_face_shapes()), tmp_path / "pytorch_model.bin")
    assert_features(minclip.load(tmp_path), HUGGING_FACE_IMAGE, HUGGING_FACE_TEXT)


@pytest.mark.parametrize("text, reason", [
    ({"hidden_act": "gelu"}, "its activations are quick_gelu and gelu"), ({"layer_norm_eps": 1e-6}, "eps 1e-06"),
    ({"eos_token_id": 7}, "end in id 7"), ({"hidden_size": 128}, "text_width 128 there, 64 in the weights"),
])
def test_a_hugging_face_config_that_we_cannot_follow_is_refused(text, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config(**text)))
    torch.save(filled(hugging_face_shapes()), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=reason):
        minclip.load(tmp_path)


def test_a_hugging_face_config_leaves_out_what_equals_the_librarys_defaults_and_its_older_form_wins():
    sizes, chosen = minclip.pretrained.hugging_face_choices({})
    assert sizes == {"vision_width": 768, "vision_layers": 12, "text_width": 512, "text_layers": 12}
    assert chosen == {"vision_heads": 12, "text_heads": 8, "activation": "quick_gelu"}
    both = {"text_config": {"num_attention_heads": 8}, "text_config_dict": {"num_attention_heads": 16}, "vision_config_dict": None}
    assert minclip.pretrained.hugging_face_choices(both)[1]["text_heads"] == 16


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_library_transformers_saves_what_we_load_and_computes_what_we_compute(activation, tmp_path):
    transformers = pytest.importorskip("transformers")
    content = hugging_face_config(max_position_embeddings=16, hidden_act=activation, intermediate_size=256)
    vision = content["vision_config"] | {"image_size": 32, "patch_size": 8, "hidden_act": activation, "intermediate_size": 512}
    theirs = transformers.CLIPModel(transformers.CLIPConfig(text_config=content["text_config"], vision_config=vision, projection_dim=32))
    theirs.eval().save_pretrained(tmp_path)
    ours, x, ids = minclip.load(tmp_path), seeded.image(1, 3, 32), seeded.clip_ids(2, 3, 16, 99)
    pixels = ((x + 1) / 2 - ours.image_encoder.mean) / ours.image_encoder.std
    with torch.no_grad():
        theirs_out = theirs(input_ids=ids, pixel_values=pixels)
        images, texts = ours(x, ids)
    assert ours.config.activation == activation
    assert torch.allclose(images, theirs_out.image_embeds, atol=1e-5) and torch.allclose(texts, theirs_out.text_embeds, atol=1e-5)


@pytest.mark.parametrize("lie, reason", [
    ({"data_offsets": [0, 10**9]}, "outside the file"), ({"data_offsets": [-8, 4]}, "outside the file"),
    ({"shape": [3]}, "8 bytes, which are not"), ({"shape": [-1, -2]}, "outside the file"), ({"dtype": "F8"}, "KeyError"),
])
def test_a_lying_safetensors_header_is_an_error_and_no_crash(lie, reason, tmp_path):
    write_safetensors(tmp_path / "lie.safetensors", {"a": torch.ones(2), "b": torch.ones(3)}, **lie)
    with pytest.raises(InputError, match=f"lie.safetensors.*{reason}"):
        minclip.load(tmp_path / "lie.safetensors")


def test_a_safetensors_header_longer_than_the_file_is_an_error(tmp_path):
    (tmp_path / "lie.safetensors").write_bytes(struct.pack("<Q", 2**62) + b'{"a": 1}')
    with pytest.raises(InputError, match="longer than the file"):
        minclip.load(tmp_path / "lie.safetensors")


def test_safetensors_hold_scalars_and_empty_tensors_and_every_type(tmp_path):
    tensors = {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "half": torch.ones(2).half(), "whole": torch.tensor([2**40])}
    write_safetensors(tmp_path / "a.safetensors", tensors)
    read = minclip.files.read(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())


@pytest.mark.parametrize("change, reason", [
    (lambda w: w.pop("ln_final.bias"), r"text_encoder.ln_final.bias is missing"),
    (lambda w: w.update({"visual.surplus": torch.ones(2)}), "image_encoder.surplus is one too many"),
    (lambda w: w.update({"ln_final.bias": torch.ones(65)}), r"text_encoder.ln_final.bias has another shape"),
])
def test_loading_names_the_tensor_that_does_not_fit(change, reason, tmp_path):
    weights = filled(openai_shapes(**SMALL_OPENAI)) | OPENAI_EXTRAS
    change(weights)
    torch.save(weights, tmp_path / "ViT.pt")
    with pytest.raises(InputError, match=f"ViT.pt looks like an archive of OpenAI but does not fit: {reason}"):
        minclip.load(tmp_path / "ViT.pt")


@pytest.mark.parametrize("name, reason", [("visual.layer1.0.conv1.weight", "is a ResNet"), ("visual.trunk.cls_token", "timm")])
def test_an_image_encoder_of_another_kind_is_refused_in_words(name, reason, tmp_path):
    torch.save({name: torch.ones(2), **(OPENAI_EXTRAS if "layer1" in name else {})}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=reason):
        minclip.load(tmp_path / "other.pt")


def test_a_folder_without_weights_says_what_it_looked_for(tmp_path):
    with pytest.raises(InputError, match="none of clip.pt, open_clip_model.safetensors"):
        minclip.load(tmp_path)


@pytest.mark.parametrize("name, vision, text, embed, layers, patch, patches, hidden, parameters", [
    ("ViT-B-32", 768, 512, 512, (12, 12), 32, 7**2, None, 151_277_313),
    ("ViT-B-16", 768, 512, 512, (12, 12), 16, 14**2, None, 149_620_737),
    ("ViT-L-14", 1024, 768, 768, (24, 12), 14, 16**2, None, 427_616_513),
    ("ViT-L-14-336", 1024, 768, 768, (24, 12), 14, 24**2, None, 427_944_193),
    ("ViT-H-14", 1280, 1024, 1024, (32, 24), 14, 16**2, None, 986_109_441),
    ("ViT-g-14", 1408, 1024, 1024, (40, 24), 14, 16**2, 6144, 1_366_678_273),
    ("ViT-bigG-14", 1664, 1280, 1280, (48, 32), 14, 16**2, 8192, 2_539_567_105),
])
def test_the_shapes_of_every_published_model_fit(name, vision, text, embed, layers, patch, patches, hidden, parameters):
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in openai_shapes(
            vision, text, embed, layers, patch, patches, 77, 49408, hidden).items()}
        config, weights = minclip.pretrained.from_open_clip(weights, Path("."), name)
        model = CLIP(config)
    minclip.pretrained.fit(model, weights)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    head_widths = {"ViT-H-14": 80, "ViT-g-14": 88, "ViT-bigG-14": 104}  # in open_clip's configs; OpenAI's are all 64
    assert vision / config.vision_heads == head_widths.get(name, 64) and text / config.text_heads == 64
    presets = {"ViT-B-32": CLIPConfig.vit_b_32, "ViT-B-16": CLIPConfig.vit_b_16, "ViT-L-14": CLIPConfig.vit_l_14,
               "ViT-L-14-336": CLIPConfig.vit_l_14_336}
    if name in presets:
        assert dataclasses.replace(config, activation="quick_gelu") == presets[name]()


def test_loaded_weights_lie_where_the_file_is_mapped_and_are_not_copied(tmp_path):
    weights = filled(openai_shapes(**SMALL_OPENAI)) | OPENAI_EXTRAS
    torch.save(weights, tmp_path / "ViT.pt")
    read = []
    original, minclip.pretrained.read = minclip.pretrained.read, lambda path: read.append(original(path)) or read[0]
    try:
        model = minclip.load(tmp_path / "ViT.pt")
    finally:
        minclip.pretrained.read = original
    assert model.text_encoder.token_embedding.weight.data_ptr() == read[0]["token_embedding.weight"].data_ptr()
    assert model.logit_scale.requires_grad


# CLIP's merges: the first of the published list, in its own order, and what it makes of them
FIRST_MERGES = "i n|t h|a n|r e|a r|e r|th e</w>|in g</w>|o u|o n".split("|")


@pytest.mark.parametrize("name", ["bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt", "merges.txt", "tokenizer.json", "folder"])
def test_published_merges_are_found_in_each_of_their_files(name, tmp_path):
    path = tmp_path / ("merges.txt" if name == "folder" else name)
    if name == "tokenizer.json":
        vocab = {token: i for token, i in Tokenizer(map(str.split, FIRST_MERGES)).ids.items()}
        path.write_text(json.dumps({"model": {"merges": [line.split() for line in FIRST_MERGES], "vocab": vocab}}))
    else:
        text = "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *FIRST_MERGES, ""]).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    tokenizer = Tokenizer.load(tmp_path if name == "folder" else path)
    assert tokenizer.merges == [tuple(line.split()) for line in FIRST_MERGES]
    row = tokenizer.encode("the <|endoftext|>", 5)[0].tolist()
    assert row == [522, 518, 523, 523, 0]  # a marker in a text is the id, as in the published code


def test_the_library_transformers_encodes_as_we_do_with_the_same_merges(tokenizer, tmp_path):
    """Left out is what it cleans only with ftfy beside it: quotes, entities, control characters."""
    transformers = pytest.importorskip("transformers")
    ids = tokenizer.ids | {"<|startoftext|>": tokenizer.start, "<|endoftext|>": tokenizer.end}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, tokenizer.merges), ""]))
    theirs, ours = transformers.CLIPTokenizer.from_pretrained(str(tmp_path)), Tokenizer.load(tmp_path)
    for text in ("A RED  circle!", "it's 12 stars² they'll", "naïve café 日本 😀 मानक", "x <|endoftext|> y", "", "snake_case ... 3½"):
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


# ---- Preprocessing -------------------------------------------------------------------------------


def formula(width: int, height: int, mode: str) -> Image.Image:
    """Draw a picture from a formula: waves of another length in each channel, and a little noise."""
    generator = np.random.RandomState(1)
    y, x = np.mgrid[0:height, 0:width]
    channels = [127.5 + 100 * np.sin(x / (3 + k) + k) * np.cos(y / (4 + k)) + 20 * (generator.random_sample((height, width)) - 0.5)
                for k in range(len(Image.new(mode, (1, 1)).getbands()))]
    return Image.merge(mode, [Image.fromarray(channel.clip(0, 255).astype(np.uint8)) for channel in channels])


# mean and sum of absolute values of the normalised pixels, by torchvision's rules written out on Pillow 13
@pytest.mark.parametrize("width, height, mode, side, mean, total", [
    (100, 67, "RGB", 32, 0.1827241, 1909.676),
    (67, 101, "RGB", 32, 0.1858571, 1933.215),
    (32, 32, "RGB", 32, 0.1906719, 1931.095),
    (33, 45, "RGBA", 32, 0.1641123, 1910.375),
    (20, 15, "L", 32, 0.1808514, 2285.585),
    (51, 50, "LA", 24, 0.1738323, 1044.869),
    (301, 224, "RGB", 224, 0.1805206, 93957.98),
    (225, 400, "RGB", 224, 0.1804097, 93765.49),
])
def test_pixels_are_those_of_clips_own_preprocessing(width, height, mode, side, mean, total):
    pixels = minclip.preprocess(formula(width, height, mode), side)
    assert pixels.shape == (3, side, side) and pixels.dtype == torch.float32
    encoder = CLIP(SMALL).image_encoder
    normalised = ((pixels + 1) / 2 - encoder.mean) / encoder.std
    assert normalised.mean().item() == pytest.approx(mean, abs=2e-6)
    assert normalised.abs().sum().item() == pytest.approx(total, rel=2e-6)


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (30_001, 3)])
def test_a_thread_of_a_picture_is_never_scaled_whole_before_its_centre_is_taken(monkeypatch, size):
    thread, resize, sizes = Image.new("L", size, 10), Image.Image.resize, []
    thread.paste(200, tuple(side // 2 - 1000 if side > 1000 else 0 for side in size)
                 + tuple(side // 2 + 1000 if side > 1000 else side for side in size))
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *rest: sizes.append(size) or resize(image, size, *rest))
    pixels = minclip.preprocess(thread, 64)
    assert len(sizes) == 1 and max(sizes[0]) <= 52 * 64
    assert pixels.shape == (3, 64, 64) and torch.equal(pixels, torch.full((3, 64, 64), 200 / 127.5 - 1))


def test_a_long_picture_gives_the_pixels_that_scaling_it_whole_would():
    long = formula(1001, 10, "RGB")
    whole = long.resize((2002, 20), Image.Resampling.BICUBIC).crop((991, 0, 1011, 20))
    pixels = minclip.preprocess(long, 20)
    assert torch.equal(((pixels + 1) * 127.5).round(), torch.from_numpy(np.array(whole)).movedim(-1, 0).float())
