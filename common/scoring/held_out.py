"""Measure a model on held-out pictures while it trains: the figures that log.csv gets."""

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
from ..run.models import Condition, reconstruct
from .shapes import first_captions, recall_at_1, zero_shot_of_16

Encode = Callable[[list[str]], Tensor]  # captions -> ids (b t)


def clip_figures(model: minclip.CLIP, encode: Encode, held_out: data.Dataset,
                 seed: int) -> dict[str, float]:
    """Return zero-shot accuracy on the shapes world, elsewhere recall@1; and the logit scale."""
    device = model.logit_scale.device
    images, captions, scenes = first_captions(held_out, 64)
    images = images.to(device)

    def embed_text(texts: list[str]) -> Tensor:
        return model.encode_text(encode(texts).to(device))

    if scenes:
        value = zero_shot_of_16(model.encode_image, embed_text, images, captions, seed)
        figures = {"zero_shot_of_16": value}
    else:
        figures = {"recall_at_1": recall_at_1(model.encode_image, embed_text, images, captions)[0]}
    return figures | {"scale": model.logit_scale.exp().item()}


def vqgan_figures(model: minvqgan.VQGAN, held_out: data.Dataset) -> dict[str, float]:
    """Return PSNR in dB, and the fraction of codes in use. The model ends in train mode."""
    images, _, _ = first_captions(held_out, 128)
    images = images.to(model.last_weight.device)
    model.eval()
    redrawn, codes = reconstruct(model, images)
    model.train()
    counts = torch.bincount(codes.flatten(), minlength=model.config.codebook_size)
    psnr = minvqgan.psnr(images, redrawn).mean().item()
    return {"psnr": psnr, "usage": minvqgan.usage(counts).item()}


@torch.no_grad()
def dalle_figures(model: mindalle.DALLE, vqgan: minvqgan.VQGAN, encode: Encode,
                  held_out: data.Dataset, seed: int) -> dict[str, float]:
    """Return nats per code; on the shapes world also the overlap of drawings with captions."""
    images, captions, scenes = first_captions(held_out, 128)
    device = model.text_positions.device
    text = encode(captions).to(device)                                               # (b t)
    codes = vqgan.encode(images.to(device))                                          # (b g g)
    _, _, nats = mindalle.dalle_loss(*model(text, codes), text, codes)
    figures = {"nats_per_code": nats.item()}
    if scenes:
        empty, generator = encode("")[0].to(device), torch.Generator(device).manual_seed(seed)
        drawn = mindalle.generate(model, text[:16], empty=empty, generator=generator,
                                  **asdict(Drawing()))
        figures["overlap"] = mean_overlap(vqgan.decode(drawn), captions)
    return figures


@torch.no_grad()
def prior_figures(model: unclip.Prior, clip: minclip.CLIP,
                  read: Callable[[list[str]], Condition], empty: Condition,
                  held_out: data.Dataset, seed: int) -> dict[str, float]:
    """Return the loss, and how often a drawn embedding is closest to its own picture's.

    read: captions -> what the prior reads of them; empty: that of the empty caption
    """
    images, captions, _ = first_captions(held_out, 128)
    device = model.query.device
    z, condition = F.normalize(clip.encode_image(images.to(device)), dim=-1), read(captions)
    generator = torch.Generator(device).manual_seed(seed)
    drawn = unclip.draw_embeddings(model, condition, empty, generator=generator)
    closest = (F.normalize(drawn, dim=-1) @ z.mT).argmax(dim=1)                      # (b)
    found = closest == torch.arange(len(z), device=device)
    loss = denoising_error(model, model.standardise_image(z), condition, seed)
    return {"loss": loss, "recall_at_1": found.float().mean().item()}


@torch.no_grad()
def decoder_figures(model: unclip.Decoder, clip: minclip.CLIP, held_out: data.Dataset,
                    seed: int) -> dict[str, float]:
    """Return the loss, and the cosine of drawings with their embedding; on shapes the overlap."""
    images, captions, scenes = first_captions(held_out, 128)
    images = images.to(model.positions.device)
    z = F.normalize(clip.encode_image(images), dim=-1)                               # (b e)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(16, *images.shape[1:], generator=generator).to(images)[: len(z)]
    drawn = unclip.sample(partial(model, z=z[:16]), noise, unclip.even_times(16)).clamp(-1, 1)
    cosines = F.cosine_similarity(clip.encode_image(drawn), z[:16], dim=-1)
    figures = {"loss": denoising_error(model, images, (z,), seed), "cosine": cosines.mean().item()}
    return figures | {"overlap": mean_overlap(drawn, captions)} if scenes else figures


def mean_overlap(images: Tensor, captions: list[str]) -> float:
    """Return how much of images (b 3 h w) is as the first captions say, in [0, 1]."""
    return sum(map(data.overlap, data.to_pictures(images), captions)) / len(images)


def denoising_error(model: torch.nn.Module, x: Tensor, condition: tuple[Tensor, ...],
                    seed: int) -> float:
    """Return the loss of diffusion on x (b ...), with the same noise and times for a seed."""
    generator = torch.Generator().manual_seed(seed)
    t = unclip.random_times(len(x), generator=generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    return unclip.denoising_loss(model(unclip.mix(x, noise, t), t, *condition), x, t).item()
