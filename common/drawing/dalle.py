"""Draw pictures for captions with a run's own DALL·E, or with minDALL-E."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor

import mindalle

from ..run.errors import InputError
from ..run.flags import Options, option
from ..run.models import Models
from ..run.pictures import Progress, read_images


@dataclass(frozen=True)
class Drawing(Options):
    """How DALL·E draws codes.

    On the shapes world it takes the two likeliest, at temperature 1. More draw ragged outlines. At a
    lower temperature drawings of a caption look alike, and small objects go missing: at each single
    place the background is likelier than the beginning of an object. On other pictures two are too
    few: drawings of a class look alike (docs/findings.md).
    """

    temperature: float = option(1.0, "0 takes the likeliest code; higher is more varied", least=0)
    top_k: int = option(2, "draw among the k likeliest codes; 0: among all", least=0)
    top_p: float = option(1.0, "draw among the fewest codes of this total probability", least=0, most=1)
    guidance: float = option(1.5, "how strongly to follow the caption; 1 is the plain model")


PICTURES_DRAWING = Drawing(top_k=8)
# its README's; it never saw an empty caption, which guidance needs
MINDALLE_DRAWING = Drawing(top_k=256, guidance=1.0)


def default_drawing(models: Models) -> Drawing:
    """Return what suits DALL·E and the pictures it was trained on."""
    checkpoint = models.checkpoint("dalle")
    if not checkpoint:
        return MINDALLE_DRAWING
    on_shapes = checkpoint.get("job", checkpoint).get("data") == "shapes"
    return Drawing() if on_shapes else PICTURES_DRAWING


@torch.no_grad()
def generate_images(models: Models, captions: list[str], drawing: Drawing, seed: int,
                    prime: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw an image per caption -> images (b 3 h w) in [-1, 1], codes (b g g).

    prime (r g): the first rows of codes, to be continued
    """
    dalle, tokenizer = models.dalle()
    length, vqgan = dalle.config.text_length, models.get("vqgan")
    *text, empty = models.encode("dalle", tokenizer, [*captions, ""], length)
    generator = torch.Generator(models.device).manual_seed(seed)
    progress, drawn, finished = Progress("drawing codes"), [], 0
    for part in torch.stack(text).split(at_once(dalle.config)):                      # (k t)
        first = None if prime is None else repeat(prime, "r g -> k r g", k=len(part))
        for codes in mindalle.generate_steps(dalle, part, empty=empty, prime=first,
                                             generator=generator, **asdict(drawing)):
            progress(finished + codes.numel(), len(captions) * dalle.config.image_length)
        finished += codes.numel()
        drawn.append(rearrange(codes, "b (g1 g2) -> b g1 g2", g1=dalle.config.grid))
    codes = torch.cat(drawn)
    return torch.cat([vqgan.decode(part).clamp(-1, 1) for part in codes.split(64)]), codes


def at_once(config: mindalle.DALLEConfig) -> int:
    """Return how many images to draw together: their keys and values, guided, fit in 1 GiB."""
    values = 2 * 2 * config.layers * config.length * config.width
    return min(256, max(1, 2**30 // (4 * values)))


@torch.no_grad()
def first_rows(models: Models, path: str | None, rows: int | None) -> Tensor | None:
    """Encode a picture -> its first rows of codes (r g), to be continued; None without a picture."""
    if (path is None) != (rows is None):
        raise InputError("--prime IMAGE and --prime-rows R go together: R rows of codes are kept")
    if path is None:
        return None
    vqgan = models.get("vqgan")
    if not 0 < rows < vqgan.config.grid:
        raise InputError(f"--prime-rows {rows}: choose from 1 to {vqgan.config.grid - 1}")
    _, images = read_images([path], vqgan.config.image_size)
    return vqgan.encode(images.to(models.device))[0, :rows]


# ---- The best of several ------------------------------------------------------------------------


def candidates(n: int, rerank: int | None) -> int:
    """Return how many pictures to draw for a caption of which n are kept."""
    if rerank and rerank < n:
        raise InputError(f"--rerank {rerank} draws fewer pictures than -n {n} wants: "
                         "raise one or lower the other")
    return rerank or n


def preference(models: Models, caption: str,
               codes: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return score(images (b 3 h w)) -> (b), by which the best drawings of a caption are found.

    It is the cosine of image and caption [DALL·E sec. 2.6]. For images that our own DALL·E drew as
    codes (b g g), it adds the fraction of codes that VQGAN would choose again, shown the image. CLIP
    tells what is drawn, that fraction whether it is drawn well: a dent in a ring is seldom encoded
    as it was drawn.
    """
    cosine = models.similarity(caption)
    if codes is None or not models.checkpoint("dalle"):
        return cosine

    def chosen_again(images: Tensor) -> Tensor:
        again = [models.get("vqgan").encode(part) for part in images.split(64)]
        return (torch.cat(again) == codes).float().mean(dim=(1, 2))

    return lambda images: cosine(images) + chosen_again(images)


@torch.no_grad()
def keep_best(models: Models, caption: str, images: Tensor, n: int, rerank: int | None,
              codes: Tensor | None = None) -> tuple[list[int], list[dict]]:
    """Keep the n best images (b 3 h w), or the first n without `rerank` -> indices, entries."""
    if not rerank:
        return list(range(n)), [{"caption": caption}] * n
    values = preference(models, caption, codes)(images)
    best = mindalle.rerank(images, lambda _: values).tolist()[:n]
    return best, [{"caption": caption, "score": values[i].item(), "rank": rank}
                  for rank, i in enumerate(best)]
