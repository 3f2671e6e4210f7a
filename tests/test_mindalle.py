"""What mindalle promises: every name is a claim, and each can fail."""

import copy
import dataclasses
import json
import math
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat

import seeded
from mindalle import (
    DALLE, DALLEConfig, InputError, Tokenizer, dalle_loss, drop_captions, generate, generate_steps, load, rerank,
)
from mindalle.generate import apply_guidance, decode, keep_top_k, keep_top_p, prefill, sample_code
from mindalle.layers import (
    ORDERS, PATTERNS, Block, Cache, attention_mask, attention_weights, column_mask, convolutional_mask, full_mask, rotate, rotations,
    row_major, row_mask, spiral_out,
)
from mindalle.pretrained import fit, from_mindalle, read
from mindalle.tokenizer import split_words

SMALL = dict(text_vocab=11, image_vocab=13, text_length=5, grid=4, width=16, layers=2, heads=2)
T, N = 5, 16  # text tokens and codes of the small model
EPS = torch.finfo(torch.float32).eps

# Every attention pattern and every order of decoding must pass the tests that are parametrised over these.
DESIGNS = [*(dict(attention=pattern) for pattern in PATTERNS), dict(attention="row,column"),
           *(dict(order=order) for order in ORDERS)]
each_design = pytest.mark.parametrize("design", DESIGNS, ids=lambda design: "-".join(*design.items()))
each_order = pytest.mark.parametrize("order", ORDERS)


def small_model(seed: int = 0, **changes) -> DALLE:
    """Build a model with weights so large that its predictions depend visibly on all they may see."""
    torch.manual_seed(seed)
    model = DALLE(DALLEConfig(**{**SMALL, **changes}))
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * (0.4 if parameter.ndim > 1 else 0.1)
    return model.eval()


