"""Score a run on the shapes world, whose judge reads a scene off the pixels.

    CLIP      zero-shot, recall@1
    VQGAN     psnr, usage, perplexity, kept
    DALL·E    match, reranked by CLIP and VQGAN
    judge     agreement with true pictures, the ceiling of `kept` and `match`
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

import data
import mindalle
import minclip
import minvqgan

from ..drawing.dalle import Drawing, generate_images, preference
from ..run.models import Models, reconstruct

Add = Callable[..., None]         # add(name, value, note="", percent=True), as of Scores
Embed = Callable[[Any], Tensor]   # texts, or images (b 3 h w) -> (b e)
Draw = Callable[[list[str], int], tuple[Tensor, Tensor | None]]  # captions, seed -> images, codes


def first_captions(images: data.Dataset, count: int) -> tuple[Tensor, list[str], bool]:
    """Return the first pictures (b 3 h w), a caption of each, and whether all are scenes."""
    indices = range(min(count, len(images)))
    captions = [images.captions[i][0] for i in indices]
    return images.batch(indices), captions, all(map(data.parse, captions))


def true_scenes(count: int, size: int, seed: int,
                device: str) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Draw scenes of every split -> {split: images (b 3 h w)}, {split: their captions}."""
    images, captions = {}, {}
    for split in data.SPLITS:
        scenes = data.load("shapes", size, split, count, seed=seed + 1)
        images[split], captions[split], _ = first_captions(scenes, count)
    return {split: batch.to(device) for split, batch in images.items()}, captions


# ---- CLIP ---------------------------------------------------------------------------------------


def similar_captions(scene: data.Scene, count: int, rng: random.Random) -> list[str]:
    """Describe `count` scenes that differ from this one in a single attribute."""
    changed = [replace(scene, background=background) for background in data.BACKGROUNDS]
    if scene.relation:
        changed += [replace(scene, relation=relation) for relation in data.RELATIONS]
    for i, thing in enumerate(scene.objects):
        things = [replace(thing, colour=colour) for colour in data.COLOURS]
        things += [replace(thing, shape=shape) for shape in data.SHAPES]
        if thing.size:
            things += [replace(thing, size=size) for size in ("small", "large")]
        before, after = scene.objects[:i], scene.objects[i + 1 :]
        changed += [replace(scene, objects=(*before, other, *after)) for other in things]
    captions = {s.caption for s in changed if len({o.colour for o in s.objects}) == len(s.objects)}
    return rng.sample(sorted(captions - {scene.caption}), count)


@torch.no_grad()
def zero_shot_of_16(embed_images: Embed, embed_text: Embed, images: Tensor, captions: list[str],
                    seed: int) -> float:
    """Return how often CLIP prefers the true caption to 15 similar ones, by chance 1/16."""
    rng, z, right = random.Random(seed), embed_images(images), 0                    # z (b e)
    for start in range(0, len(captions), 32):
        choices = []
        for caption in captions[start : start + 32]:
            choices += [caption, *similar_captions(data.parse(caption), 15, rng)]
        z_t = F.normalize(embed_text(choices), dim=-1)
        z_t = rearrange(z_t, "(b k) e -> b k e", k=16)
        cosines = einsum(z_t, z[start : start + 32], "b k e, b e -> b k")
        right += (cosines.argmax(dim=1) == 0).sum().item()
    return right / len(captions)


@torch.no_grad()
def recall_at_1(embed_images: Embed, embed_text: Embed, images: Tensor,
                captions: list[str]) -> tuple[float, float]:
    """Return how often a right answer is closest, image to text and text to image.

    Captions of the same scene, such as "A above B" and "B below A", are all right.
    """
    scenes = [data.parse(caption) for caption in captions]
    meanings = [scene.canonical if scene else caption for scene, caption in zip(scenes, captions)]
    same = torch.tensor([[a == b for b in meanings] for a in meanings], device=images.device)
    return minclip.recall_at_k(embed_images(images), embed_text(captions), 1, same)


# ---- VQGAN and DALL·E ---------------------------------------------------------------------------


