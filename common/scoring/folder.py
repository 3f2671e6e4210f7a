"""The figures of a run on pictures of your own, all on held-out pictures, each a function of its own.

    CLIP      recall@1, @5, zero-shot, each beside chance
    VQGAN     psnr, usage, perplexity
    DALL·E    nats a code     how likely are true pictures, with their captions and without?
              read back       does a classifier of true pictures find in a drawing what was asked for?
              distance        how far are the drawings' features from those of true pictures? [Fréchet]
              precision       how many drawings look like true pictures?
              recall          how much of the variety of true pictures do drawings reach?
              closer, copied  how often is a drawing closer to a training picture, and to one only, than new pictures are?

Half of the held-out pictures, A, lend their captions to the drawings, which then stand in for A in every comparison with the
other half, B. What the true pictures of A themselves reach is the floor or the ceiling. There are as many pictures on every
side, since these figures depend on their number: compare them with nothing else.
"""

import math
from collections.abc import Callable
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

import data
import mindalle
import minclip
import minvqgan

from .classifier import train_classifier
from .comparison import beside_closest, closest, covered, frechet_distance, share_below, standing_out
from ..drawing.dalle import Drawing, generate_images
from ..run.models import Models, reconstruct
from ..drawing.unclip import DecoderSampling, draw, draw_embeddings

BATCH = 64
MOST_CLASSES = 200  # distinct captions; with more, they are descriptions
PER_CLASS = 8  # training pictures that a class has on average; the classifier cannot learn from fewer
CLASSIFIER_SECONDS = 60
FEWEST = 16  # pictures on each side; distances between fewer say nothing
SHEET = 16  # drawings that are shown beside the training pictures closest to them


# ---- CLIP ---------------------------------------------------------------------------------------


def right_captions(captions: list[list[str]]) -> Tensor:
    """Tell which texts are right for which picture: boolean (i j), whether the first caption of j is one of i's."""
    return torch.tensor([[texts[0] in own for texts in captions] for own in map(set, captions)])


def recall_chance(right: Tensor, k: int) -> tuple[float, float]:
    """Return the recall at k of a random order, exactly: image to text, text to image; right boolean (i j).

    With r right ones among n, k draws all miss with probability C(n - r, k) / C(n, k).
    """
    def chance(right: Tensor) -> float:
        n, k_ = right.shape[1], min(k, right.shape[1])
        misses = [math.comb(n - r, k_) / math.comb(n, k_) for r in right.sum(dim=1).tolist()]
        return 1 - sum(misses) / len(misses)

    return chance(right), chance(rearrange(right, "i j -> j i"))


def zero_shot(images: Tensor, texts: Tensor, choices: list[str], captions: list[list[str]]) -> tuple[float, float]:
    """Return the share of pictures whose closest caption of all is one of their own, and by chance.

    images (b e), texts (choices e): embeddings, of any length; choices: all distinct captions; captions: each picture's own
    """
    closest = (F.normalize(images, dim=-1) @ rearrange(F.normalize(texts, dim=-1), "c e -> e c")).argmax(dim=1)
    right = [choices[i] in own for i, own in zip(closest.tolist(), captions, strict=True)]
    return sum(right) / len(right), sum(len(set(own)) for own in captions) / len(captions) / len(choices)


# ---- DALL·E -------------------------------------------------------------------------------------


@torch.no_grad()
def nats_per_code(model: mindalle.DALLE, text: Tensor, codes: Tensor) -> float:
    """Return the mean of -log p(code | the codes before it, the caption), text (n t), codes (n g g); lower is better.

    ln v, with v the codebook's size, for a model that knows nothing. With the empty caption for everyone's, the difference
    is what captions tell about pictures: 0 for a model that does not read.
    """
    total = 0.0
    for some, picture in zip(text.split(BATCH), codes.split(BATCH), strict=True):
        total += len(some) * mindalle.dalle_loss(*model(some, picture), some, picture)[2].item()
    return total / len(text)


# ---- Drawings beside true pictures --------------------------------------------------------------


def class_names(train: data.Dataset) -> list[str] | None:
    """Return the captions if they are classes: one for each picture, few in all, each with pictures enough; otherwise None."""
    names = sorted({caption for captions in train.captions for caption in captions})
    single = all(len(set(captions)) == 1 for captions in train.captions)
    fit = single and 1 < len(names) <= MOST_CLASSES and len(train.captions) >= PER_CLASS * len(names)
    return names if fit else None


