"""What drawing with mindalle promises: every name is a claim, and each can fail."""

import copy
import math

import pytest
import torch
from einops import rearrange, repeat

from mindalle import DALLE, DALLEConfig, InputError, dalle_loss, generate, generate_steps, rerank
from mindalle.generate import apply_guidance, decode, keep_top_k, keep_top_p, prefill, sample_code
from mindalle.layers import Cache
from small_dalle import EPS, SMALL, N, T, each_design, rng, small_batch, small_model


@each_design
def test_cached_logits_equal_the_uncached_at_every_position(design):
    model, (text, codes, empty) = small_model(**design).double(), small_batch()
    text = torch.cat([text, repeat(empty, "t -> b t", b=3)])  # the guided pair in one batch
    codes = repeat(codes, "b n -> (two b) n", two=2)
    slow = model(text, codes)[1]
    for known in (0, 4, 12):
        caches = [Cache(model.config.length) for _ in model.blocks]
        fast = [prefill(model, text, codes[:, :known], caches)]
        fast += [decode(model, codes[:, i : i + 1], caches) for i in range(known, N - 1)]
        assert all(cache.filled == model.config.length - 1 for cache in caches)  # the last code is drawn, never read
        # rotate() rounds to float32, the rest is float64
        torch.testing.assert_close(torch.stack(fast, dim=1), slow[:, known:], rtol=0, atol=4 * EPS * slow.abs().max().item())


@each_design
def test_guided_generation_equals_the_slow_loop_without_a_cache(design):
    model, (text, _, empty) = small_model(**design).double(), small_batch()
    codes = torch.zeros(3, N, dtype=torch.int64)
    nothing = repeat(empty, "t -> b t", b=3)
    for place in range(N):
        captioned, uncaptioned = model(text, codes)[1][:, place], model(nothing, codes)[1][:, place]
        codes[:, place] = (uncaptioned + 2.5 * (captioned - uncaptioned)).argmax(dim=-1)
    drawn = generate(model, text, temperature=0, guidance=2.5, empty=empty)
    assert drawn.shape == (3, 4, 4) and drawn.dtype == torch.int64
    assert drawn.flatten(1).equal(codes)
    assert not drawn.equal(generate(model, text, temperature=0))


def test_guidance_of_one_is_no_guidance_and_runs_no_second_half():
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


def test_steps_grow_by_one_code_to_what_generate_returns():
    model, (text, _, _) = small_model(), small_batch()
    steps = list(generate_steps(model, text, generator=rng()))
    assert [step.shape for step in steps] == [(3, i + 1) for i in range(N)]
    assert all(step.equal(steps[-1][:, : i + 1]) for i, step in enumerate(steps))
    assert generate(model, text, generator=rng()).flatten(1).equal(steps[-1])


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
