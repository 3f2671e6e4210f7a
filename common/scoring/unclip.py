"""Score DALL·E 2 on the shapes world.

    match           does the judge find what the caption says? Also without the prior: from the
                    true z_i, and from CLIP's text embedding z_t in its place [unCLIP sec. 5.1]
    variations      do they say the same, and do their positions vary?
    inversion       PSNR of images drawn again from the noise that inverting them gave
    edits           does one word change, and nothing else?
    interpolation   how many images on the way show a scene at all?
"""

import dataclasses
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

import data
import minvqgan
from mindalle import unclip

from ..drawing.unclip import DecoderSampling, denoiser, draw, draw_embeddings
from ..run.models import Models
from .shapes import Add, agreement, match

SAMPLING = DecoderSampling()
VARIATIONS, BETWEEN = 8, 8  # images drawn for each image; for each pair of images
GRAIN = 48  # of the 765 levels that a pixel's three channels have together


def spread_of_centres(pictures: np.ndarray, count: int) -> float:
    """Return how far the objects' centre moves among the `count` pictures of a scene.

    pictures uint8 (scenes · count h w 3) -> RMS distance, in sides of the picture. A pixel weighs
    as much as it differs from the background, if by more than GRAIN: faint noise all over would
    pull every centre to the middle.
    """
    pictures = pictures.astype(np.float32)
    border = [pictures[:, 0], pictures[:, -1], pictures[:, :, 0], pictures[:, :, -1]]
    background = rearrange(np.median(np.concatenate(border, axis=1), axis=1), "b c -> b 1 1 c")
    differs = reduce(np.abs(pictures - background), "b h w c -> b h w", "sum")
    weights = np.where(differs > GRAIN, differs, 1e-6)
    ticks = (np.arange(weights.shape[1]) + 0.5) / weights.shape[1]
    x, y = ((weights.sum(axis) * ticks).sum(1) / weights.sum((1, 2)) for axis in (1, 2))
    centres = rearrange(np.stack([x, y], axis=1), "(s n) two -> s n two", n=count)
    return float(np.sqrt(((centres - centres.mean(1, keepdims=True)) ** 2).sum(-1).mean()))


def variations(models: Models, images: Tensor, z: Tensor, captions: list[str],
               seed: int) -> tuple[float, float]:
    """Vary images (b 3 h w) -> how many say the same; their spread relative to true scenes'."""
    drawn, true, denoise = [], [], denoiser(models, SAMPLING)
    generator = torch.Generator(models.device).manual_seed(seed)
    for i, caption in enumerate(captions):
        drawn.append(unclip.variations(denoise, images[i : i + 1], z[i : i + 1], VARIATIONS,
                                       SAMPLING.times, generator=generator))
        rng, scene = random.Random(f"{seed} {i}"), data.parse(caption)
        true += [data.render(scene, rng, images.shape[-1]) for _ in range(VARIATIONS)]
    drawn = torch.cat(drawn)
    kept = agreement(drawn, [caption for caption in captions for _ in range(VARIATIONS)])
    spread = spread_of_centres(data.to_pictures(drawn), VARIATIONS)
    return kept, spread / spread_of_centres(np.stack(true), VARIATIONS)


def inversion(models: Models, images: Tensor, z: Tensor, steps: int) -> float:
    """Invert images (b 3 h w) and draw them again, without guidance -> PSNR in dB."""
    denoise, times = denoiser(models, DecoderSampling(guidance=1.0))(z), unclip.even_times(steps)
    again = unclip.sample(denoise, unclip.invert(denoise, images, times), times).clamp(-1, 1)
    return minvqgan.psnr(images, again).mean().item()


