"""VQGAN's layers."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minvqgan import VQGAN, VQGANConfig
from minvqgan.layers import Attention, Downsample, group_norm


def test_padding_on_the_way_down_is_right_and_bottom_only():
    down = Downsample(1)
    nn.init.zeros_(down.conv.bias)
    nn.init.zeros_(down.conv.weight)
    down.conv.weight.data[0, 0, 0, 0] = 1  # picks the top left pixel under the kernel
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(down(image)[0, 0], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))


def test_group_norm_computes_in_the_precision_of_its_weights():
    norm, x = group_norm(8), torch.randn(2, 8, 4, 4)
    assert norm(x.bfloat16()).dtype == torch.float32
    assert norm.double()(x).dtype == torch.float64


def test_published_widths_have_32_groups_and_no_group_one_channel():
    assert [group_norm(c).num_groups for c in (128, 256, 512)] == [32, 32, 32]
    assert all(c // group_norm(c).num_groups >= 4 for c in (4, 8, 12, 16, 20, 32, 48, 96))
    assert all(c % group_norm(c).num_groups == 0 for c in range(1, 130))


def test_attention_equals_torchs_own():
    torch.manual_seed(0)
    attention, x = Attention(8), torch.randn(2, 8, 3, 5)
    q, k, v = (rearrange(f(attention.norm(x)), "b c h w -> b (h w) c")
               for f in (attention.query, attention.key, attention.value))
    mixed = rearrange(F.scaled_dot_product_attention(q, k, v), "b (h w) c -> b c h w", h=3)
    assert torch.allclose(attention(x), x + attention.out(mixed), atol=1e-6)


def test_convolutions_start_so_that_a_signal_keeps_its_size():
    torch.manual_seed(0)
    for module in VQGAN(VQGANConfig()).modules():
        if isinstance(module, nn.Conv2d):
            variance = module.weight[0].numel() * module.weight.var().item()
            assert variance == pytest.approx(1, rel=0.3) and not module.bias.any()
