"""Use what train.py trained: classify, search, reconstruct, draw from captions, guide a picture, score a run.

    python sample.py classify cat.png --labels "a cat" "a dog"
    python sample.py search "a red circle" pictures/
    python sample.py reconstruct cat.png dog.png
    python sample.py dalle "a red circle above an orange star on a gray background" -n 8
    python sample.py guide "a large red circle"
    python sample.py score

`python sample.py COMMAND --help` lists a command's options. Every command leaves its pictures and an index.jsonl in
RUN/samples/COMMAND, or in --out.
"""

import argparse
import csv
import dataclasses
import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import data
import mindalle
import minclip
import minvqgan

# ---- Errors, devices, models ----------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Refuse a bad command line in one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def one_line_errors(main: Callable[[], None]) -> None:
    """Run a command; turn what is wrong with its input into one line on standard error and exit code 2."""
    try:
        main()
    except (ValueError, OSError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"{Path(sys.argv[0]).name}: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted") from None


def pick_device(name: str) -> str:
    """Turn "auto" into the best device there is; refuse one that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if there[device])
    if not there[name]:
        raise ValueError(f"--device {name}: this machine has none that torch can use; try --device cpu")
    return name


def fingerprint(model: torch.nn.Module) -> str:
    """Name a model's weights in 12 hexadecimal digits."""
    digest = sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


PACKAGES = {"clip": minclip, "vqgan": minvqgan, "dalle": mindalle}


