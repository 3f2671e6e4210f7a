"""Use what train.py trained: classify, search, reconstruct, draw, vary, edit, explain, score.

    python sample.py classify cat.png --labels "a cat" "a dog"
    python sample.py search "a red circle" pictures/
    python sample.py reconstruct cat.png dog.png
    python sample.py dalle "a red circle above an orange star on a gray background" -n 8
    python sample.py guide "a large red star on a gray background"
    python sample.py unclip "a red circle above an orange star on a gray background" -n 8
    python sample.py vary cat.png
    python sample.py interpolate cat.png dog.png
    python sample.py edit cat.png "a black cat" "a white cat"
    python sample.py explain "a red circle above an orange star on a gray background"
    python sample.py score

`python sample.py COMMAND --help` lists a command's options. `score` writes RUN/scores.json and
RUN/report.html, every other command pictures and an index.jsonl into RUN/samples/COMMAND or --out.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import data
import minclip
import minvqgan
from common.drawing.dalle import (
    MINDALLE_DRAWING, PICTURES_DRAWING, Drawing, candidates, default_drawing, first_rows,
    generate_images, keep_best)
from common.drawing.guide import PUBLISHED_GUIDING, Guiding, default_guiding, guide_and_write
from common.drawing.unclip import (
    DecoderSampling, denoiser, draw_embeddings, draw_steps, is_own_prior, open_images, write_strip)
from common.run.errors import InputError, one_line_errors
from common.run.flags import Options, Parser, add_fields, option, positional, typed_fields
from common.run.folder import pick_device
from common.run.models import PACKAGES, Models
from common.run.models import reconstruct as encode_and_decode
from common.run.pictures import Output, contact_sheet, read_images, reconstruction_sheet, to_pil
from mindalle import unclip as dalle2

LIKEWISE = "in place of the run's own, likewise"
ETA = "how random the steps are: 0 (DDIM) keeps the noise, 1 (DDPM) renews it [DDIM eq. 16]"


@dataclass(frozen=True)
class Shared(Options):
    """The options of every command."""

    run: str = option("runs/shapes", "folder of the run")
    clip: str | None = option(None, "in place of the run's own: a file or folder, of published "
                              "weights too", metavar="FILE")
    vqgan: str | None = option(None, LIKEWISE, metavar="FILE")
    dalle: str | None = option(None, LIKEWISE, metavar="FILE")
    prior: str | None = option(None, LIKEWISE, metavar="FILE")
    decoder: str | None = option(None, LIKEWISE, metavar="FILE")
    tokenizer: str | None = option(None, LIKEWISE, metavar="FILE")
    merges: str | None = option(None, "CLIP's tokenizer, where none lies beside --clip",
                                metavar="FILE")
    preset: str | None = option(None, "architecture of a --clip without a config: "
                                f"{', '.join(minclip.PRESETS)}; -quickgelu at the end for that "
                                "activation", metavar="NAME")
    out: str | None = option(None, "folder for what comes out (default: RUN/samples/COMMAND)")
    seed: int = option(0, "seed of everything random")
    device: str = option("auto", "where to compute", choices=["auto", "cpu", "cuda", "mps"])

    def output(self, command: str, count: int = 0) -> Output:
        """Open the command's folder; count: how many numbered pictures will be written at most."""
        return Output(self.out or Path(self.run) / "samples" / command, command, count)


# ---- CLIP ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassifyOptions(Shared):
    images: tuple[str, ...] = positional("IMAGE", "+")
    labels: tuple[str, ...] = option(None, "the classes, in words", nargs="+", required=True)
    templates: tuple[str, ...] = option(("{}",), "sentences with {} for the label, to be averaged",
                                        nargs="+")


def classify(models: Models, options: ClassifyOptions) -> None:
    """Zero-shot classification: a probability per label and image."""
    out, clip, labels = options.output("classify"), models.get("clip"), options.labels
    names, images = models.read_images(options.images)
    classes = minclip.class_embeddings(clip, models.clip_tokenizer(), labels, options.templates)
    probabilities = minclip.classify(clip, images.to(models.device), classes).cpu()  # (b labels)
    entries = []
    for name, row in zip(names, probabilities.tolist()):
        ranked = sorted(zip(row, labels), reverse=True)
        print(f"{name}: " + "   ".join(f"{p:6.1%} {label}" for p, label in ranked))
        best, label = ranked[0]
        entries.append({"file": name, "caption": label, "score": best,
                        "probabilities": dict(zip(labels, row))})
    texts = [f"{entry['caption']} {entry['score']:.0%}" for entry in entries]
    out.write(to_pil(images), entries, labels=texts)


