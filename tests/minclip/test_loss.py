"""The contrastive losses: what holds for every entry of LOSSES, and each against its paper."""

import dataclasses
import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from small_clip import CAPTIONS, SMALL, checkpoint
from torch import nn

import minclip
from minclip import CLIP, LOSSES, CLIPConfig, sigmoid_loss, softmax_loss

every_objective = pytest.mark.parametrize("objective", sorted(LOSSES))


def with_objective(objective: str) -> CLIP:
    return CLIP(dataclasses.replace(SMALL, loss=objective)).eval()


def loss_of(model: CLIP, images, ids) -> torch.Tensor:
    return LOSSES[model.config.loss].loss(model.logits(*model(images, ids)), None)


def logits_of(model: CLIP, image, text, logit_scale: float) -> torch.Tensor:
    nn.init.constant_(model.logit_scale, logit_scale)
    return model.logits(image, text)


# ---- What holds for every entry of the table ------------------------------------------------


@every_objective
def test_the_first_loss_is_near_that_of_cosine_zero(objective, tokenizer):
    """In 128 dimensions cosines are 0 ± 0.09; four of these times SigLIP's 10 are 3.5 of 10."""
    model, entry = CLIP(CLIPConfig(loss=objective)), LOSSES[objective]
    images, ids = torch.rand(64, 3, 32, 32) * 2 - 1, tokenizer.encode(CAPTIONS, 16)
    expected = entry.loss(torch.full((64, 64), entry.logit_bias or 0.0), None)
    assert loss_of(model, images, ids).item() == pytest.approx(expected.item(), rel=0.35)


@every_objective
def test_a_model_has_the_temperature_and_bias_of_its_loss(objective):
    state, entry = with_objective(objective).state_dict(), LOSSES[objective]
    assert state["logit_scale"] == torch.tensor(entry.logit_scale)
    assert state.get("logit_bias") == entry.logit_bias
    assert all(state[name].shape == () for name in state if name.startswith("logit"))


@every_objective
def test_a_seed_gives_the_same_encoders_whatever_the_loss(objective):
    torch.manual_seed(5)
    first, after = CLIP(SMALL).state_dict(), torch.rand(1)
    torch.manual_seed(5)
    second = with_objective(objective).state_dict()
    assert after == torch.rand(1) and first.keys() <= second.keys()
    assert all(torch.equal(first[name], second[name])
               for name in first if not name.startswith("logit"))


@every_objective
def test_a_loss_is_lowest_for_the_right_pairs(objective):
    model, concepts = with_objective(objective), torch.eye(4)
    losses = {order: LOSSES[objective].loss(model.logits(concepts, concepts[list(order)]), None)
              for order in permutations(range(4))}
    right = losses.pop((0, 1, 2, 3))
    assert all(right < wrong - 0.1 for wrong in losses.values())


@every_objective
def test_the_order_of_the_batch_changes_no_loss(objective):
    logits, order = 3 * torch.randn(6, 6), torch.tensor([3, 0, 5, 1, 4, 2])
    loss, repeated = LOSSES[objective].loss, torch.tensor([[1], [2], [1], [3], [2], [1]])
    for same in (None, minclip.same_caption(repeated)):
        permuted = None if same is None else same[order][:, order]
        torch.testing.assert_close(loss(logits[order][:, order], permuted), loss(logits, same))


@every_objective
def test_equal_captions_are_pushed_apart_only_when_counted_as_wrong(objective):
    concepts = torch.eye(4)[[0, 0, 0, 1]]
    for right, pushed in ((minclip.same_caption(concepts), False), (None, True)):
        image, text = concepts.clone().requires_grad_(), concepts.clone()
        text[1, 2] = 1e-3  # without this the push falls along the vectors themselves
        logits = logits_of(with_objective(objective), image, text, math.log(100))
        LOSSES[objective].loss(logits, right).backward()
        assert (image.grad[0, 2].item() > 1e-3) == pushed


@every_objective
def test_without_same_only_the_diagonal_is_right(objective):
    logits, loss = torch.randn(6, 6), LOSSES[objective].loss
    assert torch.equal(loss(logits, None), loss(logits, torch.eye(6, dtype=torch.bool)))


@every_objective
def test_the_scale_never_counts_for_more_than_a_hundred(objective):
    image, text = F.normalize(torch.randn(2, 6, 8), dim=-1)
    model = with_objective(objective)
    at_limit, beyond, below = (logits_of(model, image, text, scale)
                               for scale in (math.log(100), 9.0, 4.5))
    torch.testing.assert_close(beyond, at_limit)
    assert not torch.allclose(below, at_limit)