class Models:
    """Load a run's models when they are first asked for, each from the run's folder or from what was given instead.

    That may be published weights: then they bring their own tokenizer, and of minDALL-E's folder its VQGAN as well.
    """

    def __init__(self, run: str | Path, device: str, preset: str | None = None, **files: str | None):
        self.run, self.device, self.preset, self.loaded = Path(run), device, preset, {}
        if files.get("dalle") and (Path(files["dalle"]) / "stage1_last.ckpt").exists():
            files["vqgan"] = files.get("vqgan") or files["dalle"]
        self.merges = files.pop("merges", None)
        self.files = {name: Path(files.get(name) or self.run / default) for name, default in (
            ("clip", "clip.pt"), ("vqgan", "vqgan.pt"), ("dalle", "dalle.pt"), ("tokenizer", "tokenizer.json"))}

    def get(self, name: str):
        if name not in self.loaded:
            path, package = self.files[name], PACKAGES.get(name)
            if not path.exists():
                train = "clip" if name == "tokenizer" else name
                raise ValueError(f"{path} is missing: train it with `python train.py {train} --run {self.run}`, "
                                 f"or name another run with --run")
            options = {"preset": self.preset} if name == "clip" else {}
            self.loaded[name] = package.load(path, self.device, **options) if package else minclip.Tokenizer.load(path)
        return self.loaded[name]

    def marks(self, name: str) -> dict:
        """Return what train.py noted in a checkpoint beside the weights; nothing for published weights."""
        files = PACKAGES[name].pretrained
        content = files.read(files.locate(self.files[name]))
        return content if isinstance(content, dict) and content.get("kind") == name else {}

    def clip_tokenizer(self) -> minclip.Tokenizer:
        """Return CLIP's tokenizer: --merges, or what lies beside a --clip, or the run's own."""
        clip, path = self.get("clip"), self.files["clip"]
        if "clip_tokenizer" not in self.loaded:
            folder = path if path.is_dir() else path.parent
            beside = folder != self.run and any((folder / name).exists() for name in minclip.tokenizer.FILES)
            tokenizer = minclip.Tokenizer.load(self.merges or folder) if self.merges or beside else self.get("tokenizer")
            if tokenizer.vocab_size != clip.config.vocab_size:
                raise ValueError(f"{path} knows {clip.config.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}: "
                                 f"name the one it was trained with by --merges, as bpe_simple_vocab_16e6.txt.gz")
            self.loaded["clip_tokenizer"] = tokenizer
        return self.loaded["clip_tokenizer"]

    def dalle(self) -> tuple[mindalle.DALLE, minclip.Tokenizer | mindalle.Tokenizer]:
        """Return DALL·E and its tokenizer, having made sure that this and the VQGAN are those it was trained with."""
        model, vqgan, path = self.get("dalle"), self.get("vqgan"), self.files["dalle"]
        if vqgan.config.codebook_size != model.config.image_vocab:
            raise ValueError(f"{path} draws in {model.config.image_vocab} codes, {self.files['vqgan']} has "
                             f"{vqgan.config.codebook_size}: name the right --vqgan")
        if "dalle_tokenizer" not in self.loaded:
            if known := self.marks("dalle"):
                for name, found in (("tokenizer", self.get("tokenizer").fingerprint), ("vqgan", fingerprint(vqgan))):
                    if known.get(name, found) != found:
                        raise ValueError(f"{path} was trained with another {name} than {self.files[name]} (fingerprint "
                                         f"{known[name]}, not {found}): its codes mean nothing here; train it again or "
                                         f"name the right --{name}")
            folder = path if path.is_dir() else path.parent
            self.loaded["dalle_tokenizer"] = self.get("tokenizer") if known else mindalle.Tokenizer.load(folder / "tokenizer")
        return model, self.loaded["dalle_tokenizer"]

    def read_images(self, paths: Iterable[str | Path]) -> tuple[list[str], Tensor]:
        """Read pictures as CLIP was trained to see them  ->  their names, images (b 3 side side)."""
        def as_published(path: str | Path) -> Tensor:
            with Image.open(path) as image:
                return minclip.preprocess(image, side)

        side = self.get("clip").config.image_size
        return read_images(paths, side, None if self.marks("clip") else as_published)

    def embed_text(self, texts: list[str]) -> Tensor:
        """Embed texts with CLIP  ->  (b e), unnormalised."""
        clip = self.get("clip")
        return clip.encode_text(self.clip_tokenizer().encode(texts, clip.config.context_length).to(self.device))

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images (b 3 h w) in [-1, 1] of any size with CLIP  ->  (b e), unnormalised."""
        clip = self.get("clip")
        side = clip.config.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
        return clip.encode_image(images)

    def similarity(self, text: str) -> Callable[[Tensor], Tensor]:
        """Return score(images (b 3 h w)) -> (b,), the cosine of each image with the text."""
        target = F.normalize(self.embed_text([text]), dim=-1)
        return lambda images: (F.normalize(self.embed_images(images), dim=-1) * target).sum(dim=-1)

    def draw(self, captions: list[str], seed: int, **options) -> Tensor:
        """Draw one image for each caption with DALL·E  ->  (b 3 h w) in [-1, 1]."""
        dalle, tokenizer = self.dalle()
        length = dalle.config.text_length
        text = tokenizer.encode(captions, length).to(self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        options |= {"empty": tokenizer.encode("", length)[0].to(self.device), "generator": generator}
        for codes in mindalle.generate_steps(dalle, text, **options):
            show_progress(f"drawing: code {codes.shape[1]} of {dalle.config.image_length}", last=False)
        show_progress("", last=False)
        codes = rearrange(codes, "b (g1 g2) -> b g1 g2", g1=dalle.config.grid)
        with torch.no_grad():
            return self.get("vqgan").decode(codes).clamp(-1, 1)


# ---- Pictures -------------------------------------------------------------------------------------------------------


def read_images(paths: Iterable[str | Path], side: int,
                read: Callable[[str | Path], Tensor] | None = None) -> tuple[list[str], Tensor]:
    """Read pictures, naming and skipping those that cannot be read  ->  their names, images (b 3 side side).

    read: path -> (3 side side) in [-1, 1]; without it as train.py reads them
    """
    read = read or (lambda path: data.to_tensor([data.read_image(path)], side)[0])
    names, pictures, skipped = [], [], []
    for path in paths:
        try:
            pictures.append(read(path))
            names.append(str(path))
        except (ValueError, OSError) as error:
            skipped.append(" ".join(str(error).split()))
    if not pictures:
        raise ValueError(f"no image could be read; the first: {skipped[0]}")
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    if skipped:
        print(f"skipped {len(skipped)} of {len(skipped) + len(names)} images", file=sys.stderr)
    return names, torch.stack(pictures)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Turn images (b 3 h w) in [-1, 1] into Pillow's."""
    return [Image.fromarray(picture) for picture in data.to_pictures(images)]


