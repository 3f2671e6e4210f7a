"""What the commands of sample.py can be told: each command's options are the fields of a dataclass."""

from dataclasses import dataclass

import minclip

from .run.flags import Options, option
from .drawing.unclip import ETA


@dataclass(frozen=True)
class Shared(Options):
    """The options of every command."""

    run: str = option("runs/shapes", "folder of the run")
    clip: str | None = option(None, "in place of the run's own: a file or folder, of published weights too", metavar="FILE")
    vqgan: str | None = option(None, "likewise", metavar="FILE")
    dalle: str | None = option(None, "likewise", metavar="FILE")
    prior: str | None = option(None, "likewise", metavar="FILE")
    decoder: str | None = option(None, "likewise", metavar="FILE")
    tokenizer: str | None = option(None, "in place of the run's own", metavar="FILE")
    merges: str | None = option(None, "CLIP's tokenizer, where none lies beside the weights of --clip", metavar="FILE")
    preset: str | None = option(None, "architecture of a --clip that comes without its config: "
                                      f"{', '.join(minclip.PRESETS)}; with -quickgelu at the end for that activation", metavar="NAME")
    out: str | None = option(None, "folder for what comes out (default: RUN/samples/COMMAND)")
    seed: int = option(0, "seed of everything random")
    device: str = option("auto", "where to compute", choices=["auto", "cpu", "cuda", "mps"])


@dataclass(frozen=True)
class ClassifyOptions(Options):
    labels: tuple[str, ...] = option(None, "the classes, in words", nargs="+", required=True)
    templates: tuple[str, ...] = option(("{}",), "sentences with {} for the label; their embeddings are averaged", nargs="+")


@dataclass(frozen=True)
class SearchOptions(Options):
    image: str | None = option(None, "ask with a picture instead of a text", metavar="FILE")
    n: int = option(16, "how many to show", least=1)


@dataclass(frozen=True)
class DalleOptions(Options):
    n: int = option(1, "images per caption", least=1)
    rerank: int | None = option(None, "draw K images per caption, keep the n best by CLIP and, if DALL·E is ours, VQGAN",
                                least=1, metavar="K")
    prime: str | None = option(None, "start from the top of this picture", metavar="IMAGE")
    prime_rows: int | None = option(None, "how many rows of its codes to keep", metavar="R")


@dataclass(frozen=True)
class GuideOptions(Options):
    init: str | None = option(None, "start from this picture", metavar="IMAGE")
    image_prompt: tuple[str, ...] | None = option(None, "pictures to resemble", nargs="+", metavar="FILE")


@dataclass(frozen=True)
class UnclipOptions(Options):
    n: int = option(1, "images per caption; with --rank: how many to show", least=1)
    rerank: int | None = option(None, "draw K images per caption and keep the n that CLIP likes best", least=1, metavar="K")
    prior_guidance: float | None = option(None, "how strongly the prior follows the caption (default: 1, the plain prior; Karlo's 4)")
    rank: str | None = option(None, "draw nothing: rank the images of this folder by the embedding of the prior", metavar="DIR")


@dataclass(frozen=True)
class VaryOptions(Options):
    n: int = option(8, "images to draw", least=1)
    eta: float = option(1.0, f"{ETA}; 0 gives the image back", least=0, most=1)


@dataclass(frozen=True)
class InterpolateOptions(Options):
    n: int = option(8, "images on the way, both ends included", least=2)


@dataclass(frozen=True)
class EditOptions(Options):
    n: int = option(8, "images on the way", least=2)
    strength: float = option(1.0, "how many times the difference of the captions is added in the end")
    eta: float = option(0.0, f"{ETA}; 0 keeps places and outlines", least=0, most=1)


@dataclass(frozen=True)
class ExplainOptions(Options):
    image: str | None = option(None, "the picture to explain; without it DALL·E draws one", metavar="FILE")
    grade: int | None = option(None, "grade the explanations on N scenes of the shapes world", least=1)


@dataclass(frozen=True)
class ScoreOptions(Options):
    count: int = option(512, "true pictures per split", least=16)
    draws: int = option(128, "captions drawn per split", least=1)
    rerank: int = option(8, "pictures per caption among which the best is chosen", least=1, metavar="K")