def agreement(images: Tensor, captions: list[str]) -> float:
    """Return how often the judge finds in images (b 3 h w) all that their captions say, no more."""
    return sum(map(data.matches, data.to_pictures(images), captions)) / len(captions)


@torch.no_grad()
def match(models: Models, captions: list[str], draw: Draw, best_of: int, seed: int,
          at_once: int = 32) -> tuple[float, float | None]:
    """Draw each caption `best_of` times -> agreement of the first images, and of the preferred.

    draw: (captions, seed) -> images (b c h w), and their codes (b g g) if they have some
    at_once: captions in a batch. The second figure is None where there is nothing to choose.
    """
    first, preferred = [], []
    for start in range(0, len(captions), at_once):
        part = captions[start : start + at_once]
        repeated = [caption for caption in part for _ in range(best_of)]
        images, codes = draw(repeated, seed + start)
        images = rearrange(images, "(b k) c h w -> b k c h w", k=best_of)
        first.append(images[:, 0])
        if best_of > 1:
            codes = [None] * len(part) if codes is None else codes.split(best_of)   # each (k g g)
            for caption, candidates, its_codes in zip(part, images, codes):
                score = preference(models, caption, its_codes)
                preferred.append(candidates[mindalle.rerank(candidates, score)[0]])
    best = agreement(torch.stack(preferred), captions) if preferred else None
    return agreement(torch.cat(first), captions), best


def score_vqgan(models: Models, add: Add, images: Tensor) -> tuple[Tensor, Tensor]:
    """Report how images (b 3 h w) survive coding -> images (b 3 h w), codes (b g g)."""
    vqgan = models.get("vqgan")
    redrawn, codes = reconstruct(vqgan, images)
    size = vqgan.config.codebook_size
    counts = torch.bincount(codes.flatten(), minlength=size).float()
    add("psnr", minvqgan.psnr(images, redrawn).mean().item(), "dB", percent=False)
    add("usage", minvqgan.usage(counts).item(), f"of {size} codes, on {len(images)} pictures")
    add("perplexity", minvqgan.perplexity(counts).item(), percent=False)
    return redrawn, codes


def score_shapes(models: Models, add: Add, images: dict[str, Tensor],
                 captions: dict[str, list[str]], drawing: Drawing, draws: int, best_of: int,
                 seed: int) -> None:
    """Report the figures of CLIP, VQGAN and DALL·E on true scenes, images (b 3 h w) by split."""
    ceiling = {split: agreement(images[split], captions[split]) for split in data.SPLITS}
    for split, value in ceiling.items():
        add(f"judge {split}", value, "agreement of the judge with true scenes: the ceiling below")
    unseen, count = images["unseen"], len(images["unseen"])
    if models.has("clip"):
        embed = models.embed_images, models.embed_text
        for split in ("unseen", "novel"):
            value = zero_shot_of_16(*embed, images[split], captions[split], seed)
            add(f"zero-shot {split}", value, f"among 16 captions; chance {1 / 16:.1%}")
        to_text, to_image = recall_at_1(*embed, unseen, captions["unseen"])
        add("recall@1 image to text", to_text, f"among {count}; chance {1 / count:.1%}")
        add("recall@1 text to image", to_image, f"among {count}; chance {1 / count:.1%}")
    if models.has("vqgan"):
        redrawn, _ = score_vqgan(models, add, unseen)
        add("kept", agreement(redrawn, captions["unseen"]), f"ceiling {ceiling['unseen']:.1%}")
    if models.has("dalle"):
        def draw(captions: list[str], seed: int) -> tuple[Tensor, Tensor]:
            return generate_images(models, captions, drawing, seed)

        for split in data.SPLITS:
            # training captions are there for comparison: one drawing each is enough
            candidates = best_of if split != "train" and models.has("clip") else 1
            plain, reranked = match(models, captions[split][:draws], draw, candidates, seed)
            limit = f"ceiling {ceiling[split]:.1%}"
            add(f"match {split}", plain, limit)
            if reranked is not None:
                add(f"match {split} reranked", reranked,
                    f"best of {best_of} by CLIP and VQGAN; {limit}")
