"""Every figure by which a run is judged, each a function of its own.

    CLIP      zero_shot, recall@1               DALL·E   nats a code, overlap, match
    VQGAN     psnr, usage, perplexity, kept     judge    agreement on true pictures: the ceiling of kept and match
"""

import dataclasses
import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from PIL import Image
from torch import Tensor

import data
import mindalle
import minclip
import minvqgan

from . import folder as picture_scores
from . import unclip as unclip_scores
from ..drawing.dalle import Drawing, generate_images, preference
from ..run.errors import InputError, file_errors
from ..run.files import write_whole
from ..training.settle import DATA
from ..run.models import PACKAGES, Models, reconstruct
from ..run.pictures import Progress

Embed = Callable[[Any], Tensor]  # texts, or images (b 3 h w) -> (b e)

# ---- CLIP ---------------------------------------------------------------------------------------


def neighbours(scene: data.Scene, count: int, rng: random.Random) -> list[str]:
    """Word `count` scenes that differ from this one in a single attribute: what CLIP must not confuse with it."""
    changed = [dataclasses.replace(scene, background=b) for b in data.BACKGROUNDS]
    if scene.relation:
        changed += [dataclasses.replace(scene, relation=r) for r in data.RELATIONS]
    for i, thing in enumerate(scene.objects):
        things = [dataclasses.replace(thing, colour=c) for c in data.COLOURS]
        things += [dataclasses.replace(thing, shape=s) for s in data.SHAPES]
        things += [dataclasses.replace(thing, size=s) for s in ("small", "large")] if thing.size else []
        changed += [dataclasses.replace(scene, objects=(*scene.objects[:i], t, *scene.objects[i + 1 :])) for t in things]
    captions = {s.caption for s in changed if len({o.colour for o in s.objects}) == len(s.objects)}
    return rng.sample(sorted(captions - {scene.caption}), count)


@torch.no_grad()
def zero_shot(embed_images: Embed, embed_text: Embed, images: Tensor, captions: list[str], seed: int) -> float:
    """Return how often CLIP prefers the true caption to 15 that differ from it in one attribute: by chance 1/16."""
    rng, z, right = random.Random(seed), embed_images(images), 0
    for start in range(0, len(captions), 32):
        choices = [[caption, *neighbours(data.parse(caption), 15, rng)] for caption in captions[start : start + 32]]
        z_t = rearrange(F.normalize(embed_text(sum(choices, [])), dim=-1), "(b k) e -> b k e", k=16)
        right += (einsum(z_t, z[start : start + 32], "b k e, b e -> b k").argmax(dim=1) == 0).sum().item()
    return right / len(captions)


@torch.no_grad()
def recall_at_1(embed_images: Embed, embed_text: Embed, images: Tensor, captions: list[str]) -> tuple[float, float]:
    """Return how often a right one is closest, image to text and text to image; captions that say the same are all right."""
    scenes = [data.parse(caption) for caption in captions]
    worded = [scene.canonical.caption if scene else caption for scene, caption in zip(scenes, captions)]
    number = {text: i for i, text in enumerate(dict.fromkeys(worded))}
    numbers = torch.tensor([number[text] for text in worded], device=images.device)
    same = rearrange(numbers, "i -> i 1") == rearrange(numbers, "j -> 1 j")
    return minclip.recall_at_k(embed_images(images), embed_text(captions), 1, same)


# ---- VQGAN and DALL·E ---------------------------------------------------------------------------


def agreement(images: Tensor, captions: list[str]) -> float:
    """Return how often the judge finds all that the caption says, and nothing else: images (b 3 h w) -> share in [0, 1]."""
    return sum(map(data.matches, data.to_pictures(images), captions)) / len(captions)


@torch.no_grad()
def match(models: Models, captions: list[str], how: Drawing, best_of: int, seed: int) -> tuple[float, float]:
    """Draw each caption `best_of` times -> the agreement of the first pictures, and of those that CLIP and VQGAN like best."""
    first, best = [], []
    for start in range(0, len(captions), 32):
        part = captions[start : start + 32]
        images, codes = generate_images(models, [caption for caption in part for _ in range(best_of)], how, seed + start)
        images, codes = (rearrange(drawn, "(b k) ... -> b k ...", k=best_of) for drawn in (images, codes))
        first.append(images[:, 0])
        if models.has("clip"):
            best += [candidates[mindalle.rerank(candidates, preference(models, caption, drawn))[0]]
                     for caption, candidates, drawn in zip(part, images, codes)]
    return agreement(torch.cat(first), captions), agreement(torch.stack(best), captions) if best else 0.0


def first_captions(images: data.Dataset, count: int) -> tuple[Tensor, list[str], bool]:
    """Return the first pictures (b 3 h w), a caption of each, and whether they are scenes of the shapes world."""
    indices = range(min(count, len(images)))
    captions = [images.captions[i][0] for i in indices]
    return images.batch(indices), captions, all(map(data.parse, captions))


# ---- `sample.py score` --------------------------------------------------------------------------


