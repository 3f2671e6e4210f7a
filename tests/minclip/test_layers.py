"""CLIP's layers, each against torch's own or in plain indexing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minclip.layers import ACTIVATIONS, Block, attention_weights, convolutional_stem


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_torchs_scaled_dot_product_attention(causal):
    q, k, v = torch.randn(3, 2, 4, 7, 8)
    mask = torch.ones(7, 7, dtype=torch.bool).tril() if causal else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attention_weights(q, k, mask) @ v, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_block_equals_torchs_pre_normalised_encoder_layer(activation):
    ours = Block(32, 4, 128, activation)
    reference = nn.TransformerEncoderLayer(32, 4, 128, 0.0, ACTIVATIONS[activation],
                                           batch_first=True, norm_first=True)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    names = {"ln_1": "norm1", "ln_2": "norm2", "mlp.expand": "linear1", "mlp.contract": "linear2",
             "attention.qkv.": "self_attn.in_proj_", "attention.out": "self_attn.out_proj"}
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


def test_a_stem_doubles_its_channels_as_it_halves_the_picture():
    stem = convolutional_stem(8, 24, 16)
    channels = [layer.out_channels for layer in stem if isinstance(layer, nn.Conv2d)]
    assert channels == [8, 16, 32, 24]


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_a_stem_makes_one_token_a_patch_and_looks_beyond_its_edge(patch):
    stem, pixels = convolutional_stem(16, 24, patch), torch.randn(1, 3, 16, 16)
    tokens = stem(pixels)
    assert tokens.shape == (1, 24, 16 // patch, 16 // patch)
    assert len(stem) == 3 * patch.bit_length() - 5
    pixels[:, :, patch - 1, patch - 1] += 1  # in the first patch, at the corner where four meet
    assert (stem(pixels) - tokens)[0, :, 1, 1].abs().max() > 1e-4
