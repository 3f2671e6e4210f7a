"""What mindalle promises: every name is a claim, and each can fail."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat

from mindalle import (
    DALLE, DALLEConfig, dalle_loss, drop_captions, generate, generate_steps, load, rerank,
)
from mindalle.generate import decode, guide, keep_top_k, keep_top_p, prefill, sample
from mindalle.layers import (
    KINDS, Block, Cache, attend, attention_mask, column_mask, convolutional_mask, row_mask,
)

SMALL = dict(text_vocab=11, image_vocab=13, text_length=5, grid=4, width=16, layers=2, heads=2)
T, N = 5, 16  # text tokens and codes of the small model


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


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(mask: torch.Tensor) -> str:
    return "\n".join("".join("x" if cell else "." for cell in row) for row in mask.tolist())


# ------------------------------------------------------------------------------------------------- layers


def test_attend_equals_scaled_dot_product_attention():
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=seeded())
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_row_attention_sees_the_g_codes_before_it_and_itself():
    assert picture(row_mask(3)) == "\n".join([
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
    assert picture(column_mask(3)) == "\n".join([
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
        "x....",
        "xx...",
        "xxx..",
        "xx.x.",
        "xxx.x",
    ])


def test_each_kind_has_its_mask():
    assert attention_mask("full", 5, 4, 3).equal(torch.ones(20, 20, dtype=torch.bool).tril())
    images = dict(row=row_mask(4), column=column_mask(4), convolutional=convolutional_mask(4, 5))
    for kind, image in images.items():
        assert attention_mask(kind, 5, 4, 5)[5:, 5:].equal(image[:-1, :-1])


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
    x, mask = torch.randn(3, 6, 16), torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(ours(x, mask), theirs(x, src_mask=~mask))


# ------------------------------------------------------------------------------------------------- model


def test_the_shapes_are_those_promised_and_codes_may_come_as_a_grid():
    model, (text, codes, _) = small_model(), small_batch()
    text_logits, image_logits = model(text, codes)
    assert text_logits.shape == (3, T - 1, 11) and image_logits.shape == (3, N, 13)
    assert model(text, rearrange(codes, "b (g1 g2) -> b g1 g2", g1=4))[1].equal(image_logits)


@pytest.mark.parametrize("kind", KINDS)
def test_no_prediction_depends_on_its_target_or_on_what_follows(kind):
    model, (text, codes, _) = small_model(attention=kind), small_batch(1)
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
    model, (text, codes, _) = small_model(), small_batch()
    x = model.hidden(model.embed_text(text))
    torch.testing.assert_close(model(text, codes)[1][:, 0], model.image_head(x[:, -1]))


def test_layers_cycle_through_the_attention_pattern_and_share_masks():
    model = small_model(layers=5, attention="row,column,row")
    assert model.config.kinds == ("row", "column", "row", "row", "column")
    assert sorted(name for name, _ in model.named_buffers()) == ["column_mask", "row_mask"]
    assert not any("mask" in name for name in model.state_dict())


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
        assert abs(weight.std() / (0.02 / 4) - 1) < 0.03
    for weight in (block.attention.qkv.weight, block.mlp.expand.weight, model.text_head.weight,
                   model.text_positions, model.image_embedding.weight):
        assert abs(weight.std() / 0.02 - 1) < 0.03
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


def test_every_parameter_learns_except_the_last_position_that_is_never_read():
    model, (text, codes, _) = small_model(), small_batch()
    dalle_loss(*model(text, codes), text, codes)[0].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert model.image_positions.grad[-1].eq(0).all() and model.image_positions.grad[-2].ne(0).any()


@pytest.mark.parametrize("nonsense", [
    dict(width=100, heads=3), dict(kernel=4), dict(attention="full,diagonal"), dict(grid=0),
    dict(text_length=1), dict(layers=0), dict(text_loss_weight=1.5), dict(attention=""),
])
def test_config_refuses_nonsense(nonsense):
    with pytest.raises(ValueError):
        DALLEConfig(**nonsense)


def test_captions_of_another_length_are_refused():
    model, (text, codes, _) = small_model(), small_batch()
    with pytest.raises(ValueError, match="pad or cut"):
        model(text[:, :1], codes)


def test_the_large_preset_has_the_tensors_of_mindalle():
    """minDALL-E's names and shapes, with query, key and value joined, are ours one for one."""
    d, theirs = 1536, {}
    for name, rows in (("text_embedding", 16384), ("image_embedding", 16384), ("text_head", 16384),
                       ("image_head", 16384)):
        theirs[f"{name}.weight"] = [(rows, d)]
    theirs |= {"text_positions": [(64, d)], "image_positions": [(256, d)],
               "norm.weight": [(d,)], "norm.bias": [(d,)]}
    for block in (f"blocks.{layer}." for layer in range(42)):
        for norm in ("ln_1", "ln_2"):
            theirs |= {f"{block}{norm}.weight": [(d,)], f"{block}{norm}.bias": [(d,)]}
        theirs |= {f"{block}attention.qkv.weight": [(d, d)] * 3, f"{block}attention.qkv.bias": [(d,)] * 3,
                   f"{block}attention.out.weight": [(d, d)], f"{block}attention.out.bias": [(d,)],
                   f"{block}mlp.expand.weight": [(4 * d, d)], f"{block}mlp.expand.bias": [(4 * d,)],
                   f"{block}mlp.contract.weight": [(d, 4 * d)], f"{block}mlp.contract.bias": [(d,)]}
    assert sum(map(len, theirs.values())) == 680

    with torch.device("meta"):
        model = DALLE(DALLEConfig.mindalle_1_3b())
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_291_081_728
    joined = {name: (sum(shape[0] for shape in shapes), *shapes[0][1:]) for name, shapes in theirs.items()}
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == joined


