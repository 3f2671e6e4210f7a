"""Score a run over a folder on its held-out pictures.

    CLIP       recall@1, zero-shot
    VQGAN      psnr, usage, perplexity
    drawings   read back           does a classifier of true pictures find what was asked for?
               frechet distance    how far are their features from those of true pictures?
               recall              how much of the variety of true pictures do they reach?
               copied              is one training picture closer than all others?

Distance and recall depend on the number of pictures. So drawings are compared with one half of the
true pictures, and the other half, of the same number, gives the floor and the ceiling.
"""

from collections.abc import Callable
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

import data
import minclip

from ..drawing.dalle import Drawing, generate_images
from ..drawing.unclip import DecoderSampling, draw, draw_embeddings
from ..run.errors import file_errors
from ..run.models import Models
from ..run.pictures import Progress, contact_sheet, to_pil
from .classifier import resize, train_classifier
from .shapes import Add, score_vqgan

BATCH = 64
MOST_CLASSES = 200  # distinct captions; with more, they are descriptions
PER_CLASS = 8  # training pictures that a class has on average; a classifier needs as many
CLASSIFIER_SECONDS = 60
FEWEST = 16  # pictures in each set; distances between fewer mean nothing
SHEET = 12  # drawings shown above the training pictures closest to them


def score_folder(models: Models, add: Add, train: data.Dataset, held_out: data.Dataset,
                 drawing: Drawing, count: int, draws: int, seed: int) -> None:
    """Report every figure that the run's models allow.

    count: held-out pictures, chosen at random, as those of a folder are sorted by class
    draws: captions drawn, those of the held-out pictures, so that classes are as frequent
    """
    chosen = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))[:count]
    images = held_out.batch(chosen)                                                   # (n 3 h w)
    captions = [held_out.captions[i] for i in chosen.tolist()]
    if models.has("clip"):
        score_clip(models, add, train, images, captions)
    if models.has("vqgan"):
        score_vqgan(models, add, images.to(models.device))
    asked, drawings = list(islice(cycle(own[0] for own in captions), draws)), {}
    if models.has("dalle"):
        drawings[""] = generate_images(models, asked, drawing, seed)[0].cpu()
    if all(map(models.has, ("clip", "prior", "decoder"))):
        z = draw_embeddings(models, asked, seed)
        drawings["unclip "] = draw(models, z, DecoderSampling(), seed).cpu()
    if drawings:
        score_drawings(models, add, train, images, captions, drawings, asked, seed)
        score_copying(models, add, train, images, drawings, asked)


@torch.no_grad()
def in_batches(function: Callable, images: Tensor, device: str) -> Tensor:
    """Apply a function to images (n 3 h w), a batch at a time -> its results (n ...) on the CPU."""
    return torch.cat([function(part.to(device)).cpu() for part in images.split(BATCH)])


def accuracy(names: list[str], captions: list[list[str]]) -> float:
    """Return how often a name is among the captions of its picture."""
    return sum(name in own for name, own in zip(names, captions, strict=True)) / len(names)


# ---- CLIP ---------------------------------------------------------------------------------------


def score_clip(models: Models, add: Add, train: data.Dataset, images: Tensor,
               captions: list[list[str]]) -> None:
    """Report recall among held-out pairs, and zero-shot accuracy where captions are few."""
    z = in_batches(models.embed_images, images, models.device)                        # (n e)
    z_t = models.embed_text([own[0] for own in captions]).cpu()
    right = torch.tensor([[texts[0] in own for texts in captions] for own in captions])
    to_text, to_image = minclip.recall_at_k(z, z_t, 1, right)
    add("recall@1 image to text", to_text, f"among {len(z)}")
    add("recall@1 text to image", to_image, f"among {len(z)}")
    choices = sorted({caption for own in (*train.captions, *captions) for caption in own})
    if len(choices) <= MOST_CLASSES:
        closest = (z @ F.normalize(models.embed_text(choices).cpu(), dim=-1).mT).argmax(dim=1)
        value = accuracy([choices[i] for i in closest.tolist()], captions)
        chance = sum(len(set(own)) for own in captions) / len(captions) / len(choices)
        add("zero-shot", value, f"among {len(choices)} captions; chance {chance:.1%}")


# ---- Drawings beside true pictures --------------------------------------------------------------


def class_names(train: data.Dataset) -> list[str] | None:
    """Return the captions if they are classes: one a picture, few in all, each with examples."""
    names = sorted({caption for captions in train.captions for caption in captions})
    one_each = all(len(set(captions)) == 1 for captions in train.captions)
    enough = len(train.captions) >= PER_CLASS * len(names)
    return names if one_each and enough and 1 < len(names) <= MOST_CLASSES else None