@dataclass(frozen=True)
class SearchOptions(Shared):
    query: tuple[str, ...] = positional("QUERY DIR", "+")
    image: str | None = option(None, "ask with a picture instead of a text", metavar="FILE")
    n: int = option(16, "how many to show", least=1)


@torch.no_grad()
def search(models: Models, options: SearchOptions) -> None:
    """Rank the images of a folder by how close they are to a text or a picture."""
    if len(options.query) != (2 if options.image is None else 1):
        raise InputError('search takes "QUERY" DIR, or DIR --image FILE')
    if options.image is None:
        query = models.embed_text([options.query[0]])[0]                             # (e)
    else:
        query = models.embed_images(models.read_images([options.image])[1].to(models.device))[0]
    show_closest(models, options, options.query[-1], query)


def show_closest(models: Models, options: Any, folder: str, query: Tensor) -> None:
    """Show the n images of a folder whose embeddings are closest to the query (e)."""
    out = options.output("search")
    paths = [Path(folder) / name for name in data.image_files(Path(folder))]
    names, features = models.embed_files(paths)                                      # (files e)
    closest, indices = minclip.search(query, features, options.n)
    entries = [{"file": names[i], "score": score, "rank": rank}
               for rank, (score, i) in enumerate(zip(closest.tolist(), indices.tolist()), start=1)]
    for entry in entries:
        print(f"{entry['rank']:3d}  {entry['score']:.3f}  {entry['file']}")
    labels = [f"{entry['score']:.3f} {Path(entry['file']).name}" for entry in entries]
    out.write([data.read_image(entry["file"], 128) for entry in entries], entries, labels=labels)


# ---- VQGAN --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReconstructOptions(Shared):
    images: tuple[str, ...] = positional("IMAGE", "+")


def reconstruct(models: Models, options: ReconstructOptions) -> None:
    """Encode and decode images: originals over their reconstructions, PSNR, codes used."""
    out, vqgan = options.output("reconstruct", len(options.images)), models.get("vqgan")
    names, images = read_images(options.images, vqgan.config.image_size)
    redrawn, codes = encode_and_decode(vqgan, images.to(models.device))
    psnr = minvqgan.psnr(images, redrawn.cpu()).tolist()
    entries = [{"original": name, "psnr": value, "codes": len(code.unique())}
               for name, value, code in zip(names, psnr, codes)]
    for entry in entries:
        print(f"{entry['original']}: {entry['psnr']:.1f} dB, {entry['codes']} different codes")
    sheet = reconstruction_sheet(images, redrawn, [Path(name).name for name in names], psnr)
    out.write(to_pil(redrawn), entries, sheet=sheet)


@dataclass(frozen=True)
class GuideOptions(Shared):
    prompt: str | None = positional('"text:weight | text:weight"', "?")
    init: str | None = option(None, "start from this picture", metavar="IMAGE")
    image_prompt: tuple[str, ...] = option((), "pictures to resemble", nargs="+", metavar="FILE")


def guide(models: Models, options: GuideOptions, guiding: Guiding) -> None:
    """VQGAN+CLIP: change a picture until CLIP finds that it matches the prompts."""
    prompts = minvqgan.parse_prompts(options.prompt) if options.prompt else []
    if not prompts and not options.image_prompt:
        raise InputError('guide needs a "PROMPT" or an --image-prompt FILE')
    out, targets = options.output("guide", 1), [models.embed_text([p.text]) for p in prompts]
    if options.image_prompt:
        _, images = models.read_images(options.image_prompt)
        with torch.no_grad():
            targets.append(models.embed_images(images.to(models.device)))
        prompts += [minvqgan.Prompt("image")] * len(images)
    side = models.get("vqgan").config.image_size
    init = read_images([options.init], side)[1] if options.init else None
    guide_and_write(models, out, options.prompt or "", prompts, torch.cat(targets), guiding,
                    options.seed, init)


# ---- DALL·E -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DalleOptions(Shared):
    captions: tuple[str, ...] = positional("CAPTION", "+")
    n: int = option(1, "images per caption", least=1)
    rerank: int | None = option(None, "draw K images per caption, keep the n best by CLIP and, if "
                                "DALL·E is ours, VQGAN", least=1, metavar="K")
    prime: str | None = option(None, "start from the top of this picture", metavar="IMAGE")
    prime_rows: int | None = option(None, "how many rows of its codes to keep", metavar="R")