def accuracy(names: list[str], captions: list[list[str]]) -> float:
    """Return how often a name is among the captions of its picture."""
    return sum(name in own for name, own in zip(names, captions, strict=True)) / len(names)


# ---- `sample.py score` --------------------------------------------------------------------------


@torch.no_grad()
def apply(function: Callable[[Tensor], Tensor], images: Tensor, device: str) -> Tensor:
    """Apply a function to images (n 3 h w), a batch at a time -> its results (n ...) on the CPU."""
    return torch.cat([function(part.to(device)).cpu() for part in images.split(BATCH)])


@torch.no_grad()
def draw_all(models: Models, captions: list[str], how: Drawing, seed: int) -> dict[str, Tensor]:
    """Draw the captions with all that a run can draw with -> {prefix of its figures' names: images (n 3 h w)}."""
    drawings = {}
    if models.has("dalle"):
        drawings[""] = generate_images(models, captions, how, seed)[0].cpu()
    if all(map(models.has, ("clip", "prior", "decoder"))):
        drawings["unclip "] = draw(models, draw_embeddings(models, captions, seed), DecoderSampling(), seed).cpu()
    return drawings


def score(models: Models, add: Callable, show: Callable[[str, Image.Image], None], train: data.Dataset,
          held_out: data.Dataset, how: Drawing, count: int, draws: int, seed: int) -> None:
    """Report every figure that the run's models allow, by add(name, value, note), with percent=False for other units.

    show(name, picture): takes the sheet of drawings beside the training pictures closest to them
    count: held-out pictures looked at, drawn at random: those of a folder are sorted by class
    draws: captions drawn; those of the held-out pictures, so that classes are as frequent on both sides
    """
    some = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))[:count]
    images = held_out.batch(some)                                                             # (n 3 h w)
    captions = [held_out.captions[i] for i in some.tolist()]
    if models.has("clip"):
        score_clip(models, add, train, images, captions)
    if models.has("vqgan"):
        codes = score_vqgan(models, add, images)
        if models.has("dalle"):
            score_likelihood(models, add, captions, codes)
    score_drawings(models, add, show, train, images, captions, how, draws, seed)


def score_clip(models: Models, add: Callable, train: data.Dataset, images: Tensor, captions: list[list[str]]) -> None:
    """Report recall among the held-out pairs, and zero-shot accuracy where the captions are few."""
    def embed_texts(texts: list[str]) -> Tensor:
        return torch.cat([models.embed_text(texts[i : i + BATCH]).cpu() for i in range(0, len(texts), BATCH)])

    z, right = apply(models.embed_images, images, models.device), right_captions(captions)
    z_t = embed_texts([own[0] for own in captions])
    for k in (1, 5):
        for way, value, chance in zip(("image to text", "text to image"), minclip.recall_at_k(z, z_t, k, right),
                                      recall_chance(right, k)):
            add(f"recall@{k} {way}", value, f"among {len(z)}; chance {chance:.1%}")
    choices = sorted({caption for own in (*train.captions, *captions) for caption in own})
    if len(choices) <= MOST_CLASSES:
        value, chance = zero_shot(z, embed_texts(choices), choices, captions)
        add("zero-shot", value, f"among {len(choices)} captions; chance {chance:.1%}")


def score_vqgan(models: Models, add: Callable, images: Tensor) -> Tensor:
    """Report how well pictures (n 3 h w) survive the codes, and how many codes they use -> the codes (n g g)."""
    vqgan = models.get("vqgan")
    redrawn, codes = reconstruct(vqgan, images.to(models.device))
    counts = torch.bincount(codes.flatten(), minlength=vqgan.config.codebook_size).float()
    add("psnr", minvqgan.psnr(images, redrawn.cpu()).mean().item(), "dB", percent=False)
    add("usage", minvqgan.usage(counts).item(), f"of {vqgan.config.codebook_size} codes, on {len(images)} pictures")
    add("perplexity", minvqgan.perplexity(counts).item(), percent=False)
    return codes