# ------------------------------------------------------------------------------------------------- loss


def test_the_image_weighs_seven_times_the_text():
    text, codes, _ = small_batch()
    text_logits, image_logits = torch.randn(3, T - 1, 11, generator=seeded()), torch.randn(3, N, 13)
    loss, text_loss, image_loss = dalle_loss(text_logits, image_logits, text, codes)
    assert loss == (1 * text_loss + 7 * image_loss) / 8
    assert dalle_loss(text_logits, image_logits, text, codes, text_weight=0.0)[0] == image_loss


def test_losses_are_the_mean_surprise_at_the_tokens_predicted():
    text, codes, _ = small_batch()
    text_logits, image_logits = torch.zeros(3, T - 1, 11), torch.zeros(3, N, 13)
    text_logits[0, 2, text[0, 3]] = 50.0  # certain and right about one text token of 12
    image_logits[1, 4, codes[1, 4]] = 50.0  # and about one code of 48
    _, text_loss, image_loss = dalle_loss(text_logits, image_logits, text, codes)
    assert text_loss.item() == pytest.approx(math.log(11) * 11 / 12)
    assert image_loss.item() == pytest.approx(math.log(13) * 47 / 48)


def test_captions_are_dropped_whole_and_in_the_share_asked_for():
    text = torch.randint(1, 11, (4000, T), generator=seeded())
    empty, kept = torch.zeros(T, dtype=torch.int64), text.clone()
    assert drop_captions(text, empty, 0.0, seeded()).equal(text)
    assert drop_captions(text, empty, 1.0, seeded()).eq(empty).all()
    dropped = drop_captions(text, empty, 0.3, seeded())
    is_empty, is_kept = dropped.eq(empty).all(dim=1), dropped.eq(kept).all(dim=1)
    assert (is_empty ^ is_kept).all()
    assert abs(is_empty.float().mean() - 0.3) < 0.03  # four standard deviations
    assert text.equal(kept) and drop_captions(text, empty, 0.3, seeded()).equal(dropped)


# ------------------------------------------------------------------------------------------------- generate


