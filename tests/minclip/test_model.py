"""The two encoders of CLIP, their configuration, and what they must not see."""

import dataclasses
import math

import pytest
import torch
from small_clip import CAPTIONS, SMALL
from torch import nn

import minclip
from minclip import CLIP, LOSSES, CLIPConfig, InputError, Tokenizer
from minclip.layers import ACTIVATIONS, attention_weights


def test_the_preset_has_the_published_parameters_and_no_other_state():
    with torch.device("meta"):
        model = CLIP(CLIPConfig.vit_b_32())
    assert sum(parameter.numel() for parameter in model.parameters()) == 151_277_313
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


def test_an_image_is_normalised_patched_and_read_at_the_class_token(images):
    """Compare with the same steps in plain indexing, for a model without blocks."""
    model = CLIP(SMALL)
    encoder, seen = model.image_encoder, []
    encoder.transformer.blocks = nn.ModuleList()
    # without blocks the class token never meets the patches
    token = encoder.ln_post(encoder.ln_pre(encoder.class_embedding + encoder.positions[0]))
    expected = (token @ encoder.projection).expand(16, -1)
    torch.testing.assert_close(model.encode_image(images), expected)

    encoder.ln_pre.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.encode_image(images)
    mean, std = (torch.tensor(values)[:, None, None] for values in (
        [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]))
    pixels = (images[0] * 0.5 + 0.5 - mean) / std
    second = torch.einsum("dchw,chw->d", encoder.patch_embedding.weight, pixels[:, :8, 8:])
    torch.testing.assert_close(seen[0][0, 2], second + encoder.positions[2], rtol=0, atol=1e-5)


def test_a_later_token_changes_nothing_before_it(model, ids):
    changed = ids.clone()
    changed[:, 5] = 300
    before, after = model.text_encoder.tokens(ids), model.text_encoder.tokens(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:8], after[:, 5:8])


def test_without_the_causal_mask_the_future_leaks(model, ids, monkeypatch):
    monkeypatch.setattr("minclip.layers.attention_weights",
                        lambda q, k, mask=None: attention_weights(q, k))
    changed = ids.clone()
    changed[:, 5] = 300
    before, after = model.text_encoder.tokens(ids), model.text_encoder.tokens(changed)
    assert not torch.allclose(before[:, :5], after[:, :5])


def test_equal_tokens_differ_by_their_positions_alone(model):
    ids, encoder = torch.full((1, 8), 300), model.text_encoder
    assert not torch.allclose(encoder.tokens(ids)[:, 1:], encoder.tokens(ids)[:, :-1], atol=1e-3)
    nn.init.zeros_(encoder.positions)
    torch.testing.assert_close(encoder.tokens(ids)[:, 1:], encoder.tokens(ids)[:, :-1])


def test_images_are_read_without_a_mask(model, images):
    changed = images.clone()
    changed[:, :, 8:, 8:] = 0
    # the class token comes first, and yet sees the last patch
    assert not torch.allclose(model.encode_image(images), model.encode_image(changed))


def test_what_follows_the_end_changes_nothing(model, ids):
    features = model.encode_text(ids)
    assert (ids[:, 9:] == 0).all()
    torch.testing.assert_close(model.encode_text(ids[:, :9]), features)
    padded = ids.clone()
    padded[:, 9:] = 123
    torch.testing.assert_close(model.encode_text(padded), features)


def test_a_caption_is_pooled_at_its_end(model, ids, tokenizer):
    at_end = model.text_encoder.tokens(ids)[ids == tokenizer.end]
    torch.testing.assert_close(model.encode_text(ids), at_end @ model.text_encoder.projection)


def test_forward_normalises_what_encode_does_not(model, images, ids):
    raws = model.encode_image(images), model.encode_text(ids)
    for unit, raw in zip(model(images, ids), raws):
        torch.testing.assert_close(unit.norm(dim=-1), torch.ones(16))
        torch.testing.assert_close(unit * raw.norm(dim=-1, keepdim=True), raw)
        assert not torch.allclose(raw.norm(dim=-1), torch.ones(16), atol=0.1)


def test_the_weights_start_at_the_published_scales():
    model = CLIP(CLIPConfig(vision_width=256, vision_layers=4, text_width=256))
    text, image = model.text_encoder, model.image_encoder
    block, scale = image.transformer.blocks[0], 256**-0.5
    for weight, std in [
        (text.token_embedding.weight, 0.02), (text.positions, 0.01), (text.projection, scale),
        (image.class_embedding, scale), (image.positions, scale), (image.projection, scale),
        (block.attention.qkv.weight, scale), (block.attention.out.weight, scale * 8**-0.5),
        (block.mlp.expand.weight, 512**-0.5), (block.mlp.contract.weight, scale * 8**-0.5),
    ]:
        assert weight.std().item() == pytest.approx(std, rel=0.15)
    assert block.mlp.expand.bias.abs().max() == 0
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_under_bfloat16_autocast_features_logits_and_losses_are_float32(model, images, ids):
    with torch.autocast("cpu", torch.bfloat16):
        features = model(images, ids)
        logits = model.logits(*features)
        losses = [objective.loss(logits, None) for objective in LOSSES.values()]
    assert all(tensor.dtype == torch.float32 for tensor in (*features, logits, *losses))
    torch.testing.assert_close(features, model(images, ids), rtol=0, atol=0.05)
    assert torch.equal(logits, model.logits(*features))
    assert losses == [objective.loss(logits, None) for objective in LOSSES.values()]


@pytest.mark.parametrize("change, remedy", [
    ({"patch_size": 5}, "choose a patch_size that divides"),
    ({"image_size": 30, "patch_size": 5}, "or stem_width 0"),
    ({"stem_width": -1}, "stem_width is -1: choose 0 or more"),
    ({"text_heads": 3}, "text_heads 3: choose one"),
    ({"vision_width": 130}, "vision_heads 4: choose one"),
    ({"activation": "relu"}, "quick_gelu or gelu"),
    ({"text_layers": 0}, "text_layers is 0: choose 1 or more"),
    ({"loss": "triplet"}, "'triplet' is unknown: choose softmax or"),
    ({"vision_width": 64.0}, "vision_width is 64.0: choose 1 or more .int"),
    ({"text_width": "64"}, "text_width is '64': choose"),
    ({"vision_mlp_ratio": math.nan}, "vision_mlp_ratio is nan"),
    ({"vision_mlp_ratio": math.inf}, "vision_mlp_ratio is inf"),
])
def test_a_config_that_makes_no_sense_is_refused_with_the_remedy(change, remedy):
    with pytest.raises(InputError, match=remedy):
        CLIPConfig(**change)


def test_the_help_of_a_field_lists_every_entry_of_its_table():
    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(CLIPConfig)}
    assert all(name in helps["loss"] for name in LOSSES)
    assert all(name in helps["activation"] for name in ACTIVATIONS)


def test_inputs_of_another_size_are_mistakes_of_the_caller(model, images, ids):
    with pytest.raises(ValueError, match="resize") as image_error:
        model.encode_image(images[:, :, :8])
    with pytest.raises(ValueError, match="context_length") as text_error:
        model.encode_text(torch.cat((ids, ids), dim=1))
    assert not any(isinstance(error.value, InputError) for error in (image_error, text_error))


def test_nothing_changes_its_inputs(model, images, ids, tokenizer):
    image, text = (features.detach() for features in model(images, ids))
    same = minclip.same_caption(ids)
    inputs, captions = [images, ids, image, text, same, model.logit_scale], list(CAPTIONS)
    before = [tensor.clone() for tensor in inputs]
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
