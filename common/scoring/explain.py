"""Grade explanations on the shapes world, where the place of every object is known.

    CLIP     the pointing game [Zhang et al. 2016, sec. 4.1]: does the highest point of a word's map lie in the word's object?
    DALL·E   of the attention that the codes of an object pay to colour and shape words: the share on the object's own words
    VQGAN    of what a swapped code changes: the share within the code's own square of pixels

All scenes have two objects and captions that training never showed. A ring's hole counts as inside the ring.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

import mindalle
import minclip
from data import shapes
from data.pictures import to_float

from ..run.errors import InputError
from ..drawing.explain import present
from ..drawing.explaining import looks, recorded, swap_rarest, word_choices, word_log_probabilities, word_maps
from ..run.models import Models
from ..run.pictures import Progress
from .shapes import Report, trained_on


@dataclass(frozen=True)
class Graded:
    """A scene of two objects: image (3 h w), its caption's words, and per object where its two words stand, and its mask."""

    image: Tensor
    words: list[str]
    places: list[tuple[int, int]]
    masks: Tensor  # (2 h w) boolean


def graded_scenes(count: int, side: int, seed: int) -> list[Graded]:
    """Draw scenes of two objects from the unseen split; the same whatever the side."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        scene = shapes.random_scene(rng, "unseen")
        if scene.relation is None:
            continue
        where, words = shapes.place(scene, rng), scene.caption.split()
        parts = [(o.shape, place, shapes.COLOURS[o.colour]) for o, place in zip(scene.objects, where)]
        picture = shapes.paint(parts, shapes.BACKGROUNDS[scene.background], side)
        masks = [shapes.paint([("circle" if o.shape == "ring" else o.shape, place, 255)], 0, side) > 127
                 for o, place in zip(scene.objects, where)]
        first = [words.index(o.colour) for o in scene.objects]  # two objects never share a colour
        found.append(Graded(to_float(np.stack([picture]))[0], words, [(i, i + 1) for i in first],
                            torch.from_numpy(np.stack(masks))))
    return found


# ---- CLIP ---------------------------------------------------------------------------------------


def attention_maps(clip: minclip.CLIP, image: Tensor, choices: Tensor) -> tuple[Tensor, Tensor]:
    """Read a map for each word from the attention of the class token: image (3 h w), choices (n o e) -> two maps (n h w).

    The first is the plain attention of the last layer, the same for all words. The second weighs every layer's attention by
    the gradient of the word's log-probability, and multiplies the layers up [Chefer et al. 2021, eqs. 5, 6].
    """
    with recorded(clip.image_encoder) as maps, torch.enable_grad():
        scores = word_log_probabilities(clip, image[None], choices)[0]                           # (n)
    plain, relevant = [], []
    for score in scores:
        gradients = torch.autograd.grad(score, maps, retain_graph=True)
        relevance = torch.eye(maps[0].shape[-1], device=image.device)
        for weights, gradient in zip(maps, gradients):                                           # each (1 k i j)
            relevance = relevance + (weights * gradient).clamp(min=0).mean(dim=1)[0] @ relevance
        relevant.append(relevance[0, 1:])
        plain.append(maps[-1][0].mean(dim=0)[0, 1:])
    g = clip.config.image_size // clip.config.patch_size
    both = rearrange(torch.stack(plain + relevant).detach(), "n (g1 g2) -> n 1 g1 g2", g1=g)
    both = F.interpolate(both, image.shape[-2:], mode="bilinear")
    plain, relevant = rearrange(both, "(two n) 1 h w -> two n h w", two=2)
    return plain, relevant


def pointing(heat: Tensor, masks: Tensor) -> Tensor:
    """Tell whether each map (n h w) is highest inside its mask (n h w) -> (n) boolean."""
    highest = rearrange(heat, "n h w -> n (h w)").argmax(dim=-1, keepdim=True)
    return rearrange(masks, "n h w -> n (h w)").gather(1, highest)[:, 0]


def grade_clip(models: Models, report: Report, count: int, seed: int) -> None:
    """Report the pointing game on CLIP's words, beside chance, random weights, and two ways to read its attention."""
    clip = models.get("clip")
    untrained, side, patch = minclip.CLIP(clip.config).to(models.device), clip.config.image_size, clip.config.patch_size
    notes = {"occlusion": "", "random weights": "occlusion, of an untrained model", "plain attention": "of the class token",
             "Chefer et al.": "attention, weighted by its gradient", "patch centres": "the most that these two can reach",
             "chance": "share of the picture that the object fills"}
    hits, progress = {name: [] for name in notes}, Progress("grading")
    for done, scene in enumerate(graded_scenes(count, side, seed)):
        progress(done, count)
        image, places = scene.image.to(models.device), [place for pair in scene.places for place in pair]
        masks = repeat(scene.masks, "o h w -> (o two) h w", two=2).to(models.device)           # (4 h w)
        choices = word_choices(models, " ".join(scene.words))[1][places]                         # (4 o e)
        plain, relevant = attention_maps(clip, image, choices)
        maps = {"occlusion": word_maps(clip, image, choices), "random weights": word_maps(untrained, image, choices),
                "plain attention": plain, "Chefer et al.": relevant}                             # each (4 h w)
        for name, heat in maps.items():
            hits[name].append(pointing(heat, masks))
        hits["chance"].append(reduce(masks.float(), "n h w -> n", "mean"))
        hits["patch centres"].append(masks[:, patch // 2 :: patch, patch // 2 :: patch].any(dim=(1, 2)))
    progress(count, count)
    colour, shape = rearrange(torch.stack(hits["occlusion"]).float(), "b (two kind) -> kind (b two)", kind=2).mean(dim=1).tolist()
    notes["occlusion"] = f"colours {colour:.1%}, shapes {shape:.1%}"
    for name, values in hits.items():
        report.add(f"clip {name}", torch.stack(values).float().mean().item(), notes[name])


# ---- DALL·E and VQGAN ---------------------------------------------------------------------------


def own_share(looked: Tensor, scenes: list[Graded], columns: list[list[list[int]]], grid: int) -> Tensor:
    """Return, per layer, the share of attention to the own object's words in that to both objects' words.

    looked (b l n j); columns: for each scene and object, where its words' tokens stand -> (l). Codes at least half inside an
    object are its own.
    """
    shares = []
    for rows, scene, places in zip(looked, scenes, columns):
        cells = reduce(scene.masks.to(looked), "o (g1 p) (g2 q) -> o (g1 g2)", "mean", g1=grid, g2=grid) >= 0.5
        for i in (0, 1):
            own, other = (rows[:, cells[i]][..., places[k]].sum(dim=-1).mean(dim=-1) for k in (i, 1 - i))  # (l)
            if cells[i].any():
                shares.append(own / (own + other))
    return torch.stack(shares).mean(dim=0)


def grade_dalle(models: Models, report: Report, count: int, seed: int) -> None:
    """Report how far the codes of an object look at its own words, layer by layer, beside random weights."""
    (dalle, tokenizer), vqgan = models.dalle(), models.get("vqgan")
    scenes, length = graded_scenes(count, vqgan.config.image_size, seed), dalle.config.text_length

    def tokens(words: list[str]) -> int:
        return int(tokenizer.encode([" ".join(words)], length).argmax())  # where `end` stands, the highest id

    columns = [[list(range(tokens(s.words[:first]), tokens(s.words[: last + 1]))) for first, last in s.places] for s in scenes]
    untrained, shares = mindalle.DALLE(dalle.config).to(models.device), []
    codes = torch.cat([vqgan.encode(part.to(models.device)) for part in torch.stack([s.image for s in scenes]).split(64)])
    text = models.encode("dalle", tokenizer, [" ".join(s.words) for s in scenes], length)
    for model in (dalle, untrained):
        looked = torch.cat([looks(model, *part) for part in zip(text.split(64), codes.split(64))])
        shares.append(own_share(looked, scenes, columns, dalle.config.grid).tolist())
    for layer, value in enumerate(shares[0], start=1):
        report.add(f"dalle layer {layer}", value, "own words; half if it cannot tell the objects apart")
    report.add("dalle random weights", max(shares[1], key=lambda value: abs(value - 0.5)), "the layer furthest from a half")


@torch.no_grad()
def grade_vqgan(models: Models, report: Report, count: int, seed: int) -> None:
    """Report how much of what a swapped code changes lies in its own square, and within one square of it."""
    vqgan = models.get("vqgan")
    inside, near = [], []
    for scene in graded_scenes(count, vqgan.config.image_size, seed):
        codes = vqgan.encode(scene.image[None].to(models.device))[0]
        swapped, place = swap_rarest(codes)
        before, after = vqgan.decode(torch.stack([codes, swapped])).clamp(-1, 1)
        g = len(codes)
        change = reduce((after - before) ** 2, "c (g1 p) (g2 q) -> g1 g2", "sum", g1=g, g2=g)
        row, column = place // g, place % g
        inside.append(change[row, column] / change.sum())
        near.append(change[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].sum() / change.sum())
    report.add("vqgan own square", torch.stack(inside).mean().item(), "of the squared change when a code is swapped")
    report.add("vqgan within one square", torch.stack(near).mean().item())


def grade(models: Models, path: Path, count: int, seed: int) -> None:
    """Report all grades that the run's models allow, and write them to a file. Raises InputError off the shapes world."""
    there = present(models)
    if trained_on(models)["data"] != "shapes":
        raise InputError("--grade needs a run on the shapes world, where the place of every object is known")
    report = Report(path, {"grade": count, "seed": seed})
    for name, run in (("clip", grade_clip), ("dalle", grade_dalle), ("vqgan", grade_vqgan)):
        if name in there:
            run(models, report, count, seed)
    print(f"wrote {path}")
