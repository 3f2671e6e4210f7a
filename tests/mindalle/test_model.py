"""What mindalle's layers, model and loss promise: every name is a claim, and each can fail."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from mindalle import DALLE, DALLEConfig, InputError, dalle_loss, drop_captions, generate
from mindalle.layers import (
    PATTERNS, Block, Cache, attention_mask, attention_weights, column_mask, convolutional_mask,
    full_mask, rotate, rotations, row_mask,
)
from small_dalle import EPS, SMALL, N, T, each_design, rng, small_batch, small_model


def picture(mask: torch.Tensor) -> str:
    return "\n".join("".join("x" if cell else "." for cell in row) for row in mask.tolist())


# ------------------------------------------------------------------------------------------------- layers


def test_attend_equals_scaled_dot_product_attention():
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=rng(), dtype=torch.float64)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(attention_weights(q, k) @ v, F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(attention_weights(q, k, mask) @ v, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_row_attention_sees_the_g_codes_before_it_and_itself():
    assert picture(row_mask(3, kernel=3)) == "\n".join([
        "x........",
        "xx.......",
        "xxx......",
        "xxxx.....",
        ".xxxx....",
        "..xxxx...",
        "...xxxx..",
        "....xxxx.",
        ".....xxxx",
    ])


def test_column_attention_sees_what_is_above():
    assert picture(column_mask(3, kernel=3)) == "\n".join([
        "x........",
        ".x.......",
        "..x......",
        "x..x.....",
        ".x..x....",
        "..x..x...",
        "x..x..x..",
        ".x..x..x.",
        "..x..x..x",
    ])


def test_convolutional_attention_sees_the_earlier_half_of_the_kernel():
    assert picture(convolutional_mask(4, 3)) == "\n".join([
        "x...............",
        "xx..............",
        ".xx.............",
        "x.xx............",
        "xx.xx...........",
        "xxx.xx..........",
        ".xxx.xx.........",
        "..xxx.xx........",
        "...xxx.xx.......",
        "....xxx.xx......",
        ".....xxx.xx.....",
        "......xxx.xx....",
        ".......xxx.xx...",
        "........xxx.xx..",
        ".........xxx.xx.",
        "..........xxx.xx",
    ])


def test_text_is_causal_and_always_visible_to_codes():
    assert picture(attention_mask("column", text_length=2, grid=2, kernel=3)) == "\n".join([
        "x.....",
        "xx....",
        "xxx...",
        "xx.x..",
        "xxx.x.",
        "xx.x.x",
    ])


@pytest.mark.parametrize("pattern, image", [
    ("full", full_mask(4, 5)), ("row", row_mask(4, 5)), ("column", column_mask(4, 5)),
    ("convolutional", convolutional_mask(4, 5)),
])
def test_the_attention_field_names_the_mask_between_codes(pattern, image):
    model = small_model(attention=pattern, kernel=5)
    assert model.get_buffer(f"{pattern}_mask")[T:, T:].equal(image)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_in_every_pattern_a_code_sees_itself_and_no_later_code(pattern):
    for grid in (1, 2, 3, 4):
        for kernel in (1, 3, 5):
            mask = PATTERNS[pattern](grid, kernel)
            assert mask.shape == (grid**2, grid**2) and mask.dtype == torch.bool and not mask.is_meta
            assert mask.diagonal().all() and not mask.triu(1).any()


def test_turned_queries_and_keys_know_only_how_far_apart_they_stand():
    q, k = torch.randn(2, 16, generator=rng())
    rotation = rotations(text_length=2, grid=4, head_width=16)  # (18 8 2)
    turned_q, turned_k = (rotate(x.expand(1, 1, 18, 16), rotation)[0, 0, 2:] for x in (q, k))
    scores = turned_q @ turned_k.T                                                   # (16 16)
    apart = {}
    for i in range(16):
        for j in range(16):
            apart.setdefault((i // 4 - j // 4, i % 4 - j % 4), []).append(scores[i, j].item())
    rounding = 4 * EPS * q.norm() * k.norm()  # of angles up to 3, of turning, of a sum: each about EPS of the norms
    assert all(max(same) - min(same) < rounding for same in apart.values())
    means = sorted(sum(same) / len(same) for same in apart.values())
    assert min(b - a for a, b in zip(means, means[1:])) > max(1e-4, 2 * rounding)  # all other distances differ
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(16), rtol=4 * EPS, atol=0)


def test_text_stands_to_the_left_of_the_first_row():
    cos, sin = rotations(text_length=3, grid=2, head_width=4).unbind(-1)  # (7 2): row's, column's angle
    torch.testing.assert_close(torch.atan2(sin, cos), torch.tensor(
        [[0, -3], [0, -2], [0, -1], [0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float), rtol=0, atol=4 * EPS * 3)


def test_a_cache_counts_its_tokens_and_shows_them_without_a_copy():
    cache, keys, values = Cache(7), *torch.randn(2, 1, 2, 6, 4, generator=rng(), dtype=torch.bfloat16)
    assert cache.filled == 0
    for new in ((0, 3), (3, 4), (4, 6)):
        seen = cache.update(keys[:, :, slice(*new)], values[:, :, slice(*new)])
        assert cache.filled == new[1]
        assert all(view.equal(all_[:, :, : new[1]]) for view, all_ in zip(seen, (keys, values)))
    assert [view.data_ptr() for view in seen] == [cache.keys.data_ptr(), cache.values.data_ptr()]
    assert cache.keys.shape == (1, 2, 7, 4)


def test_a_block_equals_torchs_own_pre_norm_layer():
    torch.manual_seed(0)
    ours = Block(16, heads=2)
    theirs = torch.nn.TransformerEncoderLayer(
        16, 2, 64, dropout=0, activation="gelu", batch_first=True, norm_first=True)
    for parameter in ours.parameters():
        parameter.data += torch.randn_like(parameter)
    names = {"ln_1": "norm1", "attention.qkv.": "self_attn.in_proj_", "attention.out": "self_attn.out_proj",
             "ln_2": "norm2", "mlp.expand": "linear1", "mlp.contract": "linear2"}
    weights = ours.state_dict()
    for name, their_name in names.items():
        weights = {key.replace(name, their_name): tensor for key, tensor in weights.items()}
    theirs.load_state_dict(weights)
    x, mask = torch.randn(3, 6, 16).double(), torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(ours.double()(x, mask), theirs.double()(x, src_mask=~mask))


# ------------------------------------------------------------------------------------------------- model


def test_the_shapes_are_those_promised_and_codes_may_come_as_a_grid():
    model, (text, codes, _) = small_model(), small_batch()
    text_logits, image_logits = model(text, codes)
    assert text_logits.shape == (3, T - 1, 11) and image_logits.shape == (3, N, 13)
    assert model(text, rearrange(codes, "b (g1 g2) -> b g1 g2", g1=4))[1].equal(image_logits)


@each_design
def test_no_prediction_depends_on_its_target_or_what_comes_later(design):
    model, (text, codes, _) = small_model(**design), small_batch(1)
    text_logits, image_logits = model(text, codes)
    for i in range(N):
        changed = codes.clone()
        changed[:, i] = (changed[:, i] + 1) % 13
        text_after, image_after = model(text, changed)
        assert text_after.equal(text_logits)  # text cannot see the image
        assert image_after[:, : i + 1].equal(image_logits[:, : i + 1])
        assert i == N - 1 or not image_after[:, i + 1].allclose(image_logits[:, i + 1])
    for i in range(T):
        changed = text.clone()
        changed[:, i] = (changed[:, i] + 1) % 11
        text_after, image_after = model(changed, codes)
        assert text_after[:, :i].equal(text_logits[:, :i])  # row i - 1 predicts token i
        assert not image_after.isclose(image_logits).all(dim=-1).any()  # every code sees every text token


def test_without_the_mask_the_future_leaks():
    model, (text, codes, _) = small_model(), small_batch(1)
    before = model(text, codes)[1]
    changed = codes.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 13
    assert model(text, changed)[1][:, 5].equal(before[:, 5])
    model.full_mask.fill_(True)
    assert not model(text, changed)[1][:, 5].allclose(model(text, codes)[1][:, 5])


def test_the_last_text_position_predicts_the_first_code_whatever_the_codes():
    model, (text, codes, _) = small_model().double(), small_batch()
    x = model.transform(model.embed_text(text))
    torch.testing.assert_close(model(text, codes)[1][:, 0], model.image_head(x[:, -1]))


def test_layers_cycle_through_the_attention_pattern_and_share_masks():
    model = small_model(layers=5, attention="row,column,row")
    assert model.config.patterns == ("row", "column", "row", "row", "column")
    assert sorted(name for name, _ in model.named_buffers()) == ["column_mask", "rotation", "row_mask"]
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


def test_a_model_without_rotary_angles_has_the_same_weights_and_other_predictions():
    model, (text, codes, _) = small_model(), small_batch()
    plain = DALLE(DALLEConfig(**SMALL, rotary=False)).eval()
    plain.load_state_dict(model.state_dict())
    assert not plain(text, codes)[1].allclose(model(text, codes)[1])
    assert not DALLEConfig.mindalle_1_3b().rotary


def test_first_losses_are_those_of_a_uniform_guess():
    torch.manual_seed(0)
    model = DALLE(DALLEConfig.tiny())
    text, codes = torch.randint(640, (8, 16)), torch.randint(512, (8, 64))
    _, text_loss, image_loss = dalle_loss(*model(text, codes), text, codes)
    assert abs(text_loss - math.log(640)) < 0.1 and abs(image_loss - math.log(512)) < 0.1


def test_weights_that_add_to_the_residual_stream_start_smaller():
    torch.manual_seed(0)
    model = DALLE(DALLEConfig(layers=8))
    block = model.blocks[3]
    for weight in (block.attention.out.weight, block.mlp.contract.weight):
        assert abs(weight.std() / (0.02 / 4) - 1) < 4 / (2 * weight.numel()) ** 0.5  # four standard errors
    for weight in (block.attention.qkv.weight, block.mlp.expand.weight, model.text_head.weight,
                   model.text_positions, model.image_embedding.weight):
        assert abs(weight.std() / 0.02 - 1) < 4 / (2 * weight.numel()) ** 0.5
    assert block.attention.qkv.bias.eq(0).all() and block.ln_1.weight.eq(1).all()


def test_one_batch_is_learnt_by_heart():
    torch.manual_seed(0)
    model, (text, codes, _) = DALLE(DALLEConfig(**{**SMALL, "width": 32})), small_batch(4)
    text[:, 0] = torch.arange(4)  # nothing predicts a first token, so that one must tell the captions apart
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss, _, _ = dalle_loss(*model(text, codes), text, codes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.02
    assert generate(model, text, temperature=0).flatten(1).equal(codes)


def test_every_parameter_learns_except_the_last_position():
    model, (text, codes, _) = small_model(), small_batch()
    dalle_loss(*model(text, codes), text, codes)[0].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    *read, last = model.image_positions.grad
    assert last.eq(0).all() and all(position.ne(0).any() for position in read)


@pytest.mark.parametrize("nonsense", [
    dict(width=100, heads=3), dict(width=36, heads=6), dict(kernel=4), dict(attention="full,diagonal"), dict(grid=0),
    dict(text_length=1), dict(layers=0), dict(attention=""), dict(width=96.0),
])
def test_config_refuses_nonsense(nonsense):
    with pytest.raises(InputError, match=f"{min(nonsense)}|rotary") as error:
        DALLEConfig(**nonsense)
    assert "\n" not in str(error.value)


def test_the_help_of_the_config_lists_what_can_be_chosen():
    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(DALLEConfig)}
    assert all(helps.values())
    assert all(pattern in helps["attention"] for pattern in PATTERNS)


def test_captions_of_another_length_are_the_programs_mistake():
    model, (text, codes, _) = small_model(), small_batch()
    with pytest.raises(ValueError, match="pad or cut") as error:
        model(text[:, :1], codes)
    assert not isinstance(error.value, InputError)


# ------------------------------------------------------------------------------------------------- loss


def test_the_image_weighs_seven_times_the_text():
    text, codes, _ = small_batch()
    text_logits, image_logits = torch.randn(3, T - 1, 11, generator=rng()), torch.randn(3, N, 13)
    loss, text_loss, image_loss = dalle_loss(text_logits, image_logits, text, codes)
    assert loss == (1 * text_loss + 7 * image_loss) / 8
    assert dalle_loss(text_logits, image_logits, text, codes, text_weight=0.0)[0] == image_loss


def test_losses_are_the_mean_surprise_at_the_tokens_predicted():
    text, codes, _ = small_batch()
    text_logits, image_logits = torch.zeros(3, T - 1, 11), torch.zeros(3, N, 13)
    text_logits[0, 2, text[0, 3]] = 50.0  # certain and right about one text token of 12
    image_logits[1, 4, codes[1, 4]] = 50.0  # and about one code of 48
    _, text_loss, image_loss = dalle_loss(text_logits, image_logits, text, codes)
    assert text_loss.item() == pytest.approx(math.log(11) * 11 / 12, rel=12 * EPS)  # sums of 12 and 48 terms in float32
    assert image_loss.item() == pytest.approx(math.log(13) * 47 / 48, rel=48 * EPS)


def test_captions_are_dropped_whole_and_as_often_as_asked():
    text = torch.randint(1, 11, (4000, T), generator=rng())
    empty, kept = torch.zeros(T, dtype=torch.int64), text.clone()
    torch.manual_seed(0)
    assert drop_captions(text, empty, 0.0).equal(text)
    assert drop_captions(text, empty, 1.0).eq(empty).all()
    dropped = drop_captions(text, empty, 0.3)
    is_empty, is_kept = dropped.eq(empty).all(dim=1), dropped.eq(kept).all(dim=1)
    assert (is_empty ^ is_kept).all()
    assert abs(is_empty.float().mean() - 0.3) < 0.03  # four standard deviations
    assert text.equal(kept)
