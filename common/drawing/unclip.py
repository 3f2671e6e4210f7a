"""DALL·E 2 with a run's own models: draw pictures from captions by way of CLIP's embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mindalle import unclip

from ..run.flags import Options, option
from ..run.models import Condition, Models, read_captions
from ..run.pictures import Output, Progress, contact_sheet, to_pil

AT_ONCE = 64  # images or embeddings that are drawn in one batch
KARLO_GUIDANCE = 4.0  # its own code's; our prior is best without [unCLIP sec. 5.5]


@dataclass(frozen=True)
class DecoderSampling(Options):
    """How the decoder turns noise into an image. The prior always takes 25 steps."""

    steps: int = option(32, "steps from noise to image", least=1)
    guidance: float = option(1.5, "how strongly the image follows the embedding; 1 is the plain model")

    @property
    def times(self) -> list[float]:
        return unclip.even_times(self.steps)


def is_own_prior(models: Models) -> bool:
    """Return whether train.py trained the prior; if not, it is Karlo's."""
    return bool(models.checkpoint("prior"))


def read_texts(models: Models, texts: list[str]) -> Condition:
    """Read texts with the run's CLIP for its prior."""
    return read_captions(models.get("clip"), models.encode_for_clip(texts), is_own_prior(models))


@torch.no_grad()
def draw_embeddings(models: Models, captions: list[str], seed: int,
                    guidance: float | None = None) -> Tensor:
    """Draw an image embedding for each caption with the prior -> unit vectors (b e)."""
    prior, empty = models.unclip("prior"), tuple(part[0] for part in read_texts(models, [""]))
    if guidance is None:
        guidance = 1.0 if is_own_prior(models) else KARLO_GUIDANCE
    generator = torch.Generator(models.device).manual_seed(seed)
    parts = [unclip.draw_embeddings(prior, read_texts(models, captions[start : start + AT_ONCE]), empty,
                                    guidance=guidance, generator=generator)
             for start in range(0, len(captions), AT_ONCE)]
    return F.normalize(torch.cat(parts), dim=-1)


def denoiser(models: Models, sampling: DecoderSampling) -> unclip.Denoiser:
    """Return embeddings z (b e) -> denoise, by the decoder."""
    decoder = models.unclip("decoder")
    return lambda z: unclip.guided(decoder, (z,), (decoder.empty,), sampling.guidance)


def draw_steps(models: Models, z: Tensor, sampling: DecoderSampling, seed: int) -> Iterator[Tensor]:
    """Draw an image for each embedding (b e) -> after each step the images (b 3 h w) in [-1, 1]."""
    side = models.get("decoder").config.image_size
    generator = torch.Generator(models.device).manual_seed(seed)
    noise = torch.randn(len(z), 3, side, side, device=models.device, generator=generator)
    denoise, progress = denoiser(models, sampling), Progress("drawing, step")
    parts = [unclip.sample_steps(denoise(z_part), noise_part, sampling.times)
             for z_part, noise_part in zip(z.split(AT_ONCE), noise.split(AT_ONCE))]
    for step, images in enumerate(zip(*parts), start=1):  # all parts take a step, then the next
        progress(step, sampling.steps)
        yield torch.cat(images).clamp(-1, 1)


def draw(models: Models, z: Tensor, sampling: DecoderSampling, seed: int) -> Tensor:
    """Draw an image for each embedding (b e) -> (b 3 h w) in [-1, 1]."""
    for images in draw_steps(models, z, sampling, seed):
        pass
    return images


@torch.no_grad()
def open_images(models: Models, *paths: str) -> tuple[list[str], Tensor, Tensor]:
    """Read images, all or none -> names, images (b 3 h w), their embeddings, unit vectors (b e)."""
    # one by one: of several paths, read_images skips those that cannot be read
    images = torch.cat([models.read_images([path])[1] for path in paths]).to(models.device)
    return [Path(path).name for path in paths], images, F.normalize(models.embed_images(images), dim=-1)


def write_strip(out: Output, names: list[str], images: Tensor, drawn: Tensor,
                entries: list[dict]) -> None:
    """Write drawn images (n 3 h w), and a sheet of them between the originals."""
    labels = [" ".join(f"{key} {value:.2f}" for key, value in entry.items() if isinstance(value, float))
              for entry in entries]
    (first, *last), pictures = to_pil(images), to_pil(drawn)
    labels = [names[0], *labels, *names[1:]]
    sheet = contact_sheet([first, *pictures, *last], labels, min(len(labels), 10))
    out.write(pictures, entries, sheet=sheet)