def small_batch(b: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw captions (b t), codes (b n) and an empty caption (t,)."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(1, 11, (b, T), generator=generator)
    return text, torch.randint(13, (b, N), generator=generator), torch.zeros(T, dtype=torch.int64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


@each_order
def test_every_order_draws_each_place_once(order):
    for grid in range(1, 7):
        places = ORDERS[order](grid)
        assert places.dtype == torch.int64 and places.sort().values.equal(torch.arange(grid**2))


@pytest.mark.parametrize("order, steps", [
    (row_major, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
    (spiral_out, [[8, 1, 2], [7, 0, 3], [6, 5, 4]]),
    (spiral_out, [[9, 10, 11, 12], [8, 1, 2, 13], [7, 0, 3, 14], [6, 5, 4, 15]]),  # as SpiralOut of taming-transformers
])
def test_the_orders_are_those_of_their_pictures(order, steps):
    steps = torch.tensor(steps)
    assert order(len(steps)).argsort().equal(steps.flatten())


def test_once_turned_a_query_and_a_key_know_how_many_rows_and_columns_apart_they_stand_and_no_more():
    q, k = torch.randn(2, 16, generator=rng())
    rotation = rotations(text_length=2, places=row_major(4), grid=4, head_width=16)  # (18 8 2)
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
    cos, sin = rotations(text_length=3, places=row_major(2), grid=2, head_width=4).unbind(-1)  # (7 2): row's, column's angle
    torch.testing.assert_close(torch.atan2(sin, cos), torch.tensor(
        [[0, -3], [0, -2], [0, -1], [0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float), rtol=0, atol=4 * EPS * 3)


def test_a_cache_knows_how_many_tokens_it_holds_and_shows_them_without_a_copy():
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
def test_no_prediction_depends_on_its_target_or_on_what_is_drawn_later(design):
    model, (text, codes, _) = small_model(**design), small_batch(1)
    text_logits, image_logits = model(text, codes)
    places = model.places.tolist()
    for i, place in enumerate(places):
        changed = codes.clone()
        changed[:, place] = (changed[:, place] + 1) % 13
        text_after, image_after = model(text, changed)
        assert text_after.equal(text_logits)  # text cannot see the image
        assert image_after[:, places[: i + 1]].equal(image_logits[:, places[: i + 1]])
        assert i == N - 1 or not image_after[:, places[i + 1]].allclose(image_logits[:, places[i + 1]])
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
    assert sorted(name for name, _ in model.named_buffers()) == ["column_mask", "places", "rotation", "row_mask", "steps"]
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


@each_order
def test_positions_and_angles_belong_to_the_place_not_to_the_step(order):
    model, raster, (_, codes, _) = small_model(order=order), small_model(), small_batch()
    embedded = raster.embed_codes(codes)
    assert model.embed_codes(codes[:, model.places]).equal(embedded[:, model.places])
    assert model.embed_codes(codes[:, model.places][:, 3:5], start=3).equal(embedded[:, model.places[3:5]])
    angles = rotations(T, row_major(4), grid=4, head_width=8)
    assert model.rotation.equal(torch.cat([angles[:T], angles[T:][model.places]]))


@each_order
def test_codes_in_the_order_of_decoding_go_to_their_places(order):
    model, codes = small_model(order=order), small_batch()[1]
    assert model.to_grid(codes[:, model.places]).equal(rearrange(codes, "b (g1 g2) -> b g1 g2", g1=4))


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


@each_order
def test_one_batch_is_learnt_by_heart(order):
    torch.manual_seed(0)
    model, (text, codes, _) = DALLE(DALLEConfig(**{**SMALL, "width": 32}, order=order)), small_batch(4)
    text[:, 0] = torch.arange(4)  # nothing predicts a first token, so that one must tell the captions apart
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss, _, _ = dalle_loss(*model(text, codes), text, codes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.02
    assert generate(model, text, temperature=0).flatten(1).equal(codes)


@each_order
def test_every_parameter_learns_except_the_position_drawn_last_that_is_never_read(order):
    model, (text, codes, _) = small_model(order=order), small_batch()
    dalle_loss(*model(text, codes), text, codes)[0].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    *read, last = model.image_positions.grad[model.places]
    assert last.eq(0).all() and all(position.ne(0).any() for position in read)


@pytest.mark.parametrize("nonsense", [
    dict(width=100, heads=3), dict(width=36, heads=6), dict(kernel=4), dict(attention="full,diagonal"), dict(grid=0),
    dict(text_length=1), dict(layers=0), dict(attention=""), dict(order="diagonal"), dict(width=96.0),
])
def test_config_refuses_nonsense(nonsense):
    with pytest.raises(InputError, match=f"{min(nonsense)}|rotary") as error:
        DALLEConfig(**nonsense)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", [order for order in ORDERS if order != "row_major"])
def test_patterns_that_look_back_in_reading_order_are_refused_with_another_order(order):
    for pattern in PATTERNS:
        if pattern != "full":
            with pytest.raises(InputError, match=f"{pattern} needs order row_major, not {order}"):
                DALLEConfig(order=order, attention=f"full,{pattern}")


def test_the_help_of_the_config_lists_what_can_be_chosen():
    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(DALLEConfig)}
    assert all(helps.values())
    assert all(pattern in helps["attention"] for pattern in PATTERNS) and all(order in helps["order"] for order in ORDERS)


def test_captions_of_another_length_are_a_mistake_of_the_program_not_of_its_user():
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


def test_captions_are_dropped_whole_and_in_the_share_asked_for():
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


# ------------------------------------------------------------------------------------------------- generate


@each_design
def test_cached_logits_equal_the_uncached_at_every_position(design):
    model, (text, codes, empty) = small_model(**design).double(), small_batch()
    text = torch.cat([text, repeat(empty, "t -> b t", b=3)])  # the guided pair in one batch
    codes = repeat(codes, "b n -> (two b) n", two=2)
    slow = model(text, codes)[1][:, model.places]
    drawn = codes[:, model.places]
    for known in (0, 4, 12):
        caches = [Cache(model.config.length) for _ in model.blocks]
        fast = [prefill(model, text, drawn[:, :known], caches)]
        fast += [decode(model, drawn[:, i : i + 1], caches) for i in range(known, N - 1)]
        assert all(cache.filled == model.config.length - 1 for cache in caches)  # the last code is drawn, never read
        # rotate() rounds to float32, the rest is float64
        torch.testing.assert_close(torch.stack(fast, dim=1), slow[:, known:], rtol=0, atol=4 * EPS * slow.abs().max().item())


@each_design
def test_guided_generation_equals_the_slow_loop_without_a_cache(design):
    model, (text, _, empty) = small_model(**design).double(), small_batch()
    codes = torch.zeros(3, N, dtype=torch.int64)
    nothing = repeat(empty, "t -> b t", b=3)
    for place in model.places.tolist():
        captioned, uncaptioned = model(text, codes)[1][:, place], model(nothing, codes)[1][:, place]
        codes[:, place] = (uncaptioned + 2.5 * (captioned - uncaptioned)).argmax(dim=-1)
    drawn = generate(model, text, temperature=0, guidance=2.5, empty=empty)
    assert drawn.shape == (3, 4, 4) and drawn.dtype == torch.int64
    assert drawn.flatten(1).equal(codes)
    assert not drawn.equal(generate(model, text, temperature=0))


def test_guidance_of_one_equals_no_guidance_bit_for_bit_and_runs_no_second_half():
    model, (text, _, empty) = small_model(), small_batch()
    sizes = []
    model.norm.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    assert generate(model, text, guidance=1.0, empty=empty, generator=rng()).equal(
        generate(model, text, generator=rng()))
    assert set(sizes) == {3}


def test_guidance_runs_from_the_empty_caption_through_the_real_one():
    captioned, uncaptioned = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 4.0]])
    both = torch.cat([captioned, uncaptioned])
    assert apply_guidance(both, 0.0).equal(uncaptioned)
    assert apply_guidance(both, 1.0).equal(captioned)
    assert apply_guidance(both, 3.0).equal(torch.tensor([[2.0, -2.0]]))


def test_generating_changes_nothing_that_was_passed_in():
    model, (text, codes, empty) = small_model().train(), small_batch()
    prime = rearrange(codes[:, :8], "b (r g) -> b r g", g=4)
    before = [tensor.clone() for tensor in (text, empty, prime)]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    list(generate_steps(model, text, guidance=2.0, empty=empty, prime=prime, generator=rng()))
    assert all(a.equal(b) for a, b in zip(before, (text, empty, prime)))
    assert all(state[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert model.training and torch.get_rng_state().equal(random)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_first_rows_are_kept_and_the_rest_follows_from_them():
    model, (text, codes, empty) = small_model().double(), small_batch()
    prime = rearrange(codes[:, :8], "b (r g) -> b r g", g=4)
    for guidance in (1.0, 2.0):
        drawn = generate(model, text, temperature=0, prime=prime, guidance=guidance, empty=empty)
        assert drawn[:, :2].equal(prime)
        other = generate(model, text, temperature=0, prime=(prime + 1) % 13, guidance=guidance, empty=empty)
        assert not other[:, 2:].equal(drawn[:, 2:])
        whole = generate(model, text, temperature=0, guidance=guidance, empty=empty)
        again = generate(model, text, temperature=0, guidance=guidance, empty=empty, prime=whole[:, :2])
        assert again.equal(whole)


@pytest.mark.parametrize("order", [order for order in ORDERS if order != "row_major"])
def test_the_first_rows_cannot_be_kept_where_another_order_draws_them_later(order):
    model, (text, codes, _) = small_model(order=order), small_batch()
    with pytest.raises(InputError, match=f"which order {order} does not draw first"):
        generate(model, text, prime=rearrange(codes[:, :8], "b (r g) -> b r g", g=4))


@each_order
def test_steps_grow_by_one_code_and_end_in_what_generate_returns(order):
    model, (text, _, _) = small_model(order=order), small_batch()
    steps = list(generate_steps(model, text, generator=rng()))
    assert [step.shape for step in steps] == [(3, i + 1) for i in range(N)]
    assert all(step.equal(steps[-1][:, : i + 1]) for i, step in enumerate(steps))
    assert generate(model, text, generator=rng()).equal(model.to_grid(steps[-1]))


def test_steps_include_the_rows_that_are_kept():
    model, (text, codes, _) = small_model(), small_batch()
    prime = rearrange(codes[:, :12], "b (r g) -> b r g", g=4)
    steps = list(generate_steps(model, text, prime=prime))
    assert [step.shape[1] for step in steps] == [13, 14, 15, 16]
    assert all(step[:, :12].equal(codes[:, :12]) for step in steps)


def test_generating_keeps_no_graph_and_leaves_gradients_on_between_steps():
    model, (text, _, _) = small_model(), small_batch()
    needed = []
    model.norm.register_forward_hook(lambda module, inputs, output: needed.append(output.requires_grad))
    for _ in generate_steps(model, text):
        assert torch.is_grad_enabled()
    assert not any(needed)


def test_generating_never_asks_the_device_for_a_value():
    """Tensors of the meta device have shapes but no values, so that reading or branching on one raises."""
    with torch.device("meta"):
        model, text = DALLE(DALLEConfig(**SMALL)), torch.zeros(3, T, dtype=torch.int64)
    model.to("meta")  # the mask too
    codes = generate(model, text, top_k=5, top_p=0.9, guidance=2.0, empty=text[0])
    assert codes.shape == (3, 4, 4)
    with pytest.raises(RuntimeError):
        codes.max().item()


def test_the_same_seed_draws_the_same_codes_and_another_seed_others():
    model, (text, _, _) = small_model(), small_batch()
    drawn = generate(model, text, generator=rng(3))
    assert drawn.equal(generate(model, text, generator=rng(3)))
    assert not drawn.equal(generate(model, text, generator=rng(4)))


def test_drawn_codes_can_be_trained_on():
    model, (text, _, _) = small_model(), small_batch()
    codes = generate(model, text)
    dalle_loss(*model(text, codes), text, codes)[0].backward()
    assert model.image_embedding.weight.grad.abs().sum() > 0


def test_top_k_keeps_exactly_the_k_highest():
    logits = torch.tensor([[1.0, 5.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.0]])
    assert keep_top_k(logits, 2)[0].tolist() == [-math.inf, 5.0, -math.inf, 4.0]
    assert keep_top_k(logits, 2)[1].isfinite().sum() == 2  # ties too
    assert keep_top_k(logits, 0).equal(logits) and keep_top_k(logits, 9).equal(logits)


def test_top_p_keeps_the_fewest_that_reach_p():
    logits = torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log()

    def kept(top_p):
        return keep_top_p(logits, top_p).isfinite()[0].tolist()

    assert kept(0.01) == [False, True, False, False]
    assert kept(0.49) == [False, True, False, False]
    assert kept(0.51) == [False, True, False, True]
    assert kept(0.74) == [False, True, False, True]
    assert kept(0.9) == [True, True, True, True]
    assert sum(kept(0.8)) == 3  # one of the two that tie
    assert keep_top_p(logits, 0.74)[0, [1, 3]].equal(logits[0, [1, 3]])
    assert keep_top_p(logits, 1.0).equal(logits)


def test_a_top_k_of_one_and_a_tiny_top_p_are_greedy():
    model, (text, _, _) = small_model(), small_batch()
    greedy = generate(model, text, temperature=0)
    assert generate(model, text, top_k=1).equal(greedy)
    assert generate(model, text, top_p=1e-6).equal(greedy)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_codes_are_drawn_as_often_as_the_softmax_says(temperature):
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -math.inf, 1.5])
    draws = 20000
    rows = repeat(logits, "v -> b v", b=draws)
    counts = sample_code(rows, temperature, 0, 1.0, rng()).flatten().bincount(minlength=6)
    expected = (logits / temperature).softmax(dim=0) * draws
    assert counts[4] == 0
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: one in a thousand is larger


def test_half_precision_logits_are_drawn_from_in_float32():
    logits = repeat(torch.tensor([0.0, 1.0]), "v -> b v", b=5000)
    assert sample_code(logits.bfloat16(), 1.0, 0, 1.0, rng()).equal(sample_code(logits, 1.0, 0, 1.0, rng()))


def test_generation_runs_in_bfloat16_cast_or_autocast():
    model, (text, _, empty) = small_model(), small_batch()
    with torch.autocast("cpu", torch.bfloat16):
        assert generate(model, text, guidance=2.0, empty=empty).shape == (3, 4, 4)
    assert generate(model.bfloat16(), text, top_p=0.9).shape == (3, 4, 4)


@pytest.mark.parametrize("nonsense", [
    dict(temperature=-1.0), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.1), dict(guidance=2.0),
    dict(prime=torch.zeros(3, 4, 4, dtype=torch.int64)), dict(prime=torch.zeros(3, 8, dtype=torch.int64)),
    dict(prime=torch.zeros(2, 1, 4, dtype=torch.int64)),
    dict(prime=torch.zeros(3, 1, 4, 1, dtype=torch.int64)),
])
def test_generate_refuses_nonsense(nonsense):
    with pytest.raises(InputError, match=min(nonsense)):
        generate(small_model(), small_batch()[0], **nonsense)


def test_rerank_puts_the_best_first_and_leaves_the_images_alone():
    images = torch.rand(5, 3, 8, 8, generator=rng())
    before = images.clone()
    order = rerank(images, lambda images: images.mean(dim=(1, 2, 3)))
    assert images[order].mean(dim=(1, 2, 3)).diff().le(0).all() and sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert images.equal(before)


# ------------------------------------------------------------------------------------------------- pretrained


def checkpoint_of(model: DALLE, **changes) -> dict:
    config, weights = dataclasses.asdict(model.config), model.state_dict()
    return {"kind": "dalle", "config": config, "weights": weights, "step": 7, **changes}


@each_design
def test_a_saved_model_comes_back_the_same_and_in_eval_mode(tmp_path, design):
    model, (text, codes, _) = small_model(**design).train(), small_batch()
    torch.save(checkpoint_of(model), tmp_path / "dalle.pt")
    loaded = load(tmp_path / "dalle.pt")
    assert loaded.config == model.config and not loaded.training
    assert loaded(text, codes)[1].equal(model(text, codes)[1])
    torch.save(checkpoint_of(model), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert load(tmp_path / "legacy.pt")(text, codes)[1].equal(model(text, codes)[1])


def test_a_checkpoint_that_holds_the_weight_of_the_text_loss_as_older_ones_do_loads(tmp_path):
    model, (text, codes, _) = small_model(), small_batch()
    older = dataclasses.asdict(model.config) | {"text_loss_weight": 0.125}
    del older["order"]
    torch.save(checkpoint_of(model, config=older), tmp_path / "dalle.pt")
    loaded = load(tmp_path / "dalle.pt")
    assert loaded.config == model.config and loaded(text, codes)[1].equal(model(text, codes)[1])


@pytest.mark.parametrize("content", [
    {"kind": "clip", "config": {}, "weights": {}}, {"model": 1, "epoch": 2}, [1, 2],
])
def test_a_file_of_another_kind_is_refused_in_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match="other.pt is .*mindalle reads a dalle.pt") as error:
        load(path)
    assert "\n" not in str(error.value)
    if isinstance(content, dict) and "kind" in content:
        assert "'clip'" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02garbage", b"PK\x03\x04broken"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="broken.pt is damaged, or no file") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_weights_or_a_config_that_do_not_fit_are_refused_in_one_line(tmp_path):
    model = small_model()
    path = tmp_path / "bent.pt"
    bent = [checkpoint_of(model, weights={}), checkpoint_of(model, config={"depth": 3}),
            checkpoint_of(model, config={"width": 7, "heads": 2}), {"kind": "dalle"}]
    for checkpoint in bent:
        torch.save(checkpoint, path)
        with pytest.raises(InputError, match="bent.pt looks like a dalle.pt") as error:
            load(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, reason", [
    ("none.pt", "No such file"), ("none/dalle.pt", "No such file"), ("x" * 300, "File name too long"),
])
def test_a_file_that_cannot_be_opened_is_refused_in_one_line(tmp_path, name, reason):
    for reader in (load, Tokenizer.load):
        with pytest.raises(InputError, match=rf"{name}: {reason}") as error:
            reader(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_bug_in_a_hacked_layer_shows_itself_when_weights_are_loaded(tmp_path, monkeypatch):
    torch.save(checkpoint_of(small_model()), tmp_path / "dalle.pt")
    monkeypatch.setattr("mindalle.model.Block", lambda width, heads: 1 + "1")
    with pytest.raises(TypeError, match="unsupported operand") as error:
        load(tmp_path)
    assert not isinstance(error.value, InputError)


class Malicious:
    """Write a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path, zipped):
    path, victim = tmp_path / "evil.pt", tmp_path / "victim"
    torch.save({"kind": "dalle", "config": Malicious(victim)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"evil.pt asks to run [\w.]*open, which no file of weights needs") as error:
        load(path)
    assert not victim.exists() and "\n" not in str(error.value)
    pickle.loads(pickle.dumps(Malicious(victim))).close()  # the trap works
    assert victim.exists()


def test_weights_stay_in_the_file_and_learn_in_memory(tmp_path):
    model, (text, codes, _) = small_model(), small_batch()
    torch.save(checkpoint_of(model), tmp_path / "dalle.pt")
    checkpoint = read(tmp_path / "dalle.pt")
    with torch.device("meta"):
        loaded = DALLE(model.config)
    fit(loaded, checkpoint["weights"])
    assert all(parameter.data_ptr() == checkpoint["weights"][name].data_ptr()  # not a copy
               for name, parameter in loaded.named_parameters())
    (tmp_path / "new.pt").write_bytes(b"")
    (tmp_path / "new.pt").replace(tmp_path / "dalle.pt")  # as training on saves: what is mapped is the old file
    before = loaded(text, codes)[1]
    assert before.equal(model(text, codes)[1])
    optimiser = torch.optim.SGD(loaded.parameters(), lr=0.1)
    dalle_loss(*loaded(text, codes), text, codes)[0].backward()
    optimiser.step()
    assert not loaded(text, codes)[1].allclose(before)


def test_weights_saved_in_half_precision_come_back_in_float32(tmp_path):
    model = small_model()
    halves = {name: weight.bfloat16() for name, weight in model.state_dict().items()}
    torch.save(checkpoint_of(model, weights=halves), tmp_path / "dalle.pt")
    loaded = load(tmp_path)  # the folder will do
    assert all(weight.equal(halves[name].float()) for name, weight in loaded.state_dict().items())


@each_design
def test_a_model_built_on_the_meta_device_has_its_masks_angles_and_order(design):
    with torch.device("meta"):
        model = DALLE(DALLEConfig(**SMALL, **design))
    assert all(parameter.is_meta for parameter in model.parameters())
    expected = dict(small_model(**design).named_buffers())
    assert expected.keys() == dict(model.named_buffers()).keys()
    assert all(buffer.equal(expected[name]) for name, buffer in model.named_buffers())


# ------------------------------------------------------------------------------------------------- published weights

# kakaobrain/minDALL-E at e548007, filled by seeded.fill under its own names, computed the numbers below.
PUBLISHED = {
    "one head": dict(
        sizes=dict(text_vocab=50, image_vocab=64, text_length=8, grid=4, width=64, layers=2), heads=1,
        text_logits=([0.2640758, 1.504564, 0.8528092, 0.6022123], [-0.2358113, 1.009312], 0.3488748),
        image_logits=([0.7691364, 0.08773731, -0.4442334, 1.004417], [1.392154, 1.489027], -0.9554443),
        losses=(4.224875, 4.873629),
        greedy=[[36, 62, 36, 36, 36, 36, 36, 17, 36, 36, 36, 36, 36, 36, 46, 36],
                [44, 3, 3, 15, 27, 50, 62, 46, 34, 27, 50, 40, 58, 40, 54, 49]],
    ),
    "four heads": dict(
        sizes=dict(text_vocab=40, image_vocab=72, text_length=12, grid=8, width=96, layers=3), heads=4,
        text_logits=([0.7602104, 0.6949543, -0.4437069, 2.297569], [1.57212, 1.883745], 0.9417629),
        image_logits=([0.8524957, -0.1159822, 0.2427365, 0.1476652], [0.7822388, 1.720149], 0.03528167),
        losses=(4.189077, 4.673609),
        greedy=[[19, 19, 19] + [14] * 12 + [19] + [14] * 6 + [19] + [14] * 35 + [19] + [14] * 5, [14] * 64],
    ),
}
SMALLEST = PUBLISHED["one head"]["sizes"]


def published_shapes(text_vocab, image_vocab, text_length, grid, width, layers) -> dict[str, tuple[int, ...]]:
    """List the names and shapes of minDALL-E's weights, as facts: nothing here is derived from our code."""
    d = width
    shapes = {"tok_emb_img.weight": (image_vocab, d), "tok_emb_txt.weight": (text_vocab, d),
              "pos_emb_img.weight": (grid**2, d), "pos_emb_txt.weight": (text_length, d)}
    for block in (f"blocks.{layer}" for layer in range(layers)):
        for norm in ("ln1", "ln2"):
            shapes |= {f"{block}.{norm}.weight": (d,), f"{block}.{norm}.bias": (d,)}
        for linear, rows, columns in (("attn.key", d, d), ("attn.query", d, d), ("attn.value", d, d),
                                      ("attn.proj", d, d), ("mlp.0", 4 * d, d), ("mlp.2", d, 4 * d)):
            shapes |= {f"{block}.{linear}.weight": (rows, columns), f"{block}.{linear}.bias": (rows,)}
    return shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,), "head_img.weight": (image_vocab, d),
                     "head_txt.weight": (text_vocab, d)}


