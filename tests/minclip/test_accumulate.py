"""Accumulated gradients: those of the whole batch, chunk by chunk."""

import dataclasses

import pytest
import torch
from small_clip import SMALL

from minclip import CLIP, LOSSES, accumulated_backward, same_caption

Gradients = dict[str, torch.Tensor]


@pytest.fixture(params=sorted(LOSSES))
def clip(request) -> CLIP:
    return CLIP(dataclasses.replace(SMALL, loss=request.param)).eval()


@pytest.fixture
def repeated(ids) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions of which three repeat, and which are equal."""
    ids = ids[[*range(12), 0, 1, 2, 2]]
    return ids, same_caption(ids)


def loss_of(model: CLIP, images, ids, same=None) -> torch.Tensor:
    return LOSSES[model.config.loss].loss(model.logits(*model(images, ids)), same)


def taken(model: CLIP) -> Gradients:
    """Return all gradients, and leave none behind."""
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return gradients


def furthest(first: Gradients, second: Gradients) -> float:
    """Return the largest relative difference between the gradients of one parameter."""
    assert first.keys() == second.keys()
    return max(((first[name] - second[name]).norm() / first[name].norm()).item() for name in first)


@pytest.mark.parametrize("chunks", [1, 4, 5])
def test_accumulated_gradients_equal_those_of_the_whole_batch(clip, images, repeated, chunks):
    ids, same = repeated
    whole = loss_of(clip, images, ids, same)
    whole.backward()
    expected = taken(clip)
    loss = accumulated_backward(clip, images, ids, chunks, same)
    assert furthest(expected, taken(clip)) < 1e-4
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6) and not loss.requires_grad


@pytest.mark.parametrize("chunks", [1, 5])
def test_under_autocast_they_equal_those_of_the_whole_batch(clip, images, repeated, chunks):
    """As far as bfloat16 can tell; weights cast without a graph would have no gradient at all."""
    ids, same = repeated
    with torch.autocast("cpu", torch.bfloat16):
        whole = loss_of(clip, images, ids, same)
        whole.backward()
        expected = taken(clip)
        loss = accumulated_backward(clip, images, ids, chunks, same)
    assert furthest(expected, taken(clip)) < 0.05
    assert loss.item() == pytest.approx(whole.item(), rel=0.01, abs=0.01)


def test_summing_the_losses_of_small_batches_gives_other_gradients(model, images, ids):
    loss_of(model, images, ids).backward()
    expected = taken(model)
    for image_chunk, ids_chunk in zip(images.chunk(4), ids.chunk(4)):
        (loss_of(model, image_chunk, ids_chunk) / 4).backward()
    assert furthest(expected, taken(model)) > 0.01


def test_accumulated_gradients_add_to_those_already_there(model, images, ids):
    accumulated_backward(model, images, ids, 2)
    twice = {name: 2 * parameter.grad for name, parameter in model.named_parameters()}
    accumulated_backward(model, images, ids, 2)
    assert furthest(twice, taken(model)) < 1e-6