def score_likelihood(models: Models, add: Callable, captions: list[list[str]], codes: Tensor) -> None:
    """Report the nats per code of true pictures, with their captions and without, and the difference."""
    model, tokenizer = models.dalle()
    *text, empty = models.encode("dalle", tokenizer, [*(own[0] for own in captions), ""], model.config.text_length)
    text = torch.stack(text)                                                                  # (n t)
    with_caption = nats_per_code(model, text, codes)
    without = nats_per_code(model, repeat(empty, "t -> n t", n=len(text)), codes)
    guess = f"a guess among all codes: {math.log(model.config.image_vocab):.2f}"
    add("nats a code", with_caption, f"with the caption; {guess}", percent=False)
    add("nats a code, no caption", without, percent=False)
    add("nats told by caption", without - with_caption, "a code", percent=False)


def score_drawings(models: Models, add: Callable, show: Callable, train: data.Dataset, images: Tensor,
                   captions: list[list[str]], how: Drawing, draws: int, seed: int) -> None:
    """Report how drawings compare with true pictures (n 3 h w), beside what true pictures themselves reach."""
    def directions(x: Tensor) -> Tensor:
        return F.normalize(models.embed_images(x), dim=-1)

    def name_all(x: Tensor) -> list[str]:
        return [name for part in x.split(BATCH) for name in classifier.predict(part.to(models.device))]

    asked = list(islice(cycle(own[0] for own in captions), draws))  # those of half A first
    drawings = draw_all(models, asked, how, seed)
    if not drawings:
        return
    describe, where = directions if models.has("clip") else None, "in CLIP's image embeddings"
    if classes := class_names(train):
        classifier = train_classifier(train, classes, seed, CLASSIFIER_SECONDS, models.device)
        describe, where = classifier.features, "in the classifier's features"
        ceiling = accuracy(name_all(images), captions)
        add("read back true pictures", ceiling, f"by a classifier of {len(classes)} classes: the ceiling below")
        for prefix, drawn in drawings.items():
            add(f"{prefix}read back", accuracy(name_all(drawn), [[caption] for caption in asked]), f"ceiling {ceiling:.1%}")
    n = min(draws, len(images) // 2)
    if n < FEWEST:
        print(f"no distances of drawings: they need {2 * FEWEST} held-out pictures and {FEWEST} drawings, "
              f"here are {len(images)} and {draws}")
    elif describe:
        score_variety(add, {prefix: drawn[:n] for prefix, drawn in drawings.items()}, images[:n], images[n : 2 * n],
                      lambda x: apply(describe, x, models.device), where)
    score_copying(add, show, drawings, asked, images, train)


def score_variety(add: Callable, drawings: dict[str, Tensor], half: Tensor, other: Tensor, describe: Callable[[Tensor], Tensor],
                  where: str) -> None:
    """Report distance, precision and recall of drawings, which stand in for one half of true pictures, against the other.

    All are (n 3 h w) with the same n; describe: images -> features (n f)
    """
    true = describe(other)
    figures = lambda x: (frechet_distance(x, true), covered(x, true), covered(true, x))  # noqa: E731
    floor, best_precision, best_recall = figures(describe(half))
    add("frechet floor", floor, f"between two halves of {len(half)} true pictures, {where}", percent=False)
    for prefix, drawn in drawings.items():
        distance, precision, recall = figures(describe(drawn))
        add(f"{prefix}frechet distance", distance, f"floor {floor:.4g}", percent=False)
        add(f"{prefix}precision", precision, f"of drawings look like true pictures; true pictures: {best_precision:.1%}")
        add(f"{prefix}recall", recall, f"of the variety of true pictures is reached; by true pictures: {best_recall:.1%}")


def score_copying(add: Callable, show: Callable, drawings: dict[str, Tensor], asked: list[str], images: Tensor,
                  train: data.Dataset) -> None:
    """Report how many drawings are closer to training pictures than held-out pictures (n 3 h w) are, and show the closest."""
    true, _ = closest(images, train)
    new = len(images) >= FEWEST and true[:, 0].median() > 1e-6
    if not new:
        print(f"copied cannot be told: it needs {FEWEST} held-out pictures that are no training pictures too")
    for prefix, drawn in drawings.items():
        near, indices = closest(drawn, train)
        show(f"{prefix}copied", beside_closest(drawn[:SHEET], asked, indices[:SHEET, 0], train))
        if not new:
            continue
        add(f"{prefix}closer", share_below(near[:, 0], true[:, 0]),
            "to a training picture than held-out ones are: 50% if new, more if smooth, 100% if copied")
        add(f"{prefix}copied", share_below(standing_out(near), standing_out(true)),
            "one training picture stands out more than for held-out ones: 50% if new, 100% if copied")