def contact_sheet(pictures: list[Image.Image], captions: list[str], columns: int, cell: int = 128) -> Image.Image:
    """Lay pictures out in rows with their captions underneath, small ones enlarged without blurring."""
    font, line = ImageFont.load_default(11), 14
    wrapped = [wrap(caption, font, cell) for caption in captions]
    below = line * max((len(lines) for lines in wrapped), default=0)
    rows, gap = math.ceil(len(pictures) / columns), 8
    sheet = Image.new("RGB", (gap + columns * (cell + gap), gap + rows * (cell + below + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(pictures, wrapped)):
        x, y = gap + i % columns * (cell + gap), gap + i // columns * (cell + below + gap)
        scale = cell / max(picture.size)
        size = [max(1, round(s * scale)) for s in picture.size]
        sheet.paste(picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS), (x, y))
        for row, text in enumerate(lines):
            pen.text((x, y + cell + 1 + row * line), text, fill="black", font=font)
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return lines


def draw_losses(run: Path) -> None:
    """Draw the losses in log.csv, one panel a model, over steps, into losses.png."""
    if not (run / "log.csv").exists():
        return
    with open(run / "log.csv", newline="") as file:
        rows = [(row["model"], int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    panels = []
    for model in dict.fromkeys(name for name, *_ in rows):
        points = [(step, loss) for name, step, loss in rows if name == model]
        w, h, pad = 360, 220, 30
        panel = Image.new("RGB", (w, h), "white")
        pen, font = ImageDraw.Draw(panel), ImageFont.load_default(11)
        last, losses = max(step for step, _ in points) or 1, [loss for _, loss in points]
        low, high = min(losses), max(losses)
        line = [(pad + (w - 2 * pad) * step / last, pad + (h - 2 * pad) * (high - loss) / ((high - low) or 1))
                for step, loss in points]
        pen.rectangle((pad, pad, w - pad, h - pad), outline="#cccccc")
        pen.line(line, fill="#2050c0", width=2)
        pen.text((pad, 8), f"{model}: loss from {losses[0]:.3f} to {losses[-1]:.3f}", fill="black", font=font)
        pen.text((pad, h - 22), f"step 0 to {last}; least {low:.3f}, most {high:.3f}", fill="#666666", font=font)
        panels.append(panel)
    sheet = Image.new("RGB", (360 * len(panels), 220), "white")
    for i, panel in enumerate(panels):
        sheet.paste(panel, (360 * i, 0))
    sheet.save(run / "losses.png")


class Output:
    """Write a command's folder: numbered pictures, a sheet, and index.jsonl with a line about each picture."""

    def __init__(self, args: argparse.Namespace):
        self.folder = Path(args.out or Path(args.run) / "samples" / args.command)

    def write(self, pictures: list[Image.Image], entries: list[dict], columns: int = 8,
              labels: list[str] | None = None, numbered: bool = True) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("[0-9][0-9][0-9][0-9].png"):
            old.unlink()  # or else a shorter run would leave a longer one's pictures among its own
        if numbered:
            for i, picture in enumerate(pictures):
                entries[i] = {"file": f"{i:04d}.png", **entries[i]}
                picture.save(self.folder / f"{i:04d}.png")
        labels = labels or [entry.get("caption", "") for entry in entries]
        contact_sheet(pictures, labels, min(columns, len(pictures))).save(self.folder / "sheet.png")
        with open(self.folder / "index.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        print(f"wrote {self.folder}/sheet.png")


# ---- The commands ---------------------------------------------------------------------------------------------------


def classify(args: argparse.Namespace, models: Models) -> None:
    clip = models.get("clip")
    names, images = models.read_images(args.images)
    classes = minclip.class_embeddings(clip, models.clip_tokenizer(), args.labels, args.templates or ("{}",))
    probabilities = minclip.classify(clip, images.to(models.device), classes).cpu()             # (b labels)
    entries = []
    for name, row in zip(names, probabilities.tolist()):
        ranked = sorted(zip(row, args.labels), reverse=True)
        print(f"{name}: " + "   ".join(f"{p:6.1%} {label}" for p, label in ranked))
        entries.append({"file": name, "caption": ranked[0][1], "score": ranked[0][0], "probabilities": dict(zip(args.labels, row))})
    Output(args).write(to_pil(images), entries, numbered=False, labels=[f"{e['caption']} {e['score']:.0%}" for e in entries])


@torch.no_grad()
def search(args: argparse.Namespace, models: Models) -> None:
    if args.image is None and len(args.query) != 2 or args.image is not None and len(args.query) != 1:
        raise ValueError('search takes "QUERY" DIR, or DIR --image FILE')
    folder = Path(args.query[-1])
    paths = [folder / name for name in data.image_files(folder)]
    query = models.embed_text([args.query[0]])[0] if args.image is None else models.embed_images(
        models.read_images([args.image])[1].to(models.device))[0]
    names, features = [], []
    for i in range(0, len(paths), 64):  # a batch at a time: a large folder does not fit in memory
        try:
            batch, images = models.read_images(paths[i : i + 64])
        except ValueError:
            continue  # all of these were unreadable, and named
        names += batch
        features.append(models.embed_images(images.to(models.device)))
    if not names:
        raise ValueError(f"{folder}: none of its {len(paths)} images could be read")
    scores, indices = minclip.search(query, torch.cat(features), args.n)
    entries = [{"file": names[i], "score": score, "rank": rank}
               for rank, (score, i) in enumerate(zip(scores.tolist(), indices.tolist()), start=1)]
    for entry in entries:
        print(f"{entry['rank']:3d}  {entry['score']:.3f}  {entry['file']}")
    found = [data.read_image(entry["file"]) for entry in entries]
    Output(args).write(found, entries, numbered=False, labels=[f"{e['score']:.3f} {Path(e['file']).name}" for e in entries])


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Compare images (b 3 h w) in [-1, 1]  ->  (b,) in decibels; the peak is 2."""
    return 10 * torch.log10(4 / (images - others).square().flatten(1).mean(dim=1).clamp(min=1e-10))


@torch.no_grad()
def reconstruct(args: argparse.Namespace, models: Models) -> None:
    vqgan = models.get("vqgan")
    names, images = read_images(args.images, vqgan.config.image_size)
    codes = torch.cat([vqgan.encode(part.to(models.device)) for part in images.split(64)])
    redrawn = torch.cat([vqgan.decode(part) for part in codes.split(64)]).clamp(-1, 1).cpu()
    entries = [{"file": name, "psnr": value, "codes": len(code.unique())}
               for name, value, code in zip(names, psnr(images, redrawn).tolist(), codes)]
    for entry in entries:
        print(f"{entry['file']}: {entry['psnr']:.1f} dB, {entry['codes']} different codes")
    originals, redrawn = to_pil(images), to_pil(redrawn)
    pairs, labels = [], []
    for start in range(0, len(entries), 8):  # originals over reconstructions, eight to a row
        row = slice(start, start + 8)
        blank = [Image.new("RGB", originals[0].size, "white")] * ((-len(originals[row])) % min(8, len(entries)))
        pairs += originals[row] + blank + redrawn[row] + blank
        labels += [Path(e["file"]).name for e in entries[row]] + [""] * len(blank)
        labels += [f"{e['psnr']:.1f} dB" for e in entries[row]] + [""] * len(blank)
    output = Output(args)
    output.write(redrawn, entries)
    contact_sheet(pairs, labels, min(8, len(entries))).save(output.folder / "sheet.png")


def drawing_options(args: argparse.Namespace, models: Models) -> dict:
    """Return how to draw codes: what was typed, and for the rest what suits our own DALL·E, or minDALL-E [its README]."""
    # The two likeliest codes, evenly warm: more draw ragged outlines, and a lower temperature leaves small objects out,
    # since at each single place the background is likelier than that the object should begin there.
    defaults = {"temperature": 1.0, "top_k": 2, "top_p": 1.0, "guidance": 1.5}
    if not models.marks("dalle"):  # minDALL-E never saw an empty caption, so guidance has nothing to go by
        defaults = {"temperature": 1.0, "top_k": 256, "top_p": 1.0, "guidance": 1.0}
    return {name: default if getattr(args, name) is None else getattr(args, name) for name, default in defaults.items()}


@torch.no_grad()
def dalle(args: argparse.Namespace, models: Models) -> None:
    candidates = args.rerank or args.n
    if candidates < args.n:
        raise ValueError(f"--rerank {candidates} draws fewer pictures than -n {args.n} wants: raise one or lower the other")
    model, _ = models.dalle()
    options = drawing_options(args, models)
    if (args.prime is None) != (args.prime_rows is None):
        raise ValueError("--prime IMAGE and --prime-rows R go together: R rows of the picture's codes are kept")
    if args.prime:
        image = read_images([args.prime], models.get("vqgan").config.image_size)[1]
        if not 0 < args.prime_rows < model.config.grid:
            raise ValueError(f"--prime-rows {args.prime_rows}: choose from 1 to {model.config.grid - 1}")
        rows = models.get("vqgan").encode(image.to(models.device))[:, : args.prime_rows]           # (1 r g)
    pictures, entries = [], []
    for number, caption in enumerate(args.captions):
        if args.prime:
            options["prime"] = rows.expand(candidates, -1, -1)
        images = models.draw([caption] * candidates, args.seed + number, **options)               # (candidates 3 h w)
        scores, order = None, torch.arange(candidates)
        if args.rerank:
            score = models.similarity(caption)
            scores, order = score(images), mindalle.rerank(images, score)
        for rank, i in enumerate(order[: args.n].tolist()):
            pictures += to_pil(images[i : i + 1])
            entries.append({"caption": caption} | ({"score": scores[i].item(), "rank": rank} if args.rerank else {}))
    columns = args.n if args.n > 1 else 8
    Output(args).write(pictures, entries, columns)


def guiding_options(args: argparse.Namespace, models: Models) -> dict:
    """Return how to guide: what was typed, and for the rest what suits our own CLIP, or a published one as is usual."""
    defaults = {"steps": 500, "cutouts": 32, "start": "codes", "latent_noise": 0.0, "jitter": 0.1}
    if models.marks("clip"):  # without all this noise it is content with red scraps, told of a large red circle
        defaults = {"steps": 200, "cutouts": 16, "start": "blank", "latent_noise": 1.0, "jitter": 0.6}
    return {name: default if getattr(args, name) is None else getattr(args, name) for name, default in defaults.items()}


def guide(args: argparse.Namespace, models: Models) -> None:
    clip, vqgan, options = models.get("clip"), models.get("vqgan"), guiding_options(args, models)
    prompts = minvqgan.parse_prompts(args.prompt) if args.prompt else []
    if not prompts and not args.image_prompt:
        raise ValueError('guide needs a "PROMPT" or an --image-prompt FILE')
    with torch.no_grad():
        targets = [models.embed_text([prompt.text])[0] for prompt in prompts]
        if args.image_prompt:
            images = models.read_images(args.image_prompt)[1]
            targets += list(models.embed_images(images.to(models.device)))
            prompts += [minvqgan.Prompt("image")] * len(images)
        targets = torch.stack(targets)
    weights, stops = (torch.tensor([getattr(p, key) for p in prompts], device=models.device) for key in ("weight", "stop"))
    score = minvqgan.prompt_score(models.embed_images, targets, weights, stops)
    init = None if args.init is None else read_images([args.init], vqgan.config.image_size)[1]

    def cosine(images: Tensor) -> float:
        with torch.no_grad():
            cosines = F.normalize(models.embed_images(images), dim=-1) @ rearrange(F.normalize(targets, dim=-1), "m e -> e m")
            return (cosines * weights).sum().item() / weights.abs().sum().item()

    generator = torch.Generator(models.device).manual_seed(args.seed)
    frames, values = [], []
    count = options["steps"]
    every = max(1, count // 48)
    steps = minvqgan.guide(vqgan, score, cut_size=clip.config.image_size, learning_rate=args.lr, init=init,
                           generator=generator, **options)
    try:
        for step, images in enumerate(steps):
            if step % every == 0 or step == count - 1:
                frames += to_pil(images)
                values.append(cosine(images))
                show_progress(f"guide: step {step + 1} of {count}  cosine {values[-1]:.3f}", step == count - 1)
    except KeyboardInterrupt:
        print("\nstopped early: what there is will be written")
    if not frames:
        return
    print(f"cosine with the prompt from {values[0]:.3f} to {values[-1]:.3f}")
    output = Output(args)
    output.write(frames[-1:], [{"caption": args.prompt or "", "score": values[-1], "start": values[0]}])
    chosen = sorted({round(i * (len(frames) - 1) / 7) for i in range(8)})
    contact_sheet([frames[i] for i in chosen], [f"{values[i]:.2f}" for i in chosen], 8).save(output.folder / "filmstrip.png")
    large = [frame.resize((256, 256), Image.Resampling.NEAREST) for frame in frames]
    large[0].save(output.folder / "guide.gif", save_all=True, append_images=large[1:], duration=80, loop=0)


def show_progress(line: str, last: bool) -> None:
    if sys.stdout.isatty():
        print(f"\r{line:<79}\r", end="\n" if last else "", flush=True)  # what comes next may write over it
    elif last:
        print(line)


# ---- Scores on the shapes world -------------------------------------------------------------------------------------


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
def zero_shot(models: Models, images: Tensor, captions: list[str], seed: int) -> float:
    """Return how often CLIP prefers the true caption to 15 that differ from it in one attribute."""
    rng, right = random.Random(seed), 0
    for image, caption in zip(models.embed_images(images.to(models.device)), captions):
        choices = [caption, *neighbours(data.parse(caption), 15, rng)]
        right += (F.normalize(models.embed_text(choices), dim=-1) @ image).argmax().item() == 0
    return right / len(captions)


@torch.no_grad()
def score(args: argparse.Namespace, models: Models) -> None:
    """Measure what a run learned of the shapes world, beside the judge's ceiling on true pictures of each split."""
    vqgan, count = models.get("vqgan"), args.count
    trained_on = models.marks("vqgan").get("data", "other pictures")
    if trained_on != "shapes":
        raise ValueError(f"{models.files['vqgan']} was trained on {trained_on}: score needs a run over the shapes world")
    scores = {}

    def report(name: str, value: float, note: str = "") -> None:
        scores[name] = round(value, 4)
        print(f"{name:28} {value:8.1%} {note}" if value <= 1 and name not in ("psnr", "perplexity") else f"{name:28} {value:8.1f} {note}",
              flush=True)

    true = {split: data.load("shapes", vqgan.config.image_size, split, count, seed=args.seed + 1) for split in data.SPLITS}
    captions = {split: [texts[0] for texts in true[split].captions] for split in data.SPLITS}
    everything = torch.arange(count)
    ceiling = {}
    for split in data.SPLITS:
        ceiling[split] = agreement(true[split].batch(everything), captions[split])
        report(f"judge {split}", ceiling[split], "agreement of the judge with true scenes: the ceiling below")
    for split in ("unseen", "novel"):
        report(f"zero-shot {split}", zero_shot(models, true[split].batch(everything), captions[split], args.seed))

    images = true["unseen"].batch(everything).to(models.device)
    worded = [data.parse(caption).canonical.caption for caption in captions["unseen"]]
    number = torch.tensor([{w: i for i, w in enumerate(dict.fromkeys(worded))}[w] for w in worded], device=models.device)
    same = rearrange(number, "n -> n 1") == rearrange(number, "n -> 1 n")
    to_text, to_image = minclip.recall_at_k(models.embed_images(images), models.embed_text(captions["unseen"]), 1, same)
    report("recall@1 image to text", to_text, f"among {count}")
    report("recall@1 text to image", to_image, f"among {count}")

    codes = vqgan.encode(images)
    redrawn = vqgan.decode(codes).clamp(-1, 1)
    counts = torch.bincount(codes.flatten(), minlength=vqgan.config.codebook_size).float()
    report("psnr", psnr(images, redrawn).mean().item(), "dB")
    report("usage", minvqgan.usage(counts).item(), f"of {vqgan.config.codebook_size} codes, on {count} pictures")
    report("perplexity", minvqgan.perplexity(counts).item())
    report("kept", agreement(redrawn, captions["unseen"]), f"ceiling {ceiling['unseen']:.1%}")

    options, best_of = drawing_options(args, models), args.rerank or 8
    for split in data.SPLITS:
        chosen = captions[split][: args.draws]
        drawn, best = [], []
        for start in range(0, len(chosen), 32):
            part = chosen[start : start + 32]
            repeated = [caption for caption in part for _ in range(best_of)]
            images = models.draw(repeated, args.seed + start, **options)
            images = rearrange(images, "(b k) c h w -> b k c h w", k=best_of)
            drawn.append(images[:, 0])
            best += [candidates[mindalle.rerank(candidates, models.similarity(caption))[0]]
                     for caption, candidates in zip(part, images)]
        report(f"match {split}", agreement(torch.cat(drawn), chosen), f"ceiling {ceiling[split]:.1%}")
        report(f"match {split} reranked", agreement(torch.stack(best), chosen), f"best of {best_of} by CLIP")
    scores["settings"] = {"count": count, "draws": args.draws, "best_of": best_of, "seed": args.seed, **options}
    path = models.run / "scores.json"
    temporary = path.with_suffix(".json.new")
    temporary.write_text(json.dumps(scores, indent=1) + "\n")
    os.replace(temporary, path)
    print(f"wrote {path}")


def agreement(images: Tensor, captions: list[str]) -> float:
    """Return how often the judge finds all that the caption says: images (b 3 h w) -> share in [0, 1]."""
    return sum(map(data.matches, data.to_pictures(images), captions)) / len(captions)


def finish(run: Path, source: str, device: str, seed: int) -> None:
    """End a main job: scores on the shapes world, and pictures worth looking at on any data."""
    common = ["--run", str(run), "--device", device, "--seed", str(seed)]
    vqgan = minvqgan.load(run / "vqgan.pt")
    split = "unseen" if source == "shapes" else "held-out"
    images = data.load(source, vqgan.config.image_size, split, 16, seed=seed + 1)
    shown = images.batch(torch.arange(min(16, len(images))))
    folder = run / "samples" / "originals"
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(to_pil(shown)):
        picture.save(folder / f"{i:04d}.png")
    main(["reconstruct", *(str(folder / f"{i:04d}.png") for i in range(len(shown))), *common])
    main(["dalle", *(texts[0] for texts in images.captions[:16]), *common])
    if source == "shapes":
        main(["guide", "a large red circle", *common])
        main(["score", *common])


# ---- The command line -----------------------------------------------------------------------------------------------


def parser() -> Parser:
    top = Parser(prog="python sample.py", description=__doc__.split("\n")[0])
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, help: str) -> Parser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument("--run", default="runs/shapes", help="folder of the run (default: runs/shapes)")
        for model in ("clip", "vqgan", "dalle"):
            sub.add_argument(f"--{model}", metavar="FILE", help="in place of the run's own; published weights too, or their folder")
        sub.add_argument("--tokenizer", metavar="FILE", help="in place of the run's own")
        sub.add_argument("--merges", metavar="FILE", help="CLIP's tokenizer, where none lies beside the weights of --clip")
        sub.add_argument("--preset", metavar="NAME", help="heads and activation for a --clip that comes without its config: "
                                                          f"{', '.join(minclip.PRESETS)}, or one of them and -quickgelu")
        sub.add_argument("--out", help="folder for what comes out (default: RUN/samples/COMMAND)")
        sub.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
        sub.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="(default: auto)")
        return sub

    def add_drawing(sub: Parser, rerank: str) -> None:
        sub.add_argument("--temperature", type=float, help="0 takes the likeliest code (default: 1)")
        sub.add_argument("--top-k", type=int, help="draw among the k likeliest codes, 0 all (default: 2, with minDALL-E 256)")
        sub.add_argument("--top-p", type=float, help="draw among the fewest codes of this probability (default: 1)")
        sub.add_argument("--guidance", type=float, help="how strongly to follow the caption, 1 plainly (default: 1.5, with minDALL-E 1)")
        sub.add_argument("--rerank", type=int, metavar="K", help=rerank)

    sub = command("classify", "zero-shot classification: a probability per label and image")
    sub.add_argument("images", nargs="+", metavar="IMAGE")
    sub.add_argument("--labels", nargs="+", required=True, help="the classes, in words")
    sub.add_argument("--templates", nargs="+", help="sentences with {} for the label, averaged (default: the label alone)")

    sub = command("search", "the images of a folder closest to a text or a picture")
    sub.add_argument("query", nargs="+", metavar="QUERY DIR", help="a text and a folder; with --image the folder alone")
    sub.add_argument("--image", metavar="FILE", help="ask with a picture instead of a text")
    sub.add_argument("-n", type=int, default=16, help="how many to show (default: 16)")

    sub = command("reconstruct", "originals over their reconstructions, PSNR, codes used")
    sub.add_argument("images", nargs="+", metavar="IMAGE")

    sub = command("dalle", "draw images for captions; \"\" draws without one")
    sub.add_argument("captions", nargs="+", metavar="CAPTION")
    sub.add_argument("-n", type=int, default=1, help="images per caption (default: 1)")
    add_drawing(sub, "draw K images per caption and keep the n that CLIP likes best")
    sub.add_argument("--prime", metavar="IMAGE", help="start from the top of this picture")
    sub.add_argument("--prime-rows", type=int, metavar="R", help="rows of codes of it to keep")

    sub = command("guide", "VQGAN+CLIP: change a picture until it matches the prompt")
    sub.add_argument("prompt", nargs="?", metavar="PROMPT", help='"text:weight | text:weight"; negative weights push away')
    sub.add_argument("--init", metavar="IMAGE", help="start from this picture")
    sub.add_argument("--start", choices=["codes", "noise", "blank"],
                     help="or from random codes, from noise, or from the mean code everywhere (default: blank, with a published CLIP codes)")
    sub.add_argument("--image-prompt", nargs="+", metavar="FILE", help="pictures to resemble")
    sub.add_argument("--steps", type=int, help="(default: 200, with a published CLIP 500)")
    sub.add_argument("--cutouts", type=int, help="random views CLIP sees a step (default: 16, with a published CLIP 32)")
    sub.add_argument("--latent-noise", type=float, help="deviation, in those of the codes, of noise on the latents, with which each view "
                                                        "is drawn on its own (default: 1, with a published CLIP 0)")
    sub.add_argument("--jitter", type=float, help="how much views differ in brightness and noise, where pixels are in [-1, 1] "
                                                  "(default: 0.6, with a published CLIP 0.1)")
    sub.add_argument("--lr", type=float, default=0.1, help="of Adam on the latents (default: 0.1)")

    sub = command("score", "every figure of a run over the shapes world")
    sub.add_argument("--count", type=int, default=512, help="true pictures per split (default: 512)")
    sub.add_argument("--draws", type=int, default=128, help="captions drawn per split (default: 128)")
    add_drawing(sub, "pictures per caption among which CLIP chooses (default: 8)")
    return top


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    for name, least in (("n", 1), ("steps", 1), ("cutouts", 1), ("count", 16), ("draws", 1)):
        if getattr(args, name, None) is not None and getattr(args, name) < least:
            raise ValueError(f"{'-' if name == 'n' else '--'}{name} {getattr(args, name)}: choose {least} or more")
    models = Models(args.run, pick_device(args.device), args.preset, clip=args.clip, vqgan=args.vqgan, dalle=args.dalle,
                    tokenizer=args.tokenizer, merges=args.merges)
    torch.manual_seed(args.seed)
    globals()[args.command](args, models)


if __name__ == "__main__":
    one_line_errors(main)