def published_yaml(text_vocab, image_vocab, text_length, grid, width, layers, heads) -> str:
    """Write a config.yaml as minDALL-E does, with names that both stages use and a comment that misleads."""
    return f"""
stage1:
  type: vqgan
  embed_dim: 256
  hparams:
    n_heads: 3

stage2:
  type: transformer1d
  vocab_size_txt: {text_vocab}
  vocab_size_img: {image_vocab}
  hparams:
    embed_dim: {width}
    n_layers: {layers}
    # n_heads: 7
    n_heads: {heads}
    n_dense_layers: {layers}
    ctx_len_img: {grid**2}
    ctx_len_txt: {text_length}
    embd_pdrop: 0.0
    gelu_use_approx: False

optimizer:
  n_heads: 5
"""


def publish(folder, name: str = "one head", change=lambda weights: None, yaml: str | None = None, **extras):
    """Write the files that minDALL-E publishes into a folder, and return it."""
    sizes, heads = PUBLISHED[name]["sizes"], PUBLISHED[name]["heads"]
    weights = {key: seeded.fill(key, shape) for key, shape in published_shapes(**sizes).items()}
    change(weights)
    torch.save({"state_dict": weights, **extras}, folder / "stage2_last.ckpt")
    (folder / "config.yaml").write_text(published_yaml(**sizes, heads=heads) if yaml is None else yaml)
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_mindalle_computes_what_its_own_code_computes(name, tmp_path):
    facts = PUBLISHED[name]
    model = load(publish(tmp_path, name))
    assert model.config == DALLEConfig(**facts["sizes"], heads=facts["heads"], rotary=False) and not model.training
    text = seeded.ids(6, 2, model.config.text_length, model.config.text_vocab)
    codes = seeded.ids(7, 2, model.config.image_length, model.config.image_vocab)
    text_logits, image_logits = model(text, codes)
    for logits, (first, last, probe) in ((text_logits, facts["text_logits"]), (image_logits, facts["image_logits"])):
        assert logits.flatten()[:4].tolist() == pytest.approx(first, abs=1e-4)
        assert logits.flatten()[-2:].tolist() == pytest.approx(last, abs=1e-4)
        assert seeded.probe(logits) == pytest.approx(probe, abs=1e-4)  # every element has a part in it
    losses = dalle_loss(text_logits, image_logits, text, codes)[1:]
    assert [loss.item() for loss in losses] == pytest.approx(facts["losses"], abs=1e-4)
    assert generate(model, text, temperature=0).flatten(1).tolist() == facts["greedy"]


