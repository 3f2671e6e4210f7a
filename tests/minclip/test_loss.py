"""Claims about minclip's losses and batches, each exact or against a reference, each able to fail."""

import dataclasses
import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minclip
from minclip import LOSSES, CLIP, CLIPConfig, sigmoid_loss, softmax_loss
from small_clip import CAPTIONS, SMALL, checkpoint, ids, images, model, one_seed, tokenizer  # noqa: F401, fixtures


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


def test_short_captions_look_like_short_ones_though_long_ones_repeat_their_words():
    short = [[1, 3, size, colour, 2, 0, 0, 0] for size in (10, 11) for colour in range(20, 26)]  # start, a, ..., end, padding
    long = [[1, 3, colour, 3, shape, 3, place, 2] for colour in range(20, 26) for shape in (30, 31) for place in (40, 41)]
    texts = torch.tensor(short + long)
    for first, second in texts[minclip.LookAlikes(texts).draw(len(texts), group=2)].split(2):
        assert (first == 0).sum() == (second == 0).sum()


def test_look_alikes_are_images_of_all_captions_and_fewer_where_captions_are_few():
    texts = torch.tensor([[1, caption] for caption in (2, 2, 2, 3, 4)])
    look_alikes, drawn = minclip.LookAlikes(texts), []
    for _ in range(60):
        batch = look_alikes.draw(6, group=2)
        assert all(first.ne(second).any() for first, second in texts[batch].split(2))
        drawn += batch.tolist()
    assert set(drawn) == {0, 1, 2, 3, 4} and len(look_alikes.draw(100, group=50)) == 5 * 3
