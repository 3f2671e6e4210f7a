"""Grade explanations on the shapes world, where the place of every object is known.

    CLIP     the pointing game [Zhang et al. 2016, sec. 4.1]: is a word's map highest in its object?
    DALL·E   how much of an object's attention to colour and shape words is on its own words
    VQGAN    how much of the change that swapping a code makes lies in the code's own square

Scenes have two objects, and captions that training never showed. A ring's hole counts as the ring.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

import data
from data.pictures import to_float

from ..drawing.explain import attention_of_codes, swap_rarest, word_choices, word_maps
from ..run.errors import InputError
from ..run.models import Models
from .scores import Scores, trained_on


class GradedScene(NamedTuple):
    image: Tensor            # (3 h w) in [-1, 1]
    words: list[str]         # of the caption
    colour_words: list[int]  # where the colour of each object stands; its shape follows
    masks: Tensor            # (2 h w) boolean, the pixels of each object


def graded_scenes(count: int, side: int, seed: int) -> Iterator[GradedScene]:
    """Draw scenes of two objects from the unseen split; the same whatever the side."""
    rng = random.Random(seed)
    while count:
        scene = data.random_scene(rng, "unseen")
        if scene.relation is None:
            continue
        count -= 1
        places, words = data.place(scene, rng), scene.caption.split()
        parts = [(o.shape, p, data.COLOURS[o.colour]) for o, p in zip(scene.objects, places)]
        picture = data.paint(parts, data.BACKGROUNDS[scene.background], side)
        filled = [("circle" if shape == "ring" else shape, p, 255) for shape, p, _ in parts]
        masks = np.stack([data.paint([part], 0, side) > 127 for part in filled])
        yield GradedScene(to_float(np.stack([picture]))[0], words,
                          [words.index(o.colour) for o in scene.objects], torch.from_numpy(masks))


def untrained(model: nn.Module, seed: int) -> nn.Module:
    """Build the same model with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(model)(model.config).to(next(model.parameters()).device).eval()


def points_inside(heat: Tensor, masks: Tensor) -> Tensor:
    """Tell whether each map (n h w) is highest inside its mask (n h w) -> (n) boolean."""
    highest = rearrange(heat, "n h w -> n (h w)").argmax(dim=1, keepdim=True)
    return rearrange(masks, "n h w -> n (h w)").gather(1, highest)[:, 0]


def grade_clip(models: Models, scores: Scores, count: int, seed: int) -> None:
    """Report how often the map of a colour or shape word points at its object, beside chance."""
    clip = models.get("clip")
    names = {"clip occlusion": clip, "clip random weights": untrained(clip, seed)}
    hits, areas = {name: [] for name in names}, []
    for scene in graded_scenes(count, clip.config.image_size, seed):
        words = [i for colour in scene.colour_words for i in (colour, colour + 1)]
        choices = word_choices(models, " ".join(scene.words))[1][words]                 # (4 o e)
        masks = repeat(scene.masks, "o h w -> (o two) h w", two=2).to(models.device)
        for name, model in names.items():
            heat = word_maps(model, scene.image.to(models.device), choices)             # (4 h w)
            hits[name].append(points_inside(heat, masks))
        areas.append(scene.masks.float().mean())
    for name, values in hits.items():
        scores.add(name, torch.cat(values).float().mean().item(), "points at the word's object")
    scores.add("clip chance", torch.stack(areas).mean().item(), "the object's part of the picture")


def own_fractions(attention: Tensor, masks: Tensor, tokens: list[list[int]]) -> list[Tensor]:
    """Return for each object the fraction (l) of attention on its own words, of that on both's.

    attention (l n j) of the codes; masks (2 h w); tokens: where each object's words stand.
    An object's codes are those whose square it fills by half; it may have none.
    """
    g = round(attention.shape[1] ** 0.5)
    its = reduce(masks.float(), "o (g1 p) (g2 q) -> o (g1 g2)", "mean", g1=g, g2=g) >= 0.5
    on = torch.stack([attention[..., places].sum(dim=-1) for places in tokens])         # (2 l n)
    means = [on[:, :, its[i]].mean(dim=-1) for i in (0, 1)]                             # each (2 l)
    return [mean[i] / mean.sum(dim=0) for i, mean in enumerate(means) if its[i].any()]


def grade_dalle(models: Models, scores: Scores, count: int, seed: int) -> None:
    """Report the fraction of attention on an object's own words, for the layer that has most."""
    (dalle, tokenizer), vqgan = models.dalle(), models.get("vqgan")
    length, fractions = dalle.config.text_length, {dalle: [], untrained(dalle, seed): []}
    for scene in graded_scenes(count, vqgan.config.image_size, seed):
        prefixes = [" ".join(scene.words[:i]) for i in range(len(scene.words) + 1)]
        ends = tokenizer.encode(prefixes, length).argmax(dim=1)  # `end` has the highest id
        tokens = [list(range(ends[i], ends[i + 2])) for i in scene.colour_words]
        text = models.encode("dalle", tokenizer, prefixes[-1:], length)                 # (1 t)
        codes = vqgan.encode(scene.image[None].to(models.device))                       # (1 g g)
        for model, values in fractions.items():
            attention = attention_of_codes(model, text, codes)[0].cpu()
            values += own_fractions(attention, scene.masks, tokens)
    trained, random_weights = (torch.stack(values).mean(dim=0) for values in fractions.values())
    scores.add("dalle own words", trained.max().item(),
               f"in layer {trained.argmax() + 1}; half if it cannot tell the objects apart")
    scores.add("dalle random weights", random_weights.max().item(), "in the best layer")


@torch.no_grad()
def grade_vqgan(models: Models, scores: Scores, count: int, seed: int) -> None:
    """Report how much of the squared change lies in the square of the code that was swapped."""
    vqgan, inside = models.get("vqgan"), []
    for scene in graded_scenes(count, vqgan.config.image_size, seed):
        codes = vqgan.encode(scene.image[None].to(models.device))[0]                    # (g g)
        swapped, place = swap_rarest(codes)
        before, after = vqgan.decode(torch.stack([codes, swapped])).clamp(-1, 1)
        g = len(codes)
        change = reduce((after - before) ** 2, "c (g1 p) (g2 q) -> (g1 g2)", "sum", g1=g, g2=g)
        inside.append(change[place] / change.sum())
    scores.add("vqgan own square", torch.stack(inside).mean().item(), "of the squared change")


def grade(models: Models, path: Path, count: int, seed: int) -> None:
    """Report the grades that the run's models allow. Raises InputError off the shapes world."""
    if trained_on(models)["data"] != "shapes":
        raise InputError("--grade needs a run on the shapes world, where the place of every object "
                         "is known")
    scores, has_vqgan = Scores(path, {"grade": count, "seed": seed}), models.has("vqgan")
    for there, grade_model in ((models.has("clip"), grade_clip), (has_vqgan, grade_vqgan),
                               (has_vqgan and models.has("dalle"), grade_dalle)):
        if there:
            grade_model(models, scores, count, seed)
    print(f"wrote {path}")