@pytest.mark.parametrize("kind", KINDS)
def test_cached_logits_equal_the_uncached_at_every_position(kind):
    model, (text, codes, empty) = small_model(attention=kind), small_batch()
    text = torch.cat([text, repeat(empty, "t -> b t", b=3)])  # the guided pair in one batch
    codes = repeat(codes, "b n -> (two b) n", two=2)
    slow = model(text, codes)[1]
    for known in (0, 4, 12):
        caches = [Cache(model.config.length) for _ in model.blocks]
        fast = [prefill(model, text, codes[:, :known], caches)]
        fast += [decode(model, codes[:, i : i + 1], i, caches) for i in range(known, N - 1)]
        torch.testing.assert_close(torch.stack(fast, dim=1), slow[:, known:])


@pytest.mark.parametrize("kind", KINDS)
def test_guided_generation_equals_the_slow_loop_without_a_cache(kind):
    model, (text, _, empty) = small_model(attention=kind), small_batch()
    codes = torch.zeros(3, N, dtype=torch.int64)
    nothing = repeat(empty, "t -> b t", b=3)
    for i in range(N):
        captioned, uncaptioned = model(text, codes)[1][:, i], model(nothing, codes)[1][:, i]
        codes[:, i] = (uncaptioned + 2.5 * (captioned - uncaptioned)).argmax(dim=-1)
    drawn = generate(model, text, temperature=0, guidance=2.5, empty=empty)
    assert drawn.shape == (3, 4, 4) and drawn.dtype == torch.int64
    assert drawn.flatten(1).equal(codes)
    assert not drawn.equal(generate(model, text, temperature=0))


def test_guidance_of_one_equals_no_guidance_bit_for_bit_and_runs_no_second_half():
    model, (text, _, empty) = small_model(), small_batch()
    sizes = []
    model.norm.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    assert generate(model, text, guidance=1.0, empty=empty, generator=seeded()).equal(
        generate(model, text, generator=seeded()))
    assert set(sizes) == {3}


def test_guidance_runs_from_the_empty_caption_through_the_given_one():
    captioned, uncaptioned = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 4.0]])
    both = torch.cat([captioned, uncaptioned])
    assert guide(both, 0.0).equal(uncaptioned)
    assert guide(both, 1.0).equal(captioned)
    assert guide(both, 3.0).equal(torch.tensor([[2.0, -2.0]]))


