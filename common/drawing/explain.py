"""Draw what a model looks at, as explaining.py finds it: the sheet and the animation of `sample.py explain`."""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..run import log
from .dalle import drawing, generate_images
from ..run.errors import InputError
from .explaining import looks, most_used, most_varied, pieces, swap_rarest, word_choices, word_log_probabilities, word_maps
from ..run.models import Models
from ..run.pictures import Output, contact_sheet, read_images, to_pil

FONT = ImageFont.load_default(11)
SHOWN_LAYERS, SHOWN_CODES = 4, 20  # of DALL·E; of VQGAN's codebook


def present(models: Models) -> list[str]:
    """Name the models that can be explained, and print which cannot. Raises InputError if there is none."""
    there = [name for name in ("clip", "vqgan", "dalle") if models.has(name)]
    if not there:
        models.get("clip")  # says what is missing
    if "vqgan" not in there and "dalle" in there:
        there.remove("dalle")
        print(f"DALL·E is left out: its codes need a VQGAN, and {models.files['vqgan']} is missing")
    for name in ("clip", "vqgan", "dalle"):
        if not models.has(name):
            print(f"{name} is left out: {models.files[name]} is missing")
    return there


def explain_and_write(models: Models, out: Output, caption: str, path: str | None, seed: int) -> None:
    """Show what each model looks at in a picture, or in one that DALL·E draws for the caption: a sheet, and an animation."""
    there, sheets, frames, entry = present(models), [], [], {"caption": caption}
    if path is None and "dalle" not in there:
        raise InputError("there is no DALL·E to draw a picture: name one by --image FILE")
    if path is None:
        images, codes = generate_images(models, [caption], drawing(models), seed)                # (1 3 h w), (1 g g)
    elif "vqgan" in there:
        images = read_images([path], models.get("vqgan").config.image_size)[1].to(models.device)
        codes = models.get("vqgan").encode(images)
        entry["original"] = path
    if "clip" in there:
        side = models.get("clip").config.image_size
        seen = (models.read_images([path])[1].to(models.device) if path else
                F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(-1, 1))
        entry["words"], sheet = explain_clip(models, seen[0], caption)
        sheets.append(sheet)
    if "dalle" in there:
        sheet, frames = explain_dalle(models, images[0], codes[0], caption)
        sheets.append(sheet)
    if "vqgan" in there:
        sheets.append(explain_vqgan(models, images[0], codes[0]))
    pictures = to_pil(images if "vqgan" in there else seen)
    out.write(pictures, [{"file": "0000.png", **entry}], sheet=stack(sheets))
    if frames:
        out.write_gif("explain.gif", frames)


# ---- One model each ---------------------------------------------------------------------------------------------------


def explain_clip(models: Models, image: Tensor, caption: str) -> tuple[list[dict], Image.Image]:
    """Explain a match, image (3 h w) -> an entry per word, a sheet of the picture and a heat map per word."""
    clip, (words, choices) = models.get("clip"), word_choices(models, caption)
    heat = word_maps(clip, image, choices)
    with torch.no_grad():
        feature = F.normalize(clip.encode_image(image[None]).float(), dim=-1)[0]
        cosines = einsum(choices, feature, "n o e, e -> n o")
        likely = word_log_probabilities(clip, image[None], choices)[0].exp()
    falls = cosines[:, 0] - cosines[:, 1:].mean(dim=1)
    entries = [{"word": word, "fall": fall, "probability": p} for word, fall, p in zip(words, falls.tolist(), likely.tolist())]
    print(f"CLIP: cosine {cosines[0, 0]:.3f}; it falls by so much when another word of the caption stands in a word's place:")
    print("   ".join(f"{entry['word']} {entry['fall']:.3f}" for entry in entries))
    pictures = [*to_pil(image[None]), *overlays(image, heat.clamp(min=0).sqrt())]  # or only the strongest word would be seen
    return entries, contact_sheet(pictures, ["CLIP", *(f"{e['word']} {e['fall']:.2f}" for e in entries)], len(pictures), 80)


def explain_dalle(models: Models, image: Tensor, codes: Tensor, caption: str) -> tuple[Image.Image, list[Image.Image]]:
    """Explain a drawing, image (3 h w) and its codes (g g) -> a sheet, a row per layer and a column per word; an animation."""
    dalle, tokenizer = models.dalle()
    text = models.encode("dalle", tokenizer, [caption], dalle.config.text_length)
    looked, words = looks(dalle, text, codes[None])[0], pieces(tokenizer, text[0].cpu())
    if not words:
        raise InputError(f"the caption {caption!r} has no words: write some")
    at_words = looked[..., list(words)]                                                          # (l n words)
    layers = most_varied(at_words, SHOWN_LAYERS)
    pictures, labels = [], []
    for layer in sorted(layers):
        heat = rearrange(at_words[layer], "(g1 g2) words -> words g1 g2", g1=dalle.config.grid)
        pictures += [*to_pil(image[None]), *overlays(image, heat)]
        labels += [f"DALL·E layer {layer + 1}", *words.values()]
    share = looked[..., : dalle.config.text_length].sum(dim=-1).mean(dim=-1).tolist()
    print("DALL·E: share of attention on the caption, layer by layer: " + "  ".join(f"{value:.0%}" for value in share))
    at_words, at_codes, g = at_words[layers[0]], looked[layers[0]][:, dalle.config.text_length :], len(codes)
    frames = []
    at_codes = F.pad(at_codes, (0, 1))                                                           # none looks at the last code
    for place in range(g * g):
        before = rearrange(torch.arange(g * g, device=image.device) < place, "(g1 g2) -> 1 1 g1 g2", g1=g)
        drawn = F.interpolate(before.float(), image.shape[-2:])[0] > 0                           # (1 h w)
        so_far, share = torch.where(drawn, image, 1), at_words[place] / at_words.max()
        frames.append(frame(so_far, at_codes[place], share, [*words.values()], place))
    return contact_sheet(pictures, labels, 1 + len(words), 80), frames


