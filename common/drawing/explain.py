"""Show what models look at: pixels behind words (CLIP), words behind codes (DALL·E), codes (VQGAN).

    CLIP     cover a square of the picture, swap a word of the caption -> a heat map per word (n h w)
    DALL·E   attention weights, recorded -> how much each code looks at each token (l n t+n)
    VQGAN    the codes of a picture (g g) -> one of them swapped, and the most used

    with recorded(model) as maps:
        model(...)                   # maps: the attention weights of every layer, in running order

common/scoring/explain.py grades these on the shapes world, where the place of every object is known.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

import mindalle
import minclip
import minvqgan

from ..run.errors import InputError
from ..run.models import Models
from ..run.pictures import Output, contact_sheet, read_images, to_pil
from .dalle import default_drawing, generate_images

FONT = ImageFont.load_default(11)
SHOWN_LAYERS, SHOWN_CODES = 4, 20  # of DALL·E; of VQGAN's codebook


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record the attention weights of every layer while the block runs.

    They are (b k i j) in CLIP and DALL·E, (b i j) in VQGAN, and keep their graph.
    """
    maps = []
    hooks = [module.register_forward_hook(lambda module, inputs, output: maps.append(output))
             for name, module in model.named_modules() if name.endswith("weights")]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def explain_and_write(models: Models, out: Output, caption: str, path: str | None,
                      seed: int) -> None:
    """Explain a picture, or one that DALL·E draws for the caption: a sheet, and an animation."""
    names = [name for name in ("clip", "vqgan", "dalle") if models.has(name)]
    if "vqgan" not in names and "dalle" in names:
        names.remove("dalle")  # its codes need a VQGAN
    if not names:
        models.get("clip")  # says what is missing
    if path is None and "dalle" not in names:
        raise InputError("there is no DALL·E to draw a picture: name one by --image FILE")
    for name in {"clip", "vqgan", "dalle"} - {*names}:
        print(f"{name} is left out: it or its VQGAN is missing")
    sheets, frames, entry = [], [], {"file": "0000.png", "caption": caption}
    if path is None:
        images, codes = generate_images(models, [caption], default_drawing(models), seed)
    else:
        entry["original"] = path
        seen = models.read_images([path])[1].to(models.device) if "clip" in names else None
        if "vqgan" in names:
            side = models.get("vqgan").config.image_size
            images = read_images([path], side)[1].to(models.device)                  # (1 3 h w)
            codes = models.get("vqgan").encode(images)                               # (1 g g)
    if "clip" in names:
        if path is None:
            side = models.get("clip").config.image_size
            seen = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
        entry["words"], sheet = explain_clip(models, seen[0], caption)
        sheets.append(sheet)
    if "dalle" in names:
        sheet, frames = explain_dalle(models, images[0], codes[0], caption)
        sheets.append(sheet)
    if "vqgan" in names:
        sheets.append(explain_vqgan(models, images[0], codes[0]))
    out.write(to_pil(images if "vqgan" in names else seen), [entry], sheet=stack(sheets))
    if frames:
        out.write_gif("explain.gif", frames)


# ---- CLIP ----------------------------------------------------------------------------------------


@torch.no_grad()
def word_choices(models: Models, caption: str) -> tuple[list[str], Tensor]:
    """Embed the caption with each word replaced by each other -> words, unit vectors (n o e).

    Choice 0 is the caption itself. The only word of a caption is replaced by nothing. Raises
    InputError if it has none.
    """
    clip, tokenizer = models.get("clip"), models.clip_tokenizer()
    words = minclip.tokenizer.split_words(caption)
    if not words:
        raise InputError(f"the caption {caption!r} has no words: write some")
    models.encode_for_clip([caption])  # refuses a caption that is too long
    choices = []
    for i, word in enumerate(words):
        others = [other for other in dict.fromkeys(words) if other != word] or [""]
        choices += [" ".join([*words[:i], choice, *words[i + 1 :]]) for choice in (word, *others)]
    # another word may take more tokens
    ids = tokenizer.encode(choices, clip.config.context_length, truncate=True)
    features = torch.cat([clip.encode_text(part.to(models.device)) for part in ids.split(64)])
    features = F.normalize(features.float(), dim=-1)
    return words, rearrange(features, "(n o) e -> n o e", n=len(words))


