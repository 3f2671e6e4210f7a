"""Claims about minclip's layers, model and retrieval, each exact or against a reference, each able to fail."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minclip
from minclip import LOSSES, CLIP, CLIPConfig, InputError, Tokenizer
from minclip.layers import ACTIVATIONS, Block, attention_weights, convolutional_stem
from small_clip import CAPTIONS, SMALL, ids, images, model, one_seed, tokenizer  # noqa: F401, fixtures


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
    ({"patch_size": 5}, "choose a patch_size that divides"), ({"image_size": 30, "patch_size": 5}, "or stem_width 0"),
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
