"""The figures of DALL·E 2 on the shapes world, each a function of its own.

    match           does the judge find what the caption says? By way of the prior, or of any other embeddings
    variations      do they say the same, and do their positions vary?
    inversion       the PSNR of images drawn again from the noise that inverting them has given
    edits           does one word change, and nothing else? With the image's own noise (eta 0); with new noise (eta 1)
    interpolation   how many images on the way show a scene at all?
"""

import dataclasses
import random
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

import data
import mindalle
import minvqgan
from mindalle import unclip

from ..run.models import Models
from ..drawing.unclip import DecoderSampling, denoiser, draw, draw_embeddings


GRAIN = 48  # of the 765 levels that a pixel's three channels have together


def judged(images: Tensor, captions: list[str]) -> list[bool]:
    """Does each image (b 3 h w) show all that its caption says, and nothing else?"""
    return [*map(data.matches, data.to_pictures(images), captions)]


def match_from(models: Models, z: Tensor, captions: list[str], how: DecoderSampling, seed: int) -> float:
    """Draw an image from each embedding (b e) -> how often the judge finds what its caption says."""
    images = torch.cat([draw(models, part, how, seed + i) for i, part in enumerate(z.split(64))])
    return float(np.mean(judged(images, captions)))


@torch.no_grad()
def match(models: Models, captions: list[str], how: DecoderSampling, best_of: int, seed: int) -> tuple[float, float]:
    """Draw each caption `best_of` times, by prior and decoder -> the match of the first images, and of those CLIP likes best."""
    first, best, at_once = [], [], max(1, 64 // best_of)
    for start in range(0, len(captions), at_once):
        part = captions[start : start + at_once]
        z = draw_embeddings(models, [caption for caption in part for _ in range(best_of)], seed + start)
        images = rearrange(draw(models, z, how, seed + start), "(b k) c h w -> b k c h w", k=best_of)
        chosen = [candidates[mindalle.rerank(candidates, models.similarity(caption))[0]]
                  for caption, candidates in zip(part, images)]
        first += judged(images[:, 0], part)
        best += judged(torch.stack(chosen), part)
    return float(np.mean(first)), float(np.mean(best))


def spread(pictures: np.ndarray, count: int) -> float:
    """Return how far the centre of what is drawn moves among the `count` pictures of a scene, RMS, in sides of the picture.

    pictures uint8 (scenes · count h w 3). A pixel's weight is how much it differs from the border, which is background, if by more
    than GRAIN: faint noise all over would pull every centre to the middle.
    """
    pictures = pictures.astype(np.float32)
    border = np.median(np.concatenate([pictures[:, 0], pictures[:, -1], pictures[:, :, 0], pictures[:, :, -1]], axis=1), axis=1)
    differs = reduce(np.abs(pictures - rearrange(border, "b c -> b 1 1 c")), "b h w c -> b h w", "sum")
    weights = np.where(differs > GRAIN, differs, 1e-6)
    ticks = (np.arange(weights.shape[1]) + 0.5) / weights.shape[1]
    centres = np.stack([(weights.sum(axis) * ticks).sum(1) / weights.sum((1, 2)) for axis in (1, 2)], axis=1)
    centres = rearrange(centres, "(s n) two -> s n two", n=count)
    return float(np.sqrt(((centres - centres.mean(1, keepdims=True)) ** 2).sum(-1).mean()))


@torch.no_grad()
def variations(models: Models, images: Tensor, z: Tensor, captions: list[str], how: DecoderSampling,
               seed: int) -> tuple[float, float]:
    """Draw eight variations of each image (b 3 h w) -> how many say the same; the spread of their centres beside the world's."""
    drawn, true, count = [], [], 8
    generator = torch.Generator(models.device).manual_seed(seed)
    for i, (image, z_i, caption) in enumerate(zip(images, z, captions, strict=True)):
        drawn.append(unclip.variations(denoiser(models, how), image[None], z_i[None], count, how.times, 1.0, generator))
        rng = random.Random(f"{seed} {i}")
        true += [data.render(data.parse(caption), rng, images.shape[-1]) for _ in range(count)]
    drawn = torch.cat(drawn)
    kept = judged(drawn, [caption for caption in captions for _ in range(count)])
    return float(np.mean(kept)), spread(data.to_pictures(drawn), count) / spread(np.stack(true), count)


@torch.no_grad()
def inversion(models: Models, images: Tensor, z: Tensor, steps: int) -> float:
    """Invert images (b 3 h w) without guidance, and draw them again, both in so many steps -> PSNR in dB"""
    denoise, times = denoiser(models, DecoderSampling(guidance=1.0))(z), unclip.even_times(steps)
    again = unclip.sample(denoise, unclip.invert(denoise, images, times), times).clamp(-1, 1)
    return minvqgan.psnr(images, again).mean().item()


def change_a_word(scene: data.Scene, rng: random.Random) -> data.Scene:
    """Give one of a scene's objects another colour, which the scene does not have yet, or another shape."""
    i = rng.randrange(len(scene.objects))
    if rng.random() < 0.5:
        colours = [colour for colour in data.COLOURS if colour not in {thing.colour for thing in scene.objects}]
        change = {"colour": rng.choice(colours)}
    else:
        change = {"shape": rng.choice([shape for shape in data.SHAPES if shape != scene.objects[i].shape])}
    things = list(scene.objects)
    things[i] = dataclasses.replace(things[i], **change)
    return dataclasses.replace(scene, objects=tuple(things))


@torch.no_grad()
def edits(models: Models, images: Tensor, z: Tensor, captions: list[str], how: DecoderSampling, eta: float, seed: int) -> float:
    """Change a word of each caption, and its image (b 3 h w) accordingly -> how many say the new caption, and nothing else.

    eta 1 is no edit: all noise is replaced, so the edited embedding is drawn anew.
    """
    rng = random.Random(seed)
    wanted = [change_a_word(data.parse(caption), rng).caption for caption in captions]
    old, new = (F.normalize(models.embed_text(texts), dim=-1) for texts in (captions, wanted))
    whole, generator = torch.ones(1, device=z.device), torch.Generator(models.device).manual_seed(seed)
    drawn = [unclip.edit(denoiser(models, how), image[None], z_i[None], a, b, whole, how.times, eta, generator)
             for image, z_i, a, b in zip(images, z, old, new)]
    return float(np.mean(judged(torch.cat(drawn), wanted)))


@torch.no_grad()
def interpolation(models: Models, images: Tensor, z: Tensor, how: DecoderSampling) -> float:
    """Draw eight images on the way from each image (b 3 h w) to the next -> the share that shows a scene without a flaw."""
    drawn = [unclip.interpolate(denoiser(models, how), images[i : i + 2], z[i : i + 2], 8, how.times)
             for i in range(0, len(z) - 1, 2)]
    return float(np.mean([data.read_scene(picture) is not None for picture in data.to_pictures(torch.cat(drawn))]))


@torch.no_grad()
def score(models: Models, add: Callable, images: Tensor, captions: dict[str, list[str]], best_of: int, seed: int) -> None:
    """Report every figure by add(name, value, note), with percent=False for other units.

    images (b 3 h w): those of the unseen captions
    """
    how, unseen = DecoderSampling(), captions["unseen"]
    z, z_t = (F.normalize(values, dim=-1) for values in (models.embed_images(images), models.embed_text(unseen)))
    for split in ("unseen", "novel"):
        plain, reranked = match(models, captions[split], how, best_of, seed)
        add(f"unclip {split}", plain, "match, by way of the prior")
        add(f"unclip {split} reranked", reranked, f"best of {best_of} by CLIP")
    for name, embeddings in {"the true z_i": z, "z_t": z_t, "another's z_i": z.roll(1, 0)}.items():
        add(f"unclip from {name}", match_from(models, embeddings, unseen, how, seed))
    kept, moved = variations(models, images[:32], z[:32], unseen[:32], how, seed)
    add("variations kept", kept, f"of 8 variations of each of {len(images[:32])} pictures")
    add("variations spread", moved, "of the centres, beside that of the world's own")
    for steps in (4, 8, 16, 32, 64):
        add(f"inversion {steps} steps", inversion(models, images[:64], z[:64], steps), "dB", percent=False)
    for name, eta in {"edits eta 0": 0.0, "edits eta 1, drawn anew": 1.0}.items():
        value = edits(models, images[:64], z[:64], unseen[:64], how, eta, seed)
        add(name, value, f"of {len(images[:64])} pictures: one word changed, nothing else")
    add("interpolation", interpolation(models, images[:32], z[:32], how), "share that shows a scene at all")
    start = time.perf_counter()
    draw(models, z[:64], how, seed)
    add("unclip 64 pictures", time.perf_counter() - start, "seconds", percent=False)