def dalle(models: Models, options: DalleOptions, drawing: Drawing) -> None:
    """Draw images for captions; "" draws without one."""
    captions, n, count = options.captions, options.n, candidates(options.n, options.rerank)
    out = options.output("dalle", len(captions) * n)
    prime = first_rows(models, options.prime, options.prime_rows)                    # (r g) or None
    wanted = [caption for caption in captions for _ in range(count)]
    images, codes = generate_images(models, wanted, drawing, options.seed, prime)
    pictures, entries = [], []
    for caption, own_images, own_codes in zip(captions, images.split(count), codes.split(count)):
        best, about = keep_best(models, caption, own_images, n, options.rerank, own_codes)
        pictures += to_pil(own_images[best])
        entries += about
    out.write(pictures, entries, columns=n if n > 1 else 8)


# ---- DALL·E 2 -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnclipOptions(Shared):
    captions: tuple[str, ...] = positional("CAPTION", "+")
    n: int = option(1, "images per caption; with --rank: how many to show", least=1)
    rerank: int | None = option(None, "draw K images per caption and keep the n best by CLIP",
                                least=1, metavar="K")
    prior_guidance: float | None = option(None, "how strongly the prior follows the caption "
                                          "(default: 1, the plain prior; Karlo's 4)")
    rank: str | None = option(None, "draw nothing: rank the images of this folder by the embedding "
                              "of the prior", metavar="DIR")


def unclip(models: Models, options: UnclipOptions, sampling: DecoderSampling) -> None:
    """DALL·E 2: draw images for captions, by way of CLIP embeddings that its prior draws."""
    captions, n, count = options.captions, options.n, candidates(options.n, options.rerank)
    if options.rank:
        if len(captions) > 1:
            raise InputError(f"--rank takes one caption, not {len(captions)}")
        z = draw_embeddings(models, list(captions), options.seed, options.prior_guidance)
        return show_closest(models, options, options.rank, z[0])
    if models.get("prior") and not is_own_prior(models):
        raise InputError("Karlo's prior has no decoder here: add --rank DIR, to rank the pictures "
                         "of a folder by its embeddings")
    out = options.output("unclip", len(captions) * n)
    wanted = [caption for caption in captions for _ in range(count)]
    z = draw_embeddings(models, wanted, options.seed, options.prior_guidance)        # (b e)
    pictures, entries, frames, shown = [], [], [], min(count, 8)
    for images in draw_steps(models, z, sampling, options.seed):                     # (b 3 h w)
        frames.append(contact_sheet(to_pil(images[:shown]), [""] * shown, shown))
    for caption, own_images in zip(captions, images.split(count)):
        best, about = keep_best(models, caption, own_images, n, options.rerank)
        pictures += to_pil(own_images[best])
        entries += about
    out.write(pictures, entries, columns=n if n > 1 else 8)
    out.write_gif("unclip.gif", frames)


@dataclass(frozen=True)
class VaryOptions(Shared):
    image: str = positional("IMAGE")
    n: int = option(8, "images to draw", least=1)
    eta: float = option(1.0, f"{ETA}; 0 gives the image back", least=0, most=1)


@torch.no_grad()
def vary(models: Models, options: VaryOptions, sampling: DecoderSampling) -> None:
    """DALL·E 2: draw images that CLIP takes for the same as this one."""
    out = options.output("vary", options.n)
    names, images, z = open_images(models, options.image)                     # (1 3 h w), (1 e)
    generator = torch.Generator(models.device).manual_seed(options.seed)
    drawn = dalle2.variations(denoiser(models, sampling), images, z, options.n, sampling.times,
                              options.eta, generator).clamp(-1, 1)                   # (n 3 h w)
    cosines = F.cosine_similarity(models.embed_images(drawn), z, dim=-1).tolist()
    entries = [{"original": options.image, "score": cosine} for cosine in cosines]
    write_strip(out, names, images, drawn, entries)


@dataclass(frozen=True)
class InterpolateOptions(Shared):
    a: str = positional("A")
    b: str = positional("B")
    n: int = option(8, "images on the way, both ends included", least=2)


def interpolate(models: Models, options: InterpolateOptions, sampling: DecoderSampling) -> None:
    """DALL·E 2: draw the way from one image to another."""
    out, n = options.output("interpolate", options.n), options.n
    names, images, z = open_images(models, options.a, options.b)              # (2 3 h w), (2 e)
    drawn = dalle2.interpolate(denoiser(models, sampling), images, z, n, sampling.times)
    entries = [{"original": options.a, "other": options.b, "fraction": i / (n - 1)}
               for i in range(n)]
    write_strip(out, names, images, drawn.clamp(-1, 1), entries)


@dataclass(frozen=True)
class EditOptions(Shared):
    image: str = positional("IMAGE")
    old: str = positional("FROM")
    new: str = positional("TO")
    n: int = option(8, "images on the way", least=2)
    strength: float = option(1.0, "how many times the captions' difference is added in the end")
    eta: float = option(0.0, f"{ETA}; 0 keeps places and outlines", least=0, most=1)