def word_log_probabilities(clip: minclip.CLIP, images: Tensor, choices: Tensor) -> Tensor:
    """Say how likely CLIP finds each word in its place: images (b 3 h w), choices (n o e) -> (b n)."""
    features = F.normalize(clip.encode_image(images).float(), dim=-1)
    logits = clip.logits(features, rearrange(choices, "n o e -> (n o) e"))
    return rearrange(logits, "b (n o) -> b n o", n=len(choices)).log_softmax(dim=-1)[..., 0]


def squares(side: int) -> Tensor:
    """Place squares of 3/8 of the side, 1/16 apart, wherever they cover some of it -> (s h w)."""
    step = max(1, side // 16)
    starts, pixels = torch.arange(-5 * step, side, step), torch.arange(side)
    start, pixel = rearrange(starts, "s -> s 1"), rearrange(pixels, "h -> 1 h")
    inside = ((pixel >= start) & (pixel < start + 6 * step)).float()                 # (s h)
    both = einsum(inside, inside, "y h, x w -> y x h w") > 0
    return rearrange(both, "y x h w -> (y x) h w")


@torch.no_grad()
def word_maps(clip: minclip.CLIP, image: Tensor, choices: Tensor) -> Tensor:
    """Measure how much each pixel speaks for each word [occlusion: Zeiler and Fergus 2014, sec. 4.2].

    The map of a word is how far its log-probability falls when a square has the image's mean colour,
    averaged over the squares that cover the pixel. image (3 h w) in [-1, 1], choices (n o e) ->
    (n h w), negative where the pixel speaks against the word.
    """
    covers, mean = squares(image.shape[-1]).to(image.device), image.mean(dim=(1, 2), keepdim=True)
    before, after = word_log_probabilities(clip, image[None], choices), []
    for part in covers.split(64):
        covered = torch.where(rearrange(part, "s h w -> s 1 h w"), mean, image)      # (s 3 h w)
        after.append(word_log_probabilities(clip, covered, choices))
    fall, covers = before - torch.cat(after), covers.float()
    return einsum(fall, covers, "s n, s h w -> n h w") / covers.sum(dim=0)


def explain_clip(models: Models, image: Tensor, caption: str) -> tuple[list[dict], Image.Image]:
    """Explain a match, image (3 h w) -> an entry per word, a sheet of the picture and its maps."""
    clip, (words, choices) = models.get("clip"), word_choices(models, caption)
    heat = word_maps(clip, image, choices)
    with torch.no_grad():
        feature = F.normalize(clip.encode_image(image[None]).float(), dim=-1)[0]
        cosines = einsum(choices, feature, "n o e, e -> n o")
        likely = word_log_probabilities(clip, image[None], choices)[0].exp()
    falls = cosines[:, 0] - cosines[:, 1:].mean(dim=1)
    entries = [{"word": word, "fall": fall, "probability": p}
               for word, fall, p in zip(words, falls.tolist(), likely.tolist())]
    labels = [f"{entry['word']} {entry['fall']:.2f}" for entry in entries]
    print(f"CLIP: cosine {cosines[0, 0]:.3f}; with another word of the caption in its place it falls "
          f"by: {'   '.join(labels)}")
    # the root: or only the strongest word would be seen
    pictures = [*to_pil(image[None]), *overlays(image, heat.clamp(min=0).sqrt())]
    return entries, contact_sheet(pictures, ["CLIP", *labels], len(pictures), 80)


# ---- DALL·E --------------------------------------------------------------------------------------


@torch.no_grad()
def attention_of_codes(dalle: mindalle.DALLE, text: Tensor, codes: Tensor) -> Tensor:
    """Record what DALL·E attends to as it predicts each code, averaged over heads -> (b l n t+n).

    text (b t), codes (b g g). Columns are the tokens of the text, then the codes in reading order.
    One pass over the finished codes sees what drawing saw, since no code sees a later one.
    """
    with recorded(dalle) as maps:
        dalle(text, codes)
    t, n = dalle.config.text_length, dalle.config.image_length
    rows = torch.stack([layer.mean(dim=1)[:, t - 1 : t - 1 + n] for layer in maps], dim=1)
    return F.pad(rows, (0, t + n - rows.shape[-1]))  # no code is predicted from the last one


def word_pieces(tokenizer: minclip.Tokenizer | mindalle.MinDALLETokenizer,
                ids: Tensor) -> dict[int, str]:
    """Name the tokens of a caption, ids (t) -> {place: text}, without start, end and padding."""
    if isinstance(tokenizer, minclip.Tokenizer):
        places = range(1, int(ids.argmax()))  # the end token has the highest id
    else:
        places = range(int((ids != tokenizer.pad).sum()))
    return {i: tokenizer.decode(ids[i : i + 1]).strip() for i in places}


def explain_dalle(models: Models, image: Tensor, codes: Tensor,
                  caption: str) -> tuple[Image.Image, list[Image.Image]]:
    """Explain a drawing, image (3 h w), codes (g g) -> a sheet of layers and words, an animation."""
    (dalle, tokenizer), t = models.dalle(), models.get("dalle").config.text_length
    text = models.encode("dalle", tokenizer, [caption], t)
    attention, words = attention_of_codes(dalle, text, codes[None])[0], word_pieces(tokenizer, text[0].cpu())
    if not words:
        raise InputError(f"the caption {caption!r} has no words: write some")
    at_words, g = attention[..., list(words)], len(codes)                            # (l n words)
    # the layers whose attention to the words differs most from code to code
    varied = at_words.std(dim=1).sum(dim=-1).topk(min(SHOWN_LAYERS, len(at_words))).indices.tolist()
    pictures, labels = [], []
    for layer in sorted(varied):
        heat = rearrange(at_words[layer], "(g1 g2) words -> words g1 g2", g1=g)
        pictures += [*to_pil(image[None]), *overlays(image, heat)]
        labels += [f"DALL·E layer {layer + 1}", *words.values()]
    at_words, at_codes = at_words[varied[0]], attention[varied[0]][:, t:]            # (n words), (n n)
    frames = []
    for place in range(g * g):
        before = rearrange(torch.arange(g * g) < place, "(g1 g2) -> 1 1 g1 g2", g1=g)
        drawn = F.interpolate(before.to(image), image.shape[-2:])[0] > 0             # (1 h w)
        weights = (at_words[place] / at_words.max()).tolist()
        frames.append(frame(torch.where(drawn, image, 1), at_codes[place], weights, [*words.values()], place))
    return contact_sheet(pictures, labels, 1 + len(words), 80), frames


def frame(image: Tensor, at_codes: Tensor, at_words: list[float], words: list[str],
          place: int) -> Image.Image:
    """Draw a step: the picture so far (3 h w), the next code's place, what it attends to in red."""
    g, cell = round(len(at_codes) ** 0.5), 160
    heat = rearrange(at_codes / at_codes.max().clamp(min=1e-9), "(g1 g2) -> 1 g1 g2", g1=g)
    picture = overlays(image, heat)[0].resize((cell, cell), Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (2 * cell, max(cell, 14 * len(words) + 4)), "white")
    canvas.paste(picture, (0, 0))
    pen, size = ImageDraw.Draw(canvas), cell / g
    x, y = place % g * size, place // g * size
    pen.rectangle((x, y, x + size, y + size), outline="black", width=2)
    for row, (word, value) in enumerate(zip(words, at_words)):
        right = cell + 8 + (cell - 16) * value
        pen.rectangle((cell + 8, 14 * row + 2, right, 14 * row + 15), fill="#ff9090")
        pen.text((cell + 10, 14 * row + 2), word, fill="black", font=FONT)
    return canvas


# ---- VQGAN ---------------------------------------------------------------------------------------


def swap_rarest(codes: Tensor) -> tuple[Tensor, int]:
    """Put the most frequent code of a grid (g g) in the rarest's place -> codes (g g), the place."""
    counts = torch.bincount(codes.flatten())
    place = int(counts[codes.flatten()].argmin())
    swapped = codes.flatten().clone()
    swapped[place] = counts.argmax()
    return rearrange(swapped, "(g1 g2) -> g1 g2", g1=len(codes)), place


def most_used(vqgan: minvqgan.VQGAN, codes: Tensor, count: int) -> list[int]:
    """Find the codes used most: lately in training, where that was counted, or in these codes."""
    usage = getattr(vqgan.codebook, "share", None)
    if usage is None or usage.min() == usage.max():  # no training, or another's
        usage = torch.bincount(codes.flatten(), minlength=vqgan.config.codebook_size)
    return usage.topk(min(count, int((usage > 0).sum()))).indices.tolist()


@torch.no_grad()
def explain_vqgan(models: Models, image: Tensor, codes: Tensor) -> Image.Image:
    """Explain codes (g g) of an image (3 h w): their map, one of them swapped, the most used."""
    vqgan, g = models.get("vqgan"), len(codes)
    swapped, place = swap_rarest(codes)
    redrawn, changed = vqgan.decode(torch.stack([codes, swapped])).clamp(-1, 1)
    change = (changed - redrawn).abs().mean(dim=0)                                   # (h w)
    old, new = int(codes.flatten()[place]), int(swapped.flatten()[place])
    pictures = [*to_pil(torch.stack([image, redrawn])), code_map(redrawn, codes),
                *to_pil(changed[None]), *overlays(redrawn, change[None])]
    labels = ["picture", f"from its {len(codes.unique())} different codes", "code in each place",
              f"{new} for {old} in row {place // g + 1}, column {place % g + 1}", "what that changes"]
    used = most_used(vqgan, codes, SHOWN_CODES)
    grids = repeat(torch.tensor(used, device=codes.device), "b -> b g1 g2", g1=g, g2=g)
    alone = to_pil(vqgan.decode(grids).clamp(-1, 1))
    return stack([contact_sheet(pictures, labels, len(pictures), 168),
                  contact_sheet(alone, list(map(str, used)), 10, 96)])


def code_map(image: Tensor, codes: Tensor) -> Image.Image:
    """Write each code (g g) in its place on a pale image (3 h w)."""
    cell, g = 32, len(codes)
    pale = overlays(image, torch.zeros(1, g, g))[0]
    canvas = pale.resize((g * cell, g * cell), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    for place, code in enumerate(codes.flatten().tolist()):
        pen.text((place % g * cell + 3, place // g * cell + 9), str(code), fill="black", font=FONT)
    return canvas


# ---- Pictures ------------------------------------------------------------------------------------


def overlays(image: Tensor, heat: Tensor) -> list[Image.Image]:
    """Colour a pale grey image (3 h w) red where maps (n h' w') are high, from 0 to the highest."""
    heat = rearrange(heat / heat.amax().clamp(min=1e-9), "n h w -> n 1 h w").clamp(0, 1)
    heat = F.interpolate(heat, image.shape[-2:], mode="nearest").to(image)
    pale = 0.6 + 0.4 * image.mean(dim=0)                                             # (h w)
    red = rearrange(torch.tensor([0.7, -1.0, -1.0], device=image.device), "c -> c 1 1")
    return to_pil((1 - heat) * pale + heat * red)


def stack(sheets: list[Image.Image]) -> Image.Image:
    """Put pictures under one another."""
    size = max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)
    canvas, y = Image.new("RGB", size, "white"), 0
    for sheet in sheets:
        canvas.paste(sheet, (0, y))
        y += sheet.height
    return canvas
