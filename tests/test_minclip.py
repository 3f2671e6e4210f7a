"""Claims about minclip, each exact or against a reference, each able to fail."""

import dataclasses
import math
import os
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minclip
from minclip import CLIP, CLIPConfig, Tokenizer, normalise
from minclip.layers import ACTIVATIONS, Block, attend

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
CAPTIONS = [f"a {colour} {shape} on a black background" for colour in COLOURS for shape in SHAPES]
SMALL = CLIPConfig(
    image_size=16, patch_size=8, vision_width=32, vision_layers=2, text_width=32, text_layers=2, embed_dim=16
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
    with pytest.raises(ValueError, match="514 or more"):
        Tokenizer.train(CAPTIONS, 513)


@pytest.mark.parametrize("text, words", [
    ("It's   5 o'clock &amp; RAINING!!", "it 's 5 o ' clock & raining !!"),
    ("&amp;lt;3 &amp;amp;amp;", "< 3 & amp ;"),
    ("\t a\u00a0b\n\nc \u3000", "a b c"),
    ("12²½Ⅷ x2y", "1 2 ² ½ ⅷ x 2 y"),
    ("“they’re” here", "\" they 're \" here"),
    ("cafe\u0301 ÉCOLE", "caf\u00e9 école"),
    ("snake_case 一二 मानक", "snake _ case 一二 म ा नक"),
    ("half \ud800 pair", "half ? pair"),
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


def test_a_marker_inside_a_caption_is_only_characters(tokenizer):
    row = tokenizer.encode("red <|endoftext|> circle <|startoftext|>", 48)[0]
    assert (row == tokenizer.end).sum() == 1 and (row == tokenizer.start).sum() == 1
    assert tokenizer.decode(row) == "red <| endoftext |> circle <| startoftext |>"


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
    with pytest.raises(ValueError, match="5 tokens .* limit is 4.*truncate=True"):
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
        with pytest.raises(ValueError, match=f"{name} is not a tokenizer"):
            Tokenizer.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "missing.json")


# ---- Layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_attend_equals_torchs_scaled_dot_product_attention(causal):
    q, k, v = torch.randn(3, 2, 4, 7, 8)
    mask = torch.ones(7, 7, dtype=torch.bool).tril() if causal else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, mask), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_block_equals_torchs_pre_normalised_encoder_layer(activation):
    ours = Block(32, 4, activation)
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
    monkeypatch.setattr("minclip.layers.attend", lambda q, k, v, mask=None: attend(q, k, v))
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
    model = CLIP(CLIPConfig(vision_width=256, text_width=256))
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
        loss = minclip.contrastive_loss(*features, model.logit_scale)
    exact = model(images, ids)
    assert all(feature.dtype == torch.float32 for feature in features) and loss.dtype == torch.float32
    torch.testing.assert_close(features, exact, rtol=0, atol=0.05)
    assert loss.item() == minclip.contrastive_loss(*features, model.logit_scale).item()


@pytest.mark.parametrize("change, remedy", [
    ({"patch_size": 5}, "choose a patch_size that divides"), ({"text_heads": 3}, "text_heads 3: choose one"),
    ({"vision_width": 130}, "vision_heads 4: choose one"), ({"activation": "relu"}, "quick_gelu or gelu"),
    ({"text_layers": 0}, "text_layers is 0: choose 1 or more"),
])
def test_a_config_that_makes_no_sense_is_refused_with_the_remedy(change, remedy):
    with pytest.raises(ValueError, match=remedy):
        CLIPConfig(**change)


def test_inputs_of_another_size_are_refused(model, images, ids):
    with pytest.raises(ValueError, match="resize"):
        model.encode_image(images[:, :, :8])
    with pytest.raises(ValueError, match="context_length"):
        model.encode_text(torch.cat((ids, ids), dim=1))


# ---- Loss ----------------------------------------------------------------------------------------


def test_the_first_loss_is_about_the_logarithm_of_the_batch(tokenizer):
    model = CLIP(CLIPConfig())
    images, ids = torch.rand(64, 3, 32, 32) * 2 - 1, tokenizer.encode(CAPTIONS, 16)
    loss = minclip.contrastive_loss(*model(images, ids), model.logit_scale)
    assert loss.item() == pytest.approx(math.log(64), rel=0.1)


def test_the_loss_is_that_of_the_papers_pseudocode():
    image, text = F.normalize(torch.randn(2, 6, 8), dim=-1)
    logits = image @ text.T * math.exp(1.5)
    labels = torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(minclip.contrastive_loss(image, text, torch.tensor(1.5)), expected)
    torch.testing.assert_close(minclip.contrastive_loss(text, image, torch.tensor(1.5)), expected)


def test_equal_captions_are_found():
    ids = torch.tensor([[1, 2, 9], [1, 3, 9], [1, 2, 9]])
    assert minclip.same_caption(ids).int().tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_equal_captions_share_the_target():
    """Two captions, three times and once: the best possible loss is the entropy of the targets, 3/4 ln 3."""
    concepts = torch.eye(4)[[0, 0, 0, 1]]
    same = minclip.same_caption(concepts)
    loss = minclip.contrastive_loss(concepts, concepts, torch.tensor(math.log(100)), same)
    assert loss.item() == pytest.approx(0.75 * math.log(3), abs=1e-5)


def test_equal_captions_are_pushed_apart_only_when_counted_as_wrong():
    concepts = torch.eye(4)[[0, 0, 0, 1]]
    same = minclip.same_caption(concepts)
    for right, pushed in ((same, False), (None, True)):
        image = concepts.clone().requires_grad_()
        text = concepts.clone()
        text[1, 2] = 1e-3  # without this the push is there, but falls along the vectors themselves
        minclip.contrastive_loss(image, text, torch.tensor(math.log(100)), right).backward()
        assert (image.grad[0, 2].abs().item() > 1e-3) == pushed


def test_the_scale_never_counts_for_more_than_a_hundred():
    image, text = F.normalize(torch.randn(2, 6, 8), dim=-1)
    at_limit = minclip.contrastive_loss(image, text, torch.tensor(math.log(100)))
    torch.testing.assert_close(minclip.contrastive_loss(image, text, torch.tensor(9.0)), at_limit)
    assert minclip.contrastive_loss(image, text, torch.tensor(4.5)) != at_limit


def test_a_clamped_temperature_can_still_come_down(model, images, ids):
    for start, expected in ((9.0, math.log(100)), (2.0, 2.0)):
        nn.init.constant_(model.logit_scale, start)
        model.clamp_temperature()
        assert model.logit_scale.item() == pytest.approx(expected)
    nn.init.constant_(model.logit_scale, 9.0)
    minclip.contrastive_loss(*model(images, ids), model.logit_scale).backward()
    assert model.logit_scale.grad.item() == 0  # beyond the limit there is nothing to learn from
    model.zero_grad()
    model.clamp_temperature()
    minclip.contrastive_loss(*model(images, ids), model.logit_scale).backward()
    assert model.logit_scale.grad.item() > 0


@pytest.mark.parametrize("chunks", [1, 4, 5])
def test_accumulated_gradients_equal_those_of_the_whole_batch(model, images, ids, chunks):
    ids = ids[[*range(12), 0, 1, 2, 2]]  # some captions twice
    same = minclip.same_caption(ids)
    whole = minclip.contrastive_loss(*model(images, ids), model.logit_scale, same)
    whole.backward()
    expected = gradients(model)
    model.zero_grad()
    loss = minclip.accumulated_backward(model, images, ids, chunks, same)
    assert furthest(expected, gradients(model)) < 1e-5
    assert gradients(model)["logit_scale"].item() == pytest.approx(expected["logit_scale"].item(), rel=1e-5)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6) and not loss.requires_grad