@every_objective
def test_a_clamped_temperature_can_learn_again(objective, images, ids):
    model = with_objective(objective)
    for start, expected in ((2.0, 2.0), (9.0, math.log(100))):
        nn.init.constant_(model.logit_scale, start)
        model.clamp_temperature()
        assert model.logit_scale.item() == pytest.approx(expected)
    loss_of(model, images, ids).backward()
    assert model.logit_scale.grad.item() > 0  # the scale falls
    nn.init.constant_(model.logit_scale, 9.0)
    model.zero_grad()
    loss_of(model, images, ids).backward()
    assert model.logit_scale.grad.item() == 0  # beyond the limit there is nothing to learn from


@every_objective
def test_a_model_survives_saving_with_its_temperature_and_bias(objective, images, ids, tmp_path):
    model = with_objective(objective)
    for i, name in enumerate(name for name in model.state_dict() if name.startswith("logit")):
        nn.init.constant_(model.get_parameter(name), 1.5 - i)
    torch.save(checkpoint(model), tmp_path / "clip.pt")
    loaded = minclip.load(tmp_path / "clip.pt")
    assert loaded.config == model.config and loaded.config.loss == objective
    assert torch.equal(loaded.logits(*loaded(images, ids)), model.logits(*model(images, ids)))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@every_objective
def test_every_loss_learns_one_batch_by_heart(objective, images, ids):
    model, (images, ids) = with_objective(objective).train(), (images[:8], ids[:8])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(300):
        features = model(images, ids)
        if step % 5 == 0 and minclip.recall_at_k(*features, 1) == (1.0, 1.0):
            break
        loss = LOSSES[objective].loss(model.logits(*features), None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.clamp_temperature()
    assert 5 < step < 299


# ---- Each against its paper ---------------------------------------------------------------------


def test_the_softmax_loss_is_that_of_the_papers_pseudocode(model):
    image, text = F.normalize(torch.randn(2, 6, 8), dim=-1)
    logits, labels = image @ text.T * math.exp(1.5), torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(softmax_loss(logits_of(model, image, text, 1.5)), expected)
    torch.testing.assert_close(softmax_loss(logits_of(model, text, image, 1.5)), expected)


def test_the_sigmoid_loss_is_the_papers_sum_over_all_pairs():
    logits = 3 * torch.randn(5, 5)
    repeated = minclip.same_caption(torch.tensor([[1], [2], [1], [3], [2]]))
    for same, right in ((None, torch.eye(5, dtype=torch.bool)), (repeated, repeated)):
        signs = [1 if value else -1 for value in right.flatten()]
        values = zip(signs, logits.flatten().tolist())
        expected = sum(math.log(1 + math.exp(-sign * logit)) for sign, logit in values) / 5
        assert sigmoid_loss(logits, same).item() == pytest.approx(expected, rel=1e-5)
    image, text = F.normalize(torch.randn(2, 6, 8), dim=-1)
    torch.testing.assert_close(with_objective("sigmoid").logits(image, text),
                               10 * image @ text.T - 10)


def test_first_losses_and_guesses_are_those_of_the_docstring():
    zeros = torch.zeros(128, 128)
    repeated = minclip.same_caption(torch.arange(128).unsqueeze(1) // 16)
    assert softmax_loss(zeros).item() == pytest.approx(math.log(128))
    assert math.log(128) == pytest.approx(4.85, abs=5e-3)
    assert sigmoid_loss(zeros - 10).item() == pytest.approx(10.01, abs=5e-3)
    assert sigmoid_loss(zeros - 10, repeated).item() == pytest.approx(160, abs=0.01)
    guess = math.log(128) + 127 * math.log(128 / 127)
    best = zeros - math.log(127)
    assert sigmoid_loss(best).item() == pytest.approx(guess, rel=1e-5)
    assert guess == pytest.approx(5.85, abs=5e-3)
    assert all(sigmoid_loss(best + shift).item() > guess for shift in (-0.1, 0.1))


def test_the_least_losses_with_repeated_captions_are_those_of_the_docstring():
    concepts = torch.eye(8)[torch.arange(128) // 16]
    logits, same = 100 * concepts @ concepts.T - 50, minclip.same_caption(concepts)
    assert softmax_loss(logits, same).item() == pytest.approx(math.log(16), abs=1e-5)
    assert sigmoid_loss(logits, same).item() == pytest.approx(0, abs=1e-5)
    uneven = torch.eye(4)[[0, 0, 0, 1]]  # three times and once: the entropy is 3/4 ln 3
    loss = softmax_loss(100 * uneven @ uneven.T, minclip.same_caption(uneven))
    assert loss.item() == pytest.approx(0.75 * math.log(3), abs=1e-5)


def test_equal_captions_are_found():
    ids = torch.tensor([[1, 2, 9], [1, 3, 9], [1, 2, 9]])
    assert minclip.same_caption(ids).int().tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
