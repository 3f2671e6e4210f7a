"""Use what train.py trained: classify, search, reconstruct, draw from captions, guide, vary, edit, explain, score a run.

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

`python sample.py COMMAND --help` lists a command's options. `score` writes RUN/scores.json and RUN/report.html, every other
command its pictures and an index.jsonl into RUN/samples/COMMAND or --out.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

import data
import mindalle
import minclip
import minvqgan
from common.scoring import explain as explain_scores
from common import report
from common.scoring import shapes as scores
from common.drawing.dalle import MINDALLE_DRAWING, PICTURES_DRAWING, Drawing, drawing, drawn_per_caption, first_rows, generate_images, keep_best
from common.run.errors import InputError, one_line_errors
from common.drawing.explain import explain_and_write
from common.run.flags import Parser, add_fields, typed_fields
from common.drawing.guide import PUBLISHED_GUIDING, Guiding, guide_and_write, guiding
from common.run.models import PACKAGES, Models
from common.options import (
    ClassifyOptions, DalleOptions, EditOptions, ExplainOptions, GuideOptions, InterpolateOptions, ScoreOptions, SearchOptions,
    Shared, UnclipOptions, VaryOptions,
)
from common.run.pictures import Output, contact_sheet, read_images, reconstruction_sheet, to_pil
from common.training.device import keep_freed_memory
from common.run.runs import pick_device
from common.drawing.unclip import DecoderSampling, denoiser, draw_embeddings, draw_steps, open_images, own_prior, write_strip


def output(args: argparse.Namespace, count: int = 0, kind: str | None = None) -> Output:
    """Open the command's folder; count: how many numbered pictures will be written at the most; kind: if not the command's."""
    return Output(args.out or Path(args.run) / "samples" / args.command, kind or args.command, count)


# ---- The commands: (options, models) -> pictures and an index in the command's folder ---------------------------------


def classify(args: argparse.Namespace, models: Models) -> None:
    """Zero-shot classification: a probability per label and image."""
    out, clip = output(args), models.get("clip")
    names, images = models.read_images(args.images)
    classes = minclip.class_embeddings(clip, models.clip_tokenizer(), args.labels, args.templates)
    probabilities = minclip.classify(clip, images.to(models.device), classes).cpu()             # (b labels)
    entries = []
    for name, row in zip(names, probabilities.tolist()):
        ranked = sorted(zip(row, args.labels), reverse=True)
        print(f"{name}: " + "   ".join(f"{p:6.1%} {label}" for p, label in ranked))
        best, label = ranked[0]
        entries.append({"file": name, "caption": label, "score": best, "probabilities": dict(zip(args.labels, row))})
    out.write(to_pil(images), entries, labels=[f"{e['caption']} {e['score']:.0%}" for e in entries])


@torch.no_grad()
def search(args: argparse.Namespace, models: Models) -> None:
    """Rank the images of a folder by how close they are to a text or a picture."""
    if len(args.query) != (2 if args.image is None else 1):
        raise InputError('search takes "QUERY" DIR, or DIR --image FILE')
    if args.image is None:
        query = models.embed_text(args.query[:1])[0]                                             # (e)
    else:
        query = models.embed_images(models.read_images([args.image])[1].to(models.device))[0]
    show_closest(args, models, args.query[-1], query)


def show_closest(args: argparse.Namespace, models: Models, folder: str, query: torch.Tensor) -> None:
    """Show the images of a folder whose embeddings are closest to the query (e)."""
    out = output(args, kind="search")
    names, features = models.embed_files([Path(folder) / name for name in data.image_files(Path(folder))])  # (n e)
    closest, indices = minclip.search(query, features, args.n)
    entries = [{"file": names[i], "score": score, "rank": rank}
               for rank, (score, i) in enumerate(zip(closest.tolist(), indices.tolist()), start=1)]
    for entry in entries:
        print(f"{entry['rank']:3d}  {entry['score']:.3f}  {entry['file']}")
    labels = [f"{e['score']:.3f} {Path(e['file']).name}" for e in entries]
    out.write([data.read_image(entry["file"], 128) for entry in entries], entries, labels=labels)


def reconstruct(args: argparse.Namespace, models: Models) -> None:
    """Encode and decode images: originals over their reconstructions, PSNR, codes used."""
    out, vqgan = output(args, len(args.images)), models.get("vqgan")
    names, images = read_images(args.images, vqgan.config.image_size)
    redrawn, codes = scores.reconstruct(vqgan, images.to(models.device))
    psnr = minvqgan.psnr(images, redrawn.cpu()).tolist()
    entries = [{"original": name, "psnr": value, "codes": len(code.unique())} for name, value, code in zip(names, psnr, codes)]
    for entry in entries:
        print(f"{entry['original']}: {entry['psnr']:.1f} dB, {entry['codes']} different codes")
    sheet = reconstruction_sheet(to_pil(images), to_pil(redrawn), [Path(name).name for name in names], psnr)
    out.write(to_pil(redrawn), entries, sheet=sheet)


def dalle(args: argparse.Namespace, models: Models) -> None:
    """Draw images for captions; "" draws without one."""
    count = drawn_per_caption(args.n, args.rerank)
    out, how = output(args, len(args.captions) * args.n), drawing(models, **typed_fields(args, Drawing))
    prime = first_rows(models, args.prime, args.prime_rows)                                      # (r g), or None
    wanted = [caption for caption in args.captions for _ in range(count)]
    images, codes = generate_images(models, wanted, how, args.seed, prime)                       # (captions · count 3 h w), (... g g)
    pictures, entries = [], []
    for caption, candidates, drawn in zip(args.captions, images.split(count), codes.split(count)):
        best, about = keep_best(models, caption, candidates, args.n, args.rerank, drawn)
        pictures += to_pil(candidates[best])
        entries += about
    out.write(pictures, entries, columns=args.n if args.n > 1 else 8)


def guide(args: argparse.Namespace, models: Models) -> None:
    """VQGAN+CLIP: change a picture until CLIP finds that it matches the prompts."""
    prompts = minvqgan.parse_prompts(args.prompt) if args.prompt else []
    if not prompts and not args.image_prompt:
        raise InputError('guide needs a "PROMPT" or an --image-prompt FILE')
    out, how = output(args, 1), guiding(models, **typed_fields(args, Guiding))
    targets = [models.embed_text([prompt.text]) for prompt in prompts]
    if args.image_prompt:
        _, images = models.read_images(args.image_prompt)
        with torch.no_grad():
            targets.append(models.embed_images(images.to(models.device)))
        prompts += [minvqgan.Prompt("image")] * len(images)
    init = read_images([args.init], models.get("vqgan").config.image_size)[1] if args.init else None
    guide_and_write(models, out, args.prompt or "", prompts, torch.cat(targets), how, args.seed, init)


def unclip(args: argparse.Namespace, models: Models) -> None:
    """DALL·E 2: draw images for captions, by way of CLIP embeddings that its prior draws."""
    if args.rank:
        return rank_folder(args, models)
    if models.get("prior") and not own_prior(models):
        raise InputError("Karlo's prior has no decoder here: add --rank DIR, to rank the pictures of a folder by its embeddings")
    count = drawn_per_caption(args.n, args.rerank)
    out, how = output(args, len(args.captions) * args.n), DecoderSampling(**typed_fields(args, DecoderSampling))
    wanted = [caption for caption in args.captions for _ in range(count)]
    z = draw_embeddings(models, wanted, args.seed, args.prior_guidance)                          # (captions · count e)
    pictures, entries, frames, shown = [], [], [], min(count, 8)
    for images in draw_steps(models, z, how, args.seed):                                         # (captions · count 3 h w)
        frames.append(contact_sheet(to_pil(images[:shown]), [""] * shown, shown))
    for caption, candidates in zip(args.captions, images.split(count)):
        best, about = keep_best(models, caption, candidates, args.n, args.rerank)
        pictures += to_pil(candidates[best])
        entries += about
    out.write(pictures, entries, columns=args.n if args.n > 1 else 8)
    out.write_gif("unclip.gif", frames)


def rank_folder(args: argparse.Namespace, models: Models) -> None:
    """Rank the images of a folder by how close they are to the embedding that the prior draws for one caption."""
    if len(args.captions) > 1:
        raise InputError(f"--rank takes one caption, not {len(args.captions)}")
    show_closest(args, models, args.rank, draw_embeddings(models, args.captions, args.seed, args.prior_guidance)[0])


@torch.no_grad()
def vary(args: argparse.Namespace, models: Models) -> None:
    """DALL·E 2: draw images that CLIP takes for the same as this one."""
    out, how = output(args, args.n), DecoderSampling(**typed_fields(args, DecoderSampling))
    names, images, z = open_images(models, [args.image])                                         # (1 3 h w), (1 e)
    generator = torch.Generator(models.device).manual_seed(args.seed)
    drawn = mindalle.unclip.variations(denoiser(models, how), images, z, args.n, how.times, args.eta, generator).clamp(-1, 1)
    cosines = F.cosine_similarity(models.embed_images(drawn), z, dim=-1).tolist()
    write_strip(out, names, images, drawn, [{"original": names[0], "score": cosine} for cosine in cosines])


def interpolate(args: argparse.Namespace, models: Models) -> None:
    """DALL·E 2: draw the way from one image to another."""
    out, how = output(args, args.n), DecoderSampling(**typed_fields(args, DecoderSampling))
    names, images, z = open_images(models, [args.a, args.b])                                     # (2 3 h w), (2 e)
    drawn = mindalle.unclip.interpolate(denoiser(models, how), images, z, args.n, how.times).clamp(-1, 1)
    entries = [{"original": names[0], "other": names[1], "share": i / (args.n - 1)} for i in range(args.n)]
    write_strip(out, names, images, drawn, entries)


def edit(args: argparse.Namespace, models: Models) -> None:
    """DALL·E 2: change an image by the difference of two captions, more and more up to --strength."""
    generator = torch.Generator(models.device).manual_seed(args.seed)
    out, how = output(args, args.n), DecoderSampling(**typed_fields(args, DecoderSampling))
    names, images, z = open_images(models, [args.image])                                         # (1 3 h w), (1 e)
    strengths = torch.linspace(0, args.strength, args.n, device=models.device)
    change = F.normalize(models.embed_text([args.old, args.new]), dim=-1)                        # (2 e)
    drawn = mindalle.unclip.edit(denoiser(models, how), images, z, *change, strengths, how.times, args.eta, generator)
    entries = [{"original": names[0], "from": args.old, "to": args.new, "strength": value} for value in strengths.tolist()]
    write_strip(out, names, images, drawn.clamp(-1, 1), entries)


def explain(args: argparse.Namespace, models: Models) -> None:
    """Show what CLIP, VQGAN and DALL·E look at in a picture and its caption."""
    if args.caption is None and not args.grade:
        raise InputError('explain needs a "CAPTION", or --grade N')
    out = output(args, 1)
    if args.caption is not None:
        explain_and_write(models, out, args.caption, args.image, args.seed)
    if args.grade:
        explain_scores.grade(models, out.folder / "explain.json", args.grade, args.seed)


def score(args: argparse.Namespace, models: Models) -> None:
    """Report every figure of a run."""
    how = drawing(models, **typed_fields(args, Drawing)) if models.has("dalle") else Drawing()
    scores.score(models, how, args.count, args.draws, args.rerank, args.seed)
    report.write(models.run)


# ---- The command line -------------------------------------------------------------------------------------------------


# name -> the command, its positional arguments (name, how many, what help calls it), its options
COMMANDS = {
    "classify": (classify, [("images", "+", "IMAGE")], (ClassifyOptions,)),
    "search": (search, [("query", "+", "QUERY DIR")], (SearchOptions,)),
    "reconstruct": (reconstruct, [("images", "+", "IMAGE")], ()),
    "dalle": (dalle, [("captions", "+", "CAPTION")], (DalleOptions, Drawing)),
    "guide": (guide, [("prompt", "?", '"text:weight | text:weight"')], (GuideOptions, Guiding)),
    "unclip": (unclip, [("captions", "+", "CAPTION")], (UnclipOptions, DecoderSampling)),
    "vary": (vary, [("image", None, "IMAGE")], (VaryOptions, DecoderSampling)),
    "interpolate": (interpolate, [("a", None, "A"), ("b", None, "B")], (InterpolateOptions, DecoderSampling)),
    "edit": (edit, [("image", None, "IMAGE"), ("old", None, "FROM"), ("new", None, "TO")], (EditOptions, DecoderSampling)),
    "explain": (explain, [("caption", "?", "CAPTION")], (ExplainOptions,)),
    "score": (score, [], (ScoreOptions, Drawing)),
}

# defaults that depend on the model
OTHERS = {Drawing: {"own pictures": PICTURES_DRAWING, "minDALL-E": MINDALLE_DRAWING}, Guiding: {"published CLIP": PUBLISHED_GUIDING}}


def parser() -> Parser:
    top = Parser(prog="python sample.py", description=__doc__.split("\n")[0])
    commands = top.add_subparsers(dest="command", required=True)
    for name, (run, positionals, options) in COMMANDS.items():
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        for dest, count, shown in positionals:
            sub.add_argument(dest, nargs=count, metavar=shown, default=None)
        for cls in (*options, Shared):
            add_fields(sub, cls, others=OTHERS.get(cls))
    return top


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    run, _, options = COMMANDS[args.command]
    for cls in {Shared, *options} - set(OTHERS):
        vars(args).update(asdict(cls(**typed_fields(args, cls))))
    files = {name: getattr(args, name) for name in ("preset", "merges", "tokenizer", *PACKAGES)}
    torch.manual_seed(args.seed)
    keep_freed_memory()
    run(args, Models(args.run, pick_device(args.device), **files))


if __name__ == "__main__":
    one_line_errors(main)