def test_the_published_shape_is_the_large_preset_and_needs_no_config(tmp_path):
    with torch.device("meta"):
        theirs = {name: torch.empty(shape) for name, shape in published_shapes(
            text_vocab=16384, image_vocab=16384, text_length=64, grid=16, width=1536, layers=42).items()}
        model = DALLE(DALLEConfig.mindalle_1_3b())
    assert len(theirs) == 680 and sum(tensor.numel() for tensor in theirs.values()) == 1_291_081_728
    config, weights = from_mindalle({"state_dict": theirs}, tmp_path / "stage2_last.ckpt")
    assert config == DALLEConfig.mindalle_1_3b()
    fit(model, weights)  # every name and every shape
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_291_081_728


def test_mindalle_loads_bare_in_half_precision_or_with_masks_and_only_what_is_joined_is_copied(tmp_path):
    masked = {"blocks.0.attn.mask": torch.ones(1, 24, 24)}
    nested = load(publish(tmp_path, change=lambda weights: weights.update(masked)))
    bare = {name: weight.half() for name, weight in read(tmp_path / "stage2_last.ckpt")["state_dict"].items()}
    torch.save(bare, tmp_path / "bare.ckpt")
    for name, weight in load(tmp_path / "bare.ckpt").state_dict().items():
        assert weight.dtype == torch.float32 and weight.equal(nested.state_dict()[name].half().float())
    theirs = read(tmp_path / "bare.ckpt")
    _, ours = from_mindalle(theirs, tmp_path / "bare.ckpt")
    mapped = {tensor.data_ptr() for tensor in theirs.values()}
    assert all((tensor.data_ptr() in mapped) != ("qkv" in name) for name, tensor in ours.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_lightning_file_that_names_its_callback_class_loads(tmp_path, monkeypatch, zipped):
    module, name = "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"
    callback = type(name, (), {"__module__": module})
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks", module):  # pickle looks it up there
        monkeypatch.setitem(sys.modules, parent, SimpleNamespace(ModelCheckpoint=callback))
    weights = {key: seeded.fill(key, shape) for key, shape in published_shapes(**SMALLEST).items()}
    checkpoint = {"epoch": 3, "callbacks": {callback: {"dirpath": "x"}}, "optimizer_states": [], "state_dict": weights}
    torch.save(checkpoint, tmp_path / "stage2_last.ckpt", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    (tmp_path / "config.yaml").write_text(published_yaml(**SMALLEST, heads=1))
    assert load(tmp_path).config == DALLEConfig(**SMALLEST, heads=1, rotary=False)
    assert not any(name in str(allowed) for allowed in torch.serialization.get_safe_globals())  # only for that one call


@pytest.mark.parametrize("change, message", [
    (lambda weights: weights.pop("tok_emb_txt.weight"), "tok_emb_txt.weight is missing"),
    (lambda weights: weights.pop("blocks.1.attn.key.bias"), "blocks.1.attn.key.bias is missing"),
    (lambda weights: weights.pop("head_txt.weight"), "text_head.weight is missing"),
    (lambda weights: weights.update({"blocks.0.rel.weight": torch.ones(2)}), "blocks.0.rel.weight is one too many"),
    (lambda weights: weights.update({"ln_f.bias": torch.ones(9)}), "norm.bias has another shape"),
    (lambda weights: weights.update({"pos_emb_img.weight": torch.ones(17, 64)}), "another shape|ctx_len_img"),
    (lambda weights: weights.update({"blocks.1.attn.query.weight": torch.ones(63, 64),
                                     "blocks.1.attn.key.weight": torch.ones(65, 64)}),
     "blocks.1.attn.query.weight has another shape"),
    (lambda weights: weights.update({"ln_f.bias": "text"}), "'str'"),
])
def test_weights_of_mindalle_that_do_not_fit_are_named(tmp_path, change, message):
    with pytest.raises(InputError, match=f"looks like minDALL-E's .* does not fit: .*({message})") as error:
        load(publish(tmp_path, change=change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("say, instead, message", [
    ("n_heads: 1", "", "put the config.yaml with its n_heads"),
    ("n_heads: 1", "n_heads: 7", "not divisible by 7 heads"),
    ("gelu_use_approx: False", "gelu_use_approx: True", "gelu_use_approx: True"),
    ("type: transformer1d", "type: igpt", "type: igpt"),
    ("embed_dim: 64", "embed_dim: 1536", "embed_dim: 1536"),
    ("n_layers: 2", "n_layers: 42", "n_layers: 42"),
    ("vocab_size_txt: 50", "vocab_size_txt: 51", "vocab_size_txt: 51"),
    ("vocab_size_img: 64", "vocab_size_img: 51", "vocab_size_img: 51"),
    ("ctx_len_txt: 8", "ctx_len_txt: 9", "ctx_len_txt: 9"),
    ("ctx_len_img: 16", "ctx_len_img: 25", "ctx_len_img: 25"),
])
def test_a_config_that_is_silent_on_heads_or_says_what_is_not_so_is_refused(tmp_path, say, instead, message):
    yaml = published_yaml(**SMALLEST, heads=1)
    assert say in yaml
    with pytest.raises(InputError, match=message):
        load(publish(tmp_path, yaml=yaml.replace(say, instead)))


def test_heads_are_read_from_a_config_of_one_line_too(tmp_path):
    yaml = "stage2: {type: 'transformer1d', hparams: {embed_dim: 64, n_heads: 4, gelu_use_approx: false}}  # n_heads: 2"
    assert load(publish(tmp_path, yaml=yaml)).config.heads == 4


def test_a_config_that_cannot_be_read_is_refused_by_name(tmp_path, monkeypatch):
    def read_text(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    publish(tmp_path)
    monkeypatch.setattr("pathlib.Path.read_text", read_text)
    with pytest.raises(InputError, match="config.yaml: Permission denied") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_without_a_config_ask_for_it(tmp_path):
    publish(tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(InputError, match="put the config.yaml"):
        load(tmp_path)


def test_a_folder_without_weights_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} has no dalle.pt and no stage2_last.ckpt"):
        load(tmp_path)


# ------------------------------------------------------------------------------------------------- tokenizer

# A vocabulary in the order of the published one: two special tokens, characters, the same ending a word, merges.
CHARACTERS, ENDINGS = "!#$&'(),-.012345:?@abcdefghiklmnoprstuvwyéï—日本", "htlw!g?fé.a&sn本e日,5'4k0:$p3-y@#d—)("
MERGES = """h e_ t he_ c a m a l a v e_ a b g e_ l l_ o n_ o ve_ r ge_ s ma la rge_ ab ove_ sma ll_ i n e a h a r e s
e b l b ea c i c l c h_ d e e l e p f é_ n t_ p in r t_ r cl u e_ ca t_ ca fé_ ha nt_ re d_ se rt_ bl ue_ bea ch_ ci
rcl de sert_ el ep pin k_ circl e_ elep hant_ i t_ m e_ 1 0_ 2 4_ 3 0_ a ï a in a me_ c h d o e t_ e y_ f r g s_ g n_
g la i s i t i l_ i n_ i gn_ k ey_ m o n o n aï n gla n key_ o f_ p ain s t s u s se s ign_ t s_ t in w it ca ts_ ma
n_ ma il_ ea p_ ha t_ re et_ ch eap_ do gs_ fr ame_ is n_ mo nkey_ no w_ naï ve_ ngla sse pain tin st reet_ su nglasse
wit h_ paintin g_ sunglasse s_""".replace("_", "</w>").split()
PAIRS = list(zip(MERGES[::2], MERGES[1::2]))
TOKENS = ["[PAD]", "[UNK]", *CHARACTERS, *(letter + "</w>" for letter in ENDINGS), *map("".join, PAIRS)]


def publish_tokenizer(folder, tokens=TOKENS, pairs=PAIRS):
    """Write the tokenizer's two files as minDALL-E names them, and return the folder."""
    folder.mkdir(exist_ok=True)
    ids = {token: i for i, token in enumerate(tokens)}
    (folder / "bpe-16k-vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2 - Trained by `huggingface/tokenizers`", *map(" ".join, pairs), ""]
    (folder / "bpe-16k-merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


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
    tokenizer = Tokenizer.load(publish_tokenizer(tmp_path))
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
    tokenizer = Tokenizer({token: i for i, token in enumerate(tokens)},
                          [("b", "b"), ("a", "b"), ("a", "a"), ("a", "a</w>"), ("a", "bb")])

    def split(word):
        return [tokens[i] for i in tokenizer.encode(word, 9)[0].tolist() if i]

    assert split("abba") == ["abb", "a</w>"]
    assert split("bbba") == ["bb", "b", "a</w>"]
    assert split("aaaaa") == ["aa", "aa", "a</w>"]
    assert split("aaaa") == ["aa", "aa</w>"]


def test_the_example_of_the_tokenizers_docstring_is_true(tmp_path):
    tokenizer = Tokenizer.load(publish_tokenizer(tmp_path))
    rows = tokenizer.encode(["A red circle, [UNK]ž", ""], 8)
    assert rows.dtype == torch.int64 and rows.tolist() == [[58, 121, 129, 65, 1, 1, 0, 0], [0] * 8]
    assert tokenizer.decode(rows[0]) == "a red circle , [UNK][UNK]" and tokenizer.decode(rows[1]) == ""
    assert tokenizer.encode("A red circle, [UNK]ž", 3).tolist() == [[58, 121, 129]]  # cut
    assert (tokenizer.vocab_size, tokenizer.pad, tokenizer.unknown) == (187, 0, 1)


def test_special_tokens_go_by_name_not_by_number():
    tokenizer = Tokenizer({"a</w>": 0, "[UNK]": 1, "[PAD]": 2}, [])
    assert tokenizer.encode("a ?", 4).tolist() == [[0, 1, 2, 2]] and tokenizer.decode([0, 1, 2, 2]) == "a [UNK]"


def test_a_tokenizer_loads_from_its_file_its_folder_or_the_folder_around_and_has_one_fingerprint(tmp_path):
    folder = publish_tokenizer(tmp_path / "tokenizer")
    marks = {Tokenizer.load(path).fingerprint for path in (tmp_path, folder, folder / "bpe-16k-vocab.json")}
    assert len(marks) == 1 and len(min(marks)) == 12
    others = [Tokenizer.load(publish_tokenizer(folder, pairs=PAIRS[::-1])),
              Tokenizer.load(publish_tokenizer(folder, tokens=[*TOKENS[:2], *TOKENS[:1:-1]]))]
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
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_half_of_a_tokenizer_says_so(tmp_path):
    (publish_tokenizer(tmp_path) / "bpe-16k-merges.txt").unlink()
    with pytest.raises(InputError, match="bpe-16k-merges.txt: No such file"):
        Tokenizer.load(tmp_path)