def edit(models: Models, options: EditOptions, sampling: DecoderSampling) -> None:
    """DALL·E 2: change an image by the difference of two captions, up to --strength."""
    out = options.output("edit", options.n)
    names, images, z = open_images(models, options.image)                     # (1 3 h w), (1 e)
    generator = torch.Generator(models.device).manual_seed(options.seed)
    strengths = torch.linspace(0, options.strength, options.n, device=models.device)
    old, new = F.normalize(models.embed_text([options.old, options.new]), dim=-1)    # (e), (e)
    drawn = dalle2.edit(denoiser(models, sampling), images, z, old, new, strengths, sampling.times,
                        options.eta, generator).clamp(-1, 1)                         # (n 3 h w)
    about = {"original": options.image, "from": options.old, "to": options.new}
    entries = [about | {"strength": value} for value in strengths.tolist()]
    write_strip(out, names, images, drawn, entries)


# ---- Inside, and scores -------------------------------------------------------------------------


@dataclass(frozen=True)
class ExplainOptions(Shared):
    caption: str | None = positional("CAPTION", "?")
    image: str | None = option(None, "the picture to explain; without it DALL·E draws one",
                               metavar="FILE")
    grade: int | None = option(None, "grade explanations on N scenes of the shapes world", least=1)


def explain(models: Models, options: ExplainOptions) -> None:
    """Show what CLIP, VQGAN and DALL·E look at in a picture and its caption."""
    # imported here, as in score: other commands need none of it
    from common.drawing.explain import explain_and_write
    from common.scoring.explain import grade

    if options.caption is None and not options.grade:
        raise InputError('explain needs a "CAPTION", or --grade N')
    out = options.output("explain", 1)
    if options.caption is not None:
        explain_and_write(models, out, options.caption, options.image, options.seed)
    if options.grade:
        grade(models, out.folder / "explain.json", options.grade, options.seed)


@dataclass(frozen=True)
class ScoreOptions(Shared):
    count: int = option(512, "true pictures per split", least=16)
    draws: int = option(128, "captions drawn per split", least=1)
    rerank: int = option(8, "pictures per caption, to choose from", least=1, metavar="K")


def score(models: Models, options: ScoreOptions, drawing: Drawing) -> None:
    """Report every figure of a run."""
    from common.scoring import scores
    from page import export

    scores.score(models, drawing, options.count, options.draws, options.rerank, options.seed)
    export.write(models.run)


# ---- The command line ---------------------------------------------------------------------------


class Command(NamedTuple):
    """A command, its options, and settings whose defaults depend on the models."""

    run: Callable[..., None]
    options: type
    settings: type | None = None
    default: Callable[[Models], Any] | None = None
    variants: dict[str, Any] = {}  # case -> the settings that are the defaults in it, for help


DRAWING = (Drawing, lambda models: default_drawing(models) if models.has("dalle") else Drawing(),
           {"own pictures": PICTURES_DRAWING, "minDALL-E": MINDALLE_DRAWING})
SAMPLING = (DecoderSampling, lambda models: DecoderSampling())
COMMANDS = {
    "classify": Command(classify, ClassifyOptions),
    "search": Command(search, SearchOptions),
    "reconstruct": Command(reconstruct, ReconstructOptions),
    "dalle": Command(dalle, DalleOptions, *DRAWING),
    "guide": Command(guide, GuideOptions, Guiding, default_guiding,
                     {"published CLIP": PUBLISHED_GUIDING}),
    "unclip": Command(unclip, UnclipOptions, *SAMPLING),
    "vary": Command(vary, VaryOptions, *SAMPLING),
    "interpolate": Command(interpolate, InterpolateOptions, *SAMPLING),
    "edit": Command(edit, EditOptions, *SAMPLING),
    "explain": Command(explain, ExplainOptions),
    "score": Command(score, ScoreOptions, *DRAWING),
}


def parser() -> Parser:
    top = Parser(prog="python sample.py", description=__doc__.split("\n")[0])
    commands = top.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.run.__doc__, description=command.run.__doc__)
        add_fields(sub, command.options)
        if command.settings:
            add_fields(sub, command.settings, variants=command.variants)
    return top


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    command = COMMANDS[args.command]
    options = command.options(**typed_fields(args, command.options))
    torch.manual_seed(options.seed)
    files = {name: getattr(options, name) for name in (*PACKAGES, "tokenizer")}
    models = Models(options.run, pick_device(options.device), options.preset, options.merges,
                    **files)
    settings = []
    if command.settings:
        settings = [replace(command.default(models), **typed_fields(args, command.settings))]
    command.run(models, options, *settings)


if __name__ == "__main__":
    one_line_errors(main)