def test_generating_changes_nothing_that_was_passed_in():
    model, (text, codes, empty) = small_model().train(), small_batch()
    prime = rearrange(codes[:, :8], "b (r g) -> b r g", g=4)
    given = [tensor.clone() for tensor in (text, empty, prime)]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    list(generate_steps(model, text, guidance=2.0, empty=empty, prime=prime, generator=seeded()))
    assert all(a.equal(b) for a, b in zip(given, (text, empty, prime)))
    assert all(state[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert model.training and torch.get_rng_state().equal(random)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_first_rows_are_kept_and_the_rest_follows_from_them():
    model, (text, codes, empty) = small_model(), small_batch()
    prime = rearrange(codes[:, :8], "b (r g) -> b r g", g=4)
    for guidance in (1.0, 2.0):
        drawn = generate(model, text, temperature=0, prime=prime, guidance=guidance, empty=empty)
        assert drawn[:, :2].equal(prime)
        other = generate(model, text, temperature=0, prime=(prime + 1) % 13, guidance=guidance, empty=empty)
        assert not other[:, 2:].equal(drawn[:, 2:])
        whole = generate(model, text, temperature=0, guidance=guidance, empty=empty)
        again = generate(model, text, temperature=0, guidance=guidance, empty=empty, prime=whole[:, :2])
        assert again.equal(whole)


def test_steps_grow_by_one_code_and_end_in_what_generate_returns():
    model, (text, codes, _) = small_model(), small_batch()
    steps = list(generate_steps(model, text, generator=seeded()))
    assert [step.shape for step in steps] == [(3, i + 1) for i in range(N)]
    assert all(step.equal(steps[-1][:, : i + 1]) for i, step in enumerate(steps))
    assert generate(model, text, generator=seeded()).flatten(1).equal(steps[-1])
    prime = rearrange(codes[:, :12], "b (r g) -> b r g", g=4)
    assert [step.shape[1] for step in generate_steps(model, text, prime=prime)] == [13, 14, 15, 16]


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
    codes = generate(model, text, top_k=5, top_p=0.9, guidance=2.0, empty=text[0])
    assert codes.shape == (3, 4, 4)
    with pytest.raises(RuntimeError):
        codes.max().item()


def test_the_same_seed_draws_the_same_codes_and_another_seed_others():
    model, (text, _, _) = small_model(), small_batch()
    drawn = generate(model, text, generator=seeded(3))
    assert drawn.equal(generate(model, text, generator=seeded(3)))
    assert not drawn.equal(generate(model, text, generator=seeded(4)))


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
    counts = sample(rows, temperature, 0, 1.0, seeded()).flatten().bincount(minlength=6)
    expected = (logits / temperature).softmax(dim=0) * draws
    assert counts[4] == 0
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: one in a thousand is larger


def test_half_precision_logits_are_drawn_from_in_float32():
    logits = repeat(torch.tensor([0.0, 1.0]), "v -> b v", b=5000)
    assert sample(logits.bfloat16(), 1.0, 0, 1.0, seeded()).equal(sample(logits, 1.0, 0, 1.0, seeded()))


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
    with pytest.raises(ValueError):
        generate(small_model(), small_batch()[0], **nonsense)


def test_rerank_puts_the_best_first_and_leaves_the_images_alone():
    images = torch.rand(5, 3, 8, 8, generator=seeded())
    given = images.clone()
    order = rerank(images, lambda images: images.mean(dim=(1, 2, 3)))
    assert images[order].mean(dim=(1, 2, 3)).diff().le(0).all() and sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert images.equal(given)


# ------------------------------------------------------------------------------------------------- pretrained


def checkpoint_of(model: DALLE, **changes) -> dict:
    config, weights = dataclasses.asdict(model.config), model.state_dict()
    return {"kind": "dalle", "config": config, "weights": weights, "step": 7, **changes}


def test_a_saved_model_comes_back_the_same_and_in_eval_mode(tmp_path):
    model, (text, codes, _) = small_model(attention="row,column").train(), small_batch()
    torch.save(checkpoint_of(model), tmp_path / "dalle.pt")
    loaded = load(tmp_path / "dalle.pt")
    assert loaded.config == model.config and not loaded.training
    assert loaded(text, codes)[1].equal(model(text, codes)[1])
    torch.save(checkpoint_of(model), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert load(tmp_path / "legacy.pt")(text, codes)[1].equal(model(text, codes)[1])


@pytest.mark.parametrize("content", [
    {"kind": "clip", "config": {}, "weights": {}}, {"model": 1, "epoch": 2}, [1, 2],
])
def test_a_file_of_another_kind_is_refused_in_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match="other.pt is .*mindalle reads a dalle.pt") as error:
        load(path)
    assert "\n" not in str(error.value)
    if isinstance(content, dict) and "kind" in content:
        assert "'clip'" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02garbage", b"PK\x03\x04broken"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken.pt is no file") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_weights_or_a_config_that_do_not_fit_are_refused_in_one_line(tmp_path):
    model = small_model()
    path = tmp_path / "bent.pt"
    bent = [checkpoint_of(model, weights={}), checkpoint_of(model, config={"depth": 3}),
            checkpoint_of(model, config={"width": 7, "heads": 2}), {"kind": "dalle"}]
    for checkpoint in bent:
        torch.save(checkpoint, path)
        with pytest.raises(ValueError, match="bent.pt looks like a dalle.pt") as error:
            load(path)
        assert "\n" not in str(error.value)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pt")


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
    with pytest.raises(ValueError, match="evil.pt is no file") as error:
        load(path)
    assert not victim.exists() and "\n" not in str(error.value)
    pickle.loads(pickle.dumps(Malicious(victim))).close()  # the trap works
    assert victim.exists()