def score_drawings(models: Models, add: Add, train: data.Dataset, images: Tensor,
                   captions: list[list[str]], drawings: dict[str, Tensor], asked: list[str],
                   seed: int) -> None:
    """Compare drawings, {prefix of the figures' names: images}, with true pictures (n 3 h w)."""
    def read_back(x: Tensor, captions: list[list[str]]) -> float:
        found = in_batches(lambda part: classifier(part).argmax(dim=1), x, models.device)
        return accuracy([classes[i] for i in found.tolist()], captions)

    if classes := class_names(train):
        classifier = train_classifier(train, classes, seed, CLASSIFIER_SECONDS, models.device)
        describe = classifier.features
        ceiling = read_back(images, captions)
        add("read back true pictures", ceiling, f"the classifier, of {len(classes)} classes")
        for prefix, drawn in drawings.items():
            value = read_back(drawn, [[caption] for caption in asked])
            add(f"{prefix}read back", value, f"ceiling {ceiling:.1%}")
    elif models.has("clip"):
        describe = lambda x: F.normalize(models.embed_images(x), dim=-1)  # noqa: E731
    else:
        return
    n = min(len(asked), len(images) // 2)
    if n < FEWEST:
        print(f"no distances of drawings: they need {2 * FEWEST} held-out pictures, here "
              f"{len(images)}, and {FEWEST} drawings, here {len(asked)}")
        return
    half, true = in_batches(describe, images[: 2 * n], models.device).split(n)       # each (n f)
    floor, ceiling = frechet_distance(half, true), variety_recall(true, half)
    add("frechet floor", floor, f"between two halves of {n} true pictures", percent=False)
    for prefix, drawn in drawings.items():
        features = in_batches(describe, drawn[:n], models.device)
        distance = frechet_distance(features, true)
        add(f"{prefix}frechet distance", distance, f"floor {floor:.4g}", percent=False)
        add(f"{prefix}recall", variety_recall(true, features), f"true pictures {ceiling:.1%}")


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Compare features (n f) by their Gaussians [Heusel et al. 2017, eq. 6]; 0 for equal sets.

    |mean difference|² + tr(A + B - 2 (A^½ B A^½)^½), with covariances A, B. Few pictures raise it.
    """
    a, b = a.double(), b.double()
    A, B = (torch.cov(rearrange(x, "n f -> f n")) for x in (a, b))
    values, vectors = torch.linalg.eigh(A)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT                          # A^½ (f f)
    crossed = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return (means + A.trace() + B.trace() - 2 * crossed).clamp(min=0).item()


def variety_recall(true: Tensor, drawn: Tensor, k: int = 3) -> float:
    """Return the fraction of true features (n f) near drawn ones [Kynkäänniemi et al. 2019, eq. 2].

    Near means no further away than the k-th nearest of the other drawn ones (m f).
    """
    def distances(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")  # exact if tiny

    true, drawn = true.double(), drawn.double()
    # the nearest is the point itself
    radius = distances(drawn, drawn).kthvalue(k + 1, dim=1).values                    # (m)
    return (distances(true, drawn) <= radius).any(dim=1).double().mean().item()


def score_copying(models: Models, add: Add, train: data.Dataset, images: Tensor,
                  drawings: dict[str, Tensor], asked: list[str]) -> None:
    """Report whether drawings are copies, beside held-out pictures (n 3 h w), which are none.

    A sheet shows drawings above the training pictures closest to them.
    """
    true, _ = nearest_in_training(images, train)
    told = len(images) >= FEWEST and true[:, 0].median() > 1e-6
    if not told:
        print(f"copied cannot be told: it needs {FEWEST} held-out pictures, none used in training")
    for prefix, drawn in drawings.items():
        nearest, indices = nearest_in_training(drawn, train)
        closest = indices[:SHEET, 0]
        sheet = contact_sheet([*to_pil(drawn[:SHEET]), *to_pil(train.batch(closest))],
                              [*asked[:SHEET], *(train.captions[i][0] for i in closest.tolist())],
                              columns=len(closest))
        path = models.run / f"{prefix.replace(' ', '-')}copied.png"
        with file_errors():
            sheet.save(path)
        print(f"wrote {path}")
        if told:
            add(f"{prefix}copied", copied_fraction(nearest, true),
                "one training picture stands out: 50% if new, 100% if copied")


@torch.no_grad()
def nearest_in_training(images: Tensor, train: data.Dataset) -> tuple[Tensor, Tensor]:
    """Find the two training pictures closest to each image (b 3 h w), compared at 32 pixels.

    -> mean squared differences of pixels (b 2), indices (b 2), the closest first
    """
    def flat(x: Tensor) -> Tensor:
        x = resize(x, min(32, images.shape[-1]))
        return rearrange(x, "b c h w -> b (c h w)").double()  # or small differences are lost

    wanted, progress = flat(images), Progress("comparing with training pictures")     # (b p)
    distances = []
    for indices in torch.arange(len(train)).split(BATCH):
        distances.append(torch.cdist(wanted, flat(train.batch(indices))).float())     # (b s)
        progress(int(indices[-1]) + 1, len(train))
    nearest, indices = torch.cat(distances, dim=1).topk(2, largest=False)
    return nearest.square() / wanted.shape[1], indices


def copied_fraction(drawn: Tensor, true: Tensor) -> float:
    """Return how often one training picture stands out more than for half of the true pictures.

    drawn, true (n 2): differences from the two closest. Their ratio is 0 for a copy, and near 1
    for a new picture, even a smooth one, which is close to many.
    """
    drawn, true = (x[:, 0] / x[:, 1].clamp(min=1e-12) for x in (drawn, true))
    return (drawn < true.quantile(0.5)).double().mean().item()