class Report:
    """Print figures and write them to scores.json as they come."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.figures = path, {"settings": settings, "printed": {}}
        if path.exists() and "settings" not in path.read_text(errors="replace"):
            raise InputError(f"{path} was not written by this command, which would overwrite it: name another --run")
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, value: float, note: str = "", percent: bool = True) -> None:
        self.figures[name] = round(value, 4)
        shown = f"{value:.1%}" if percent else f"{value:.3g}"
        self.figures["printed"][name] = [shown, note]  # for the report
        print(f"{name:28} {shown:>8} {note}", flush=True)
        write_whole(self.path, lambda file: file.write((json.dumps(self.figures, indent=1) + "\n").encode()))


def trained_on(models: Models) -> dict[str, Any]:
    """Return what the run's models were trained on, by the fields of their job. Raises InputError if they differ."""
    there = [name for name in PACKAGES if models.has(name)]
    if not there:
        models.get("clip")  # says what is missing
    sources = {}
    for name in there:
        state = models.checkpoint(name)
        job = state.get("job", state)
        sources[name] = {field: job[field] for field in DATA if job.get(field)}
        if "data" not in sources[name] or sources[name] != sources[there[0]]:
            raise InputError(f"{models.files[name]} was trained on {sources[name].get('data', 'other pictures')}, so there is nothing to "
                             "score it on: score needs models that train.py trained on one data set")
    return sources[there[0]]


def score(models: Models, how: Drawing, count: int = 512, draws: int = 128, best_of: int = 8, seed: int = 0) -> None:
    """Report every figure that the run's models and data allow, and write them to scores.json."""
    source = trained_on(models)
    first = "vqgan" if models.has("dalle") else next(filter(models.has, ("clip", "vqgan", "decoder")), "clip")
    size = models.get(first).config.image_size
    report = Report(models.run / "scores.json", {"count": count, "draws": draws, "best_of": best_of, "seed": seed, **asdict(how)})
    if source["data"] == "shapes":
        score_shapes(models, report, how, count, draws, best_of, seed, size)
    else:
        score_pictures(models, report, source, how, count, draws, seed, size)
    print(f"wrote {report.path}")


def score_pictures(models: Models, report: Report, source: dict[str, Any], how: Drawing, count: int, draws: int, seed: int,
                   size: int) -> None:
    """Report the figures of a run over a folder, on its held-out pictures."""
    def show(name: str, sheet: Image.Image) -> None:
        with file_errors():
            path = models.run / f"{name.replace(' ', '-')}.png"
            sheet.save(path)
            print(f"wrote {path}")

    options = {"layout": source.get("layout"), "class_names": source.get("class_names", ())}
    train, held_out = (data.load(source["data"], size, split, progress=Progress("reading pictures"), cache=models.run, **options)
                       for split in ("train", "held-out"))
    picture_scores.score(models, report.add, show, train, held_out, how, count, draws, seed)


def score_shapes(models: Models, report: Report, how: Drawing, count: int, draws: int, best_of: int, seed: int, size: int) -> None:
    """Report the figures of a run over the shapes world, beside the judge's ceiling on true pictures of each split."""
    there = [name for name in PACKAGES if models.has(name)]
    true = {split: data.load("shapes", size, split, count, seed=seed + 1) for split in data.SPLITS}
    images = {split: true[split].batch(range(count)).to(models.device) for split in data.SPLITS}
    captions = {split: [texts[0] for texts in true[split].captions] for split in data.SPLITS}
    ceiling = {split: agreement(images[split], captions[split]) for split in data.SPLITS}
    for split, value in ceiling.items():
        report.add(f"judge {split}", value, "agreement of the judge with true scenes: the ceiling below")
    if "clip" in there:
        for split in ("unseen", "novel"):
            value = zero_shot(models.embed_images, models.embed_text, images[split], captions[split], seed)
            report.add(f"zero-shot {split}", value, f"among 16 captions; chance {1 / 16:.1%}")
        to_text, to_image = recall_at_1(models.embed_images, models.embed_text, images["unseen"], captions["unseen"])
        report.add("recall@1 image to text", to_text, f"among {count}; chance {1 / count:.1%}")
        report.add("recall@1 text to image", to_image, f"among {count}; chance {1 / count:.1%}")
    if "vqgan" in there:
        vqgan = models.get("vqgan")
        redrawn, codes = reconstruct(vqgan, images["unseen"])
        counts = torch.bincount(codes.flatten(), minlength=vqgan.config.codebook_size).float()
        report.add("psnr", minvqgan.psnr(images["unseen"], redrawn).mean().item(), "dB", percent=False)
        report.add("usage", minvqgan.usage(counts).item(), f"of {vqgan.config.codebook_size} codes, on {count} pictures")
        report.add("perplexity", minvqgan.perplexity(counts).item(), percent=False)
        report.add("kept", agreement(redrawn, captions["unseen"]), f"ceiling {ceiling['unseen']:.1%}")
    if "dalle" in there:
        for split in data.SPLITS:
            many = best_of if split != "train" and "clip" in there else 1  # those that training showed are for comparison
            plain, reranked = match(models, captions[split][:draws], how, many, seed)
            report.add(f"match {split}", plain, f"ceiling {ceiling[split]:.1%}")
            if many > 1:
                report.add(f"match {split} reranked", reranked, f"best of {best_of} by CLIP and VQGAN; ceiling {ceiling[split]:.1%}")
    if "prior" in there and "decoder" in there:
        some = slice(0, draws)
        unclip_scores.score(models, report.add, images["unseen"][some], {split: captions[split][some] for split in captions},
                            best_of, seed)
