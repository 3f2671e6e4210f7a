"""Our side of each comparison, and what it shares with the peer's: the configs, the inputs, the training step."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from minclip import CLIP, CLIPConfig, same_caption, softmax_loss
from minclip.model import PIXEL_MEAN, PIXEL_STD
from mindalle import DALLE, DALLEConfig, dalle_loss, generate
from minvqgan import VQGAN, generator_loss
from tests import seeded

from .timing import Call

# as large as our toys, but built as published: peers have neither rotary positions nor a stem of small convolutions
TOY_DALLE = DALLEConfig(rotary=False)
TOY_CLIP = CLIPConfig(stem_width=0)


def autocast(model: nn.Module) -> torch.autocast:
    """Compute in bf16 where the model is on a GPU, or where the whole call is to be timed in bf16."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda" or torch.is_autocast_enabled(device))


def in_bf16(call: Call) -> Call:
    """Return the call in bf16 on the CPU."""
    def cast() -> Tensor | None:
        with torch.autocast("cpu", torch.bfloat16):
            return call()
    return cast


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Call:
    """Return a call that takes one step: zero_grad, loss(), backward, AdamW."""
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        with autocast(model):
            value = loss()
        with torch.autocast(value.device.type, enabled=False):  # a backward pass uses the precisions of its forward pass
            value.backward()
            optimiser.step()
    return step


def clip_inputs(config: CLIPConfig, b: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Draw images (b 3 h w) in [-1, 1], the same images normalised, as peers take them, and captions (b t)."""
    images, ids = seeded.image(0, b, config.image_size), seeded.clip_ids(0, b, config.context_length, config.vocab_size)
    mean, std = (rearrange(torch.tensor(values), "c -> c 1 1") for values in (PIXEL_MEAN, PIXEL_STD))
    return images.to(device), (((images + 1) / 2 - mean) / std).to(device), ids.to(device)


def clip_step(model: CLIP, images: Tensor, ids: Tensor) -> Call:
    return training_step(model, lambda: softmax_loss(model.logits(*model(images, ids)), same_caption(ids)))


def vqgan_step(model: VQGAN, images: Tensor) -> Call:
    def loss() -> Tensor:
        reconstruction, quantised = model(images)
        return generator_loss(images, reconstruction.float(), quantised.loss, model.last_weight)[0]
    return training_step(model, loss)


def dalle_inputs(config: DALLEConfig, b: int, device: str) -> tuple[Tensor, Tensor]:
    """Draw captions (b t), of tokens that DALLE-pytorch has too, and codes (b n)."""
    text = 1 + seeded.ids(0, b, config.text_length, config.text_vocab - config.text_length - 1)
    return text.to(device), seeded.ids(1, b, config.image_length, config.image_vocab).to(device)


def dalle_step(model: DALLE, text: Tensor, codes: Tensor) -> Call:
    return training_step(model, lambda: dalle_loss(*model(text, codes), text, codes)[0])


def dalle_sampling(model: DALLE, text: Tensor, guidance: float, **options) -> Callable[[], Tensor]:
    """Return a call that draws an image for each caption (b t) -> codes (b g g)."""
    def draw() -> Tensor:
        with autocast(model):
            return generate(model, text, guidance=guidance, empty=torch.zeros_like(text[0]), **options)
    return draw