def test_summing_the_losses_of_small_batches_gives_other_gradients(model, images, ids):
    minclip.contrastive_loss(*model(images, ids), model.logit_scale).backward()
    expected = gradients(model)
    model.zero_grad()
    for image_chunk, ids_chunk in zip(images.chunk(4), ids.chunk(4)):
        (minclip.contrastive_loss(*model(image_chunk, ids_chunk), model.logit_scale) / 4).backward()
    assert furthest(expected, gradients(model)) > 0.01


def test_accumulated_gradients_add_to_those_already_there(model, images, ids):
    minclip.accumulated_backward(model, images, ids, 2)
    once = gradients(model)
    minclip.accumulated_backward(model, images, ids, 2)
    assert furthest({name: 2 * gradient for name, gradient in once.items()}, gradients(model)) < 1e-6


def test_accumulated_gradients_reach_every_weight_under_autocast(model, images, ids):
    """Autocast keeps the weights that it has cast; those cast without a graph must not serve again."""
    minclip.accumulated_backward(model, images, ids, 4)
    expected = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        minclip.accumulated_backward(model, images, ids, 4)
    assert furthest(expected, gradients(model)) < 0.1


def test_one_batch_is_learnt_by_heart(model, images, ids):
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for _ in range(60):
        loss = minclip.contrastive_loss(*model(images, ids), model.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.clamp_temperature()
    assert loss.item() < 0.01
    assert minclip.recall_at_k(*model(images, ids), 1) == (1.0, 1.0)


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
    with pytest.raises(ValueError, match="'a red' has no place"):
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
    minclip.contrastive_loss(image, text, model.logit_scale, same)
    minclip.accumulated_backward(model, images, ids, 3, same)
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


def test_a_file_in_the_older_format_of_torch_loads_too(model, tmp_path):
    torch.save(checkpoint(model), tmp_path / "clip.pt", _use_new_zipfile_serialization=False)
    assert minclip.load(tmp_path / "clip.pt").config == model.config


@pytest.mark.parametrize("content, what", [
    ({"kind": "vqgan", "config": {}, "weights": {}}, "a checkpoint of kind 'vqgan'"),
    ({"state_dict": {}}, "a dict with 'state_dict'"), ({}, "nothing in it"), ([1, 2], "a list"),
])
def test_a_file_of_another_kind_is_refused_with_what_it_is_and_what_is_known(content, what, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError) as refusal:
        minclip.load(tmp_path / "other.pt")
    message = str(refusal.value)
    assert "other.pt" in message and what in message and "\n" not in message
    assert all(layout in message for layout in minclip.pretrained.LAYOUTS)


@pytest.mark.parametrize("change", [
    {"config": {"unknown": 3}}, {"config": {"text_heads": 5}}, {"config": dataclasses.asdict(CLIPConfig())},
    {"weights": {}}, {"weights": None},
])
def test_a_checkpoint_whose_parts_do_not_fit_is_refused_in_one_line(model, change, tmp_path):
    torch.save(checkpoint(model) | change, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="clip.pt") as refusal:
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
        with pytest.raises(ValueError, match=name) as refusal:
            minclip.load(tmp_path / name)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "it-ran").exists()
    with pytest.raises(FileNotFoundError):
        minclip.load(tmp_path / "missing.pt")