def frame(image: Tensor, at_codes: Tensor, at_words: Tensor, words: list[str], place: int) -> Image.Image:
    """Draw a step: the picture so far (3 h w), the place of the next code, and in red the codes (n) and words it looks at."""
    g, cell = round(len(at_codes) ** 0.5), 160
    heat = rearrange(at_codes / at_codes.max().clamp(min=1e-9), "(g1 g2) -> 1 g1 g2", g1=g)
    picture = overlays(image, heat)[0].resize((cell, cell), Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (2 * cell, max(cell, 14 * len(words) + 4)), "white")
    canvas.paste(picture, (0, 0))
    pen, size = ImageDraw.Draw(canvas), cell / g
    x, y = place % g * size, place // g * size
    pen.rectangle((x, y, x + size, y + size), outline="black", width=2)
    for row, (word, value) in enumerate(zip(words, at_words.tolist())):
        pen.rectangle((cell + 8, 14 * row + 2, cell + 8 + (cell - 16) * value, 14 * row + 15), fill="#ff9090")
        pen.text((cell + 10, 14 * row + 2), word, fill="black", font=FONT)
    return canvas


@torch.no_grad()
def explain_vqgan(models: Models, image: Tensor, codes: Tensor) -> Image.Image:
    """Explain codes (g g) of an image (3 h w) -> a sheet: their map, one of them swapped, and the most used codes alone."""
    vqgan, g = models.get("vqgan"), len(codes)
    swapped, place = swap_rarest(codes)
    redrawn, changed = vqgan.decode(torch.stack([codes, swapped])).clamp(-1, 1)
    change = (changed - redrawn).abs().mean(dim=0)
    old, new = int(codes.flatten()[place]), int(swapped.flatten()[place])
    rows, labels = to_pil(torch.stack([image, redrawn])), ["picture", f"from its {len(codes.unique())} different codes"]
    rows += [code_map(redrawn, codes), *to_pil(changed[None]), *overlays(redrawn, change[None])]
    labels += ["code in each place", f"{new} for {old} in row {place // g + 1}, column {place % g + 1}", "what that changes"]
    if curve := usage_curve(models):
        rows, labels = [*rows, curve], [*labels, "share of the codebook in use over training"]
    used = most_used(vqgan, codes, SHOWN_CODES)
    alone = vqgan.decode(repeat(torch.tensor(used, device=codes.device), "b -> b g1 g2", g1=g, g2=g))
    draw_alone = contact_sheet(to_pil(alone.clamp(-1, 1)), list(map(str, used)), 10, 96)
    return stack([contact_sheet(rows, labels, len(rows), 168), draw_alone])


def code_map(image: Tensor, codes: Tensor) -> Image.Image:
    """Write each code (g g) in its place on a pale image (3 h w)."""
    cell, g = 32, len(codes)
    canvas = overlays(image, torch.zeros(1, g, g))[0].resize((g * cell, g * cell), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    for place, code in enumerate(codes.flatten().tolist()):
        pen.text((place % g * cell + 3, place // g * cell + 9), str(code), fill="black", font=FONT)
    return canvas


def usage_curve(models: Models) -> Image.Image | None:
    """Draw the share of codes in use over the steps of training, from the run's log; None without one."""
    points = [(int(row["step"]), float(part.removeprefix("usage="))) for row in log.read(models.run / "log.csv")
              if row["model"] == "vqgan" for part in row["parts"].split() if part.startswith("usage=")]
    if models.files["vqgan"].parent != models.run or len(points) < 2:
        return None
    canvas, last = Image.new("RGB", (168, 168), "white"), max(step for step, _ in points)
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((4, 20, 163, 148), outline="#cccccc")
    pen.line([(4 + 159 * step / last, 148 - 128 * usage) for step, usage in points], fill="#2050c0", width=2)
    pen.text((4, 4), f"100 %; last {points[-1][1]:.0%}", fill="black", font=FONT)
    pen.text((4, 152), f"0 % at step 0; {last} steps", fill="black", font=FONT)
    return canvas


# ---- Pictures ---------------------------------------------------------------------------------------------------------


def overlays(image: Tensor, heat: Tensor) -> list[Image.Image]:
    """Colour a pale grey image (3 h w) red where the maps (n h' w') are high, from 0 up to the highest of all."""
    scale = heat.amax().clamp(min=1e-9)
    heat = F.interpolate(rearrange(heat / scale, "n h w -> n 1 h w").clamp(0, 1), image.shape[-2:], mode="nearest").to(image)
    pale = 0.6 + 0.4 * image.mean(dim=0)                                                         # (h w)
    red = rearrange(torch.tensor([0.7, -1.0, -1.0], device=image.device), "c -> c 1 1")
    return to_pil((1 - heat) * pale + heat * red)


def stack(sheets: list[Image.Image]) -> Image.Image:
    """Put pictures under one another."""
    canvas, y = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white"), 0
    for sheet in sheets:
        canvas.paste(sheet, (0, y))
        y += sheet.height
    return canvas
