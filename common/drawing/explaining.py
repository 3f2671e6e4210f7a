"""Find what a model looks at: the pixels behind a word (CLIP), the words behind a code (DALL·E), the codes of a picture (VQGAN).

    CLIP     cover a square of the picture, swap a word of the caption --> heat map of each word (n h w)
    DALL·E   attention weights, recorded -------------------------------> how much each code looks at each token (l n t+n)
    VQGAN    the codes of a picture (g g) ------------------------------> one of them swapped, and the most used

    with recorded(model) as maps:
        model(...)                   # maps: the attention weights of every layer, in the order in which they ran

explain_sheets.py draws these, and on the shapes world explain_scores.py grades them: there CLIP's attention does not show
what it looks at.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

import mindalle
import minclip
import minvqgan

from ..run.errors import InputError
from ..run.models import Models


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record the attention weights of every layer while the block runs, in the order in which the layers run.

    They are (b k i j) in CLIP and DALL·E, (b i j) in VQGAN, and have their graph: torch.autograd.grad(score, maps) works.
    """
    maps = []
    hooks = [module.register_forward_hook(lambda module, inputs, output: maps.append(output))
             for name, module in model.named_modules() if name.endswith("weights")]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


# ---- CLIP -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def word_choices(models: Models, caption: str) -> tuple[list[str], Tensor]:
    """Embed the caption and, for each word, the captions with another of its words there -> words, unit vectors (n o e).

    Choice 0 is the caption itself. A caption of one word has only one more choice: nothing. Raises InputError if it has none.
    """
    clip, tokenizer, words = models.get("clip"), models.clip_tokenizer(), minclip.tokenizer.split_words(caption)
    if not words:
        raise InputError(f"the caption {caption!r} has no words: write some")
    models.encode("clip", tokenizer, [caption], clip.config.context_length)  # refuses a caption that is too long
    choices = []
    for i, word in enumerate(words):
        others = [other for other in dict.fromkeys(words) if other != word] or [""]
        choices += [" ".join([*words[:i], choice, *words[i + 1 :]]) for choice in (word, *others)]
    ids = tokenizer.encode(choices, clip.config.context_length, truncate=True)  # another word may take more tokens
    features = torch.cat([clip.encode_text(part.to(models.device)) for part in ids.split(64)])
    return words, rearrange(F.normalize(features.float(), dim=-1), "(n o) e -> n o e", n=len(words))


def word_log_probabilities(clip: minclip.CLIP, images: Tensor, choices: Tensor) -> Tensor:
    """Say how likely CLIP finds each word among the choices for its place: images (b 3 h w), choices (n o e) -> logs (b n)."""
    features = F.normalize(clip.encode_image(images).float(), dim=-1)
    logits = clip.logits(features, rearrange(choices, "n o e -> (n o) e"))
    return rearrange(logits, "b (n o) -> b n o", n=len(choices)).log_softmax(dim=-1)[..., 0]


def squares(side: int) -> Tensor:
    """Place squares of about 3/8 of the side, about 1/16 apart, wherever they cover some of the image -> (s h w) boolean."""
    step = max(1, side // 16)
    starts, pixels = torch.arange(-5 * step, side, step), torch.arange(side)
    start, pixel = rearrange(starts, "s -> s 1"), rearrange(pixels, "h -> 1 h")
    covered = (pixel >= start) & (pixel < start + 6 * step)  # (s h)
    return rearrange(einsum(covered.float(), covered.float(), "y h, x w -> y x h w") > 0, "y x h w -> (y x) h w")


@torch.no_grad()
def word_maps(clip: minclip.CLIP, image: Tensor, choices: Tensor) -> Tensor:
    """Measure how much each pixel speaks for each word [occlusion: Zeiler and Fergus 2014, sec. 4.2].

    The map of a word is how far its log-probability falls when a square of the image has the image's mean colour, averaged
    over the squares that cover the pixel. image (3 h w) in [-1, 1], choices (n o e) -> (n h w), negative where the pixel speaks
    against the word.
    """
    covers, mean = squares(image.shape[-1]).to(image.device), image.mean(dim=(1, 2), keepdim=True)
    before, after = word_log_probabilities(clip, image[None], choices), []
    for part in covers.split(64):
        covered = torch.where(rearrange(part, "s h w -> s 1 h w"), mean, image)                  # (s 3 h w)
        after.append(word_log_probabilities(clip, covered, choices))
    covers = covers.float()
    return einsum(before - torch.cat(after), covers, "s n, s h w -> n h w") / covers.sum(dim=0)


# ---- DALL·E -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def looks(dalle: mindalle.DALLE, text: Tensor, codes: Tensor) -> Tensor:
    """Record what DALL·E looks at as it predicts each code, averaged over heads -> (b l n t+n-1).

    text (b t), codes (b g g). Rows are codes in reading order; columns are the tokens of the text, then all codes but
    the last, which nothing reads. One pass over the finished codes sees what drawing saw, since no code looks at a later one.
    """
    with recorded(dalle) as maps:
        dalle(text, codes)
    t = dalle.config.text_length
    return torch.stack([layer.mean(dim=1)[:, t - 1 :] for layer in maps], dim=1)


def pieces(tokenizer: minclip.Tokenizer | mindalle.MinDALLETokenizer, ids: Tensor) -> dict[int, str]:
    """Name the tokens of a caption, ids (t) -> {place: piece of a word}, without start, end and padding."""
    if isinstance(tokenizer, minclip.Tokenizer):
        places = range(1, int(ids.argmax()))  # `end` is the highest id
    else:
        places = range(int((ids != tokenizer.pad).sum()))
    return {i: tokenizer.decode(ids[i : i + 1]).strip() for i in places}


def most_varied(text: Tensor, count: int) -> list[int]:
    """Find the layers whose attention to the text (l n t) differs most from code to code, best first."""
    return text.std(dim=1).sum(dim=-1).topk(min(count, len(text))).indices.tolist()


# ---- VQGAN ------------------------------------------------------------------------------------------------------------


def swap_rarest(codes: Tensor) -> tuple[Tensor, int]:
    """Put the most frequent code of a grid (g g) in the place of the rarest -> codes (g g), the place in reading order."""
    counts = torch.bincount(codes.flatten())
    place = int(counts[codes.flatten()].argmin())
    swapped = codes.flatten().clone()
    swapped[place] = counts.argmax()
    return rearrange(swapped, "(g1 g2) -> g1 g2", g1=len(codes)), place


def most_used(vqgan: minvqgan.VQGAN, codes: Tensor, count: int) -> list[int]:
    """Find the codes used most: lately in training, where the codebook has counted, or else in these codes."""
    share = getattr(vqgan.codebook, "share", None)
    if share is None or share.min() == share.max():  # no training, or another's
        share = torch.bincount(codes.flatten(), minlength=vqgan.config.codebook_size)
    return share.topk(min(count, int((share > 0).sum()))).indices.tolist()