def change_a_word(scene: data.Scene, rng: random.Random) -> data.Scene:
    """Give one object of a scene a colour that the scene does not have yet, or another shape."""
    objects = list(scene.objects)
    i, taken = rng.randrange(len(objects)), {o.colour for o in objects}
    if rng.random() < 0.5:
        change = {"colour": rng.choice([c for c in data.COLOURS if c not in taken])}
    else:
        change = {"shape": rng.choice([s for s in data.SHAPES if s != objects[i].shape])}
    objects[i] = dataclasses.replace(objects[i], **change)
    return dataclasses.replace(scene, objects=tuple(objects))


def edits(models: Models, images: Tensor, z: Tensor, captions: list[str], eta: float,
          seed: int) -> float:
    """Edit images (b 3 h w) by one word of their captions -> how many show that change alone.

    eta: 0 keeps an image's noise; 1 renews it, so the edited embedding is drawn anew
    """
    rng = random.Random(seed)
    wanted = [change_a_word(data.parse(caption), rng).caption for caption in captions]
    old, new = (F.normalize(models.embed_text(texts), dim=-1) for texts in (captions, wanted))
    generator, full = torch.Generator(models.device).manual_seed(seed), torch.ones(1).to(z)
    drawn = [unclip.edit(denoiser(models, SAMPLING), image[None], z_i[None], a, b, full,
                         SAMPLING.times, eta, generator)
             for image, z_i, a, b in zip(images, z, old, new)]
    return agreement(torch.cat(drawn), wanted)


def interpolation(models: Models, images: Tensor, z: Tensor) -> float:
    """Draw the way from each second image (b 3 h w) to the next -> how many show a scene."""
    drawn = [unclip.interpolate(denoiser(models, SAMPLING), images[i : i + 2], z[i : i + 2],
                                BETWEEN, SAMPLING.times) for i in range(0, len(z) - 1, 2)]
    scenes = [data.read_scene(picture) for picture in data.to_pictures(torch.cat(drawn))]
    return sum(scene is not None for scene in scenes) / len(scenes)


@torch.no_grad()
def score_unclip(models: Models, add: Add, images: Tensor, captions: dict[str, list[str]],
                 best_of: int, seed: int) -> None:
    """Report the figures of DALL·E 2; images (b 3 h w) belong to the captions of "unseen"."""
    def draw_captions(captions: list[str], seed: int) -> tuple[Tensor, None]:
        return draw(models, draw_embeddings(models, captions, seed), SAMPLING, seed), None

    for split in ("unseen", "novel"):
        at_once = max(1, 64 // best_of)
        plain, best = match(models, captions[split], draw_captions, best_of, seed, at_once)
        add(f"unclip {split}", plain, "match, by way of the prior")
        if best is not None:
            add(f"unclip {split} reranked", best, f"best of {best_of} by CLIP")
    unseen, z = captions["unseen"], F.normalize(models.embed_images(images), dim=-1)    # (b e)
    z_t = F.normalize(models.embed_text(unseen), dim=-1)
    for name, source in {"the true z_i": z, "z_t": z_t}.items():
        drawn = [draw(models, part, SAMPLING, seed + i) for i, part in enumerate(source.split(64))]
        add(f"unclip from {name}", agreement(torch.cat(drawn), unseen), "match, without the prior")
    kept, spread = variations(models, images[:32], z[:32], unseen[:32], seed)
    add("variations kept", kept, f"of {VARIATIONS} variations of each of {len(z[:32])} pictures")
    add("variations spread", spread, "of the centres, relative to that of true scenes")
    add("inversion 32 steps", inversion(models, images[:64], z[:64], 32), "dB", percent=False)
    for name, eta in {"edits eta 0": 0.0, "edits eta 1, drawn anew": 1.0}.items():
        value = edits(models, images[:64], z[:64], unseen[:64], eta, seed)
        add(name, value, f"of {len(z[:64])} pictures: one word changed, nothing else")
    value = interpolation(models, images[:32], z[:32])
    add("interpolation", value, "fraction that shows a scene without a flaw")
    start = time.perf_counter()
    draw(models, z[:64], SAMPLING, seed)
    add("unclip 64 pictures", time.perf_counter() - start, "seconds", percent=False)
