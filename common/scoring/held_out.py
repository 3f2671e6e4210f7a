"""Is a training going well? Figures of held-out pictures, and the first and the lowest loss to expect."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import data
import mindalle
import minclip
import minvqgan
from mindalle import unclip

from ..drawing.dalle import Drawing
from ..run.models import reconstruct
from .shapes import first_captions, recall_at_1, zero_shot

Encode = Callable[[list[str]], Tensor]  # captions -> ids (b t)
UNTRAINED_STD = 0.6  # RMS of silu(x), x ~ N(0, 1): the scale of an untrained decoder's output

# ---- Figures ------------------------------------------------------------------------------------


def clip_figures(model: minclip.CLIP, encode: Encode, held_out: data.Dataset, seed: int) -> dict[str, float]:
    """Return zero-shot accuracy on the shapes world, elsewhere recall@1 among the pictures; and the temperature's scale."""
    device = model.logit_scale.device
    images, captions, scenes = first_captions(held_out, 64)
    embed_text = lambda texts: model.encode_text(encode(texts).to(device))  # noqa: E731
    if scenes:
        figures = {"zero_shot_of_16": zero_shot(model.encode_image, embed_text, images.to(device), captions, seed)}
    else:
        figures = {"recall_at_1": recall_at_1(model.encode_image, embed_text, images.to(device), captions)[0]}
    return figures | {"scale": model.logit_scale.exp().item()}


def vqgan_figures(model: minvqgan.VQGAN, held_out: data.Dataset) -> dict[str, float]:
    """Return PSNR in dB, and the share of codes in use."""
    images, _, _ = first_captions(held_out, 128)
    images = images.to(model.last_weight.device)
    model.eval()
    redrawn, codes = reconstruct(model, images)
    model.train()
    counts = torch.bincount(codes.flatten(), minlength=model.config.codebook_size)
    return {"psnr": minvqgan.psnr(images, redrawn).mean().item(), "usage": minvqgan.usage(counts).item()}


@torch.no_grad()
def dalle_figures(model: mindalle.DALLE, vqgan: minvqgan.VQGAN, encode: Callable[[list[str]], Tensor], held_out: data.Dataset,
                   seed: int) -> dict[str, float]:
    """Return nats per code of true pictures, and on the shapes world how well drawings overlap what the caption says."""
    images, captions, scenes = first_captions(held_out, 128)
    device = model.text_positions.device
    text = encode(captions).to(device)                                                       # (b t)
    codes = vqgan.encode(images.to(device))                                                  # (b g g)
    _, _, nats = mindalle.dalle_loss(*model(text, codes), text, codes)
    if not scenes:
        return {"nats_per_code": nats.item()}
    generator = torch.Generator(device).manual_seed(seed)
    drawn = mindalle.generate(model, text[:16], empty=encode("")[0].to(device), generator=generator, **asdict(Drawing()))
    pictures = data.to_pictures(vqgan.decode(drawn))
    return {"nats_per_code": nats.item(), "overlap": sum(map(data.overlap, pictures, captions)) / len(pictures)}


@torch.no_grad()
def prior_figures(model: unclip.Prior, clip: minclip.CLIP, read: Callable[[list[str]], tuple], empty: tuple[Tensor, ...],
                  held_out: data.Dataset, seed: int) -> dict[str, float]:
    """Return the loss, and how often a drawn embedding is closest to its own picture among the first 128.

    read: captions -> what the prior reads of them; empty: that of the empty caption
    """
    images, captions, _ = first_captions(held_out, 128)
    device = model.query.device
    z, condition = F.normalize(clip.encode_image(images.to(device)), dim=-1), read(captions)
    drawn = unclip.draw_embeddings(model, condition, empty, generator=torch.Generator(device).manual_seed(seed))
    found = (F.normalize(drawn, dim=-1) @ z.mT).argmax(dim=1) == torch.arange(len(z), device=device)
    loss = denoising_error(model, model.standardise_image(z), condition, seed)
    return {"loss": loss, "recall_at_1": found.float().mean().item()}


@torch.no_grad()
def decoder_figures(model: unclip.Decoder, clip: minclip.CLIP, held_out: data.Dataset, seed: int) -> dict[str, float]:
    """Return the loss, and the cosine of the embedding asked for with that of the picture drawn; on shapes also the overlap."""
    images, captions, scenes = first_captions(held_out, 128)
    device = model.positions.device
    images = images.to(device)
    z = F.normalize(clip.encode_image(images), dim=-1)                                       # (b e)
    noise = torch.randn(16, *images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(device)
    drawn = unclip.sample(partial(model, z=z[:16]), noise[: len(z)], unclip.even_times(16)).clamp(-1, 1)
    figures = {"loss": denoising_error(model, images, (z,), seed),
               "cosine": F.cosine_similarity(clip.encode_image(drawn), z[:16], dim=-1).mean().item()}
    if scenes:
        figures["overlap"] = sum(map(data.overlap, data.to_pictures(drawn), captions)) / len(drawn)
    return figures


def denoising_error(model: torch.nn.Module, x: Tensor, condition: tuple[Tensor, ...], seed: int) -> float:
    """Return the loss of diffusion on x (b ...), always with the same noise and the same times."""
    generator = torch.Generator().manual_seed(seed)
    t = unclip.random_times(len(x), generator=generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    return unclip.denoising_loss(model(unclip.mix(x, noise, t), t, *condition), x, t).item()


# ---- Losses to expect ---------------------------------------------------------------------------


def contrastive_bounds(model: minclip.CLIP, ids: Tensor) -> tuple[float, float]:
    """Return the loss of a batch with these captions (b t) if all cosines are 0, and that of perfect answers.

    Repeated captions raise the latter: with eight captions in a batch of 128, softmax cannot tell the 16 images of one apart.
    """
    loss, _, bias = minclip.LOSSES[model.config.loss]
    same = minclip.same_caption(ids)
    return loss(torch.zeros(same.shape) + (bias or 0.0), same).item(), loss(200.0 * same - 100.0, same).item() + 0.0


def reconstruction_start(images: data.Dataset) -> float:
    """Return the reconstruction loss of noise as strong as an untrained decoder's output."""
    some = images.batch(range(min(64, len(images))))
    return minvqgan.reconstruction_loss(some, UNTRAINED_STD * torch.randn_like(some)).item()


def dalle_bounds(config: mindalle.DALLEConfig, images: data.Dataset, text_weight: float, dropout: float) -> tuple[float, float]:
    """Return DALL·E's loss for a guess among all tokens, and the lowest there can be: every picture learned by heart.

    By heart, a caption costs as many nats as captions are uncertain, and a picture as many as there are pictures to a caption.
    """
    chance = Counter()
    for captions in images.captions:
        for caption in captions:
            chance[caption] += 1 / len(captions) / len(images)
    either = mean_surprise([dropout, 1 - dropout])  # is the caption dropped?
    caption = mean_surprise(chance.values())
    pair = math.log(len(images)) + sum(math.log(len(captions)) for captions in images.captions) / len(images)
    text = (either + (1 - dropout) * caption) / (config.text_length - 1)
    image = ((1 - dropout) * (pair - caption) + dropout * math.log(len(images))) / config.image_length
    start = text_weight * math.log(config.text_vocab) + (1 - text_weight) * math.log(config.image_vocab)
    return start, text_weight * text + (1 - text_weight) * image


def mean_surprise(chances) -> float:
    """Return the entropy of a distribution, in nats."""
    return -sum(p * math.log(p) for p in chances if p > 0)
