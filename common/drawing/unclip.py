"""DALL·E 2 with a run's own models: embeddings of a data set, and pictures drawn from captions by way of embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import data
import minclip
from mindalle import unclip

from ..run.flags import Options, option
from ..run.models import Models
from ..run.pictures import Output, Progress, contact_sheet, to_pil

Condition = tuple[Tensor, Tensor, Tensor]  # what the prior reads of captions: token features (b t d), mask (b t), z_t (b e)


AT_ONCE = 64  # images or embeddings that are drawn in one batch


@torch.no_grad()
def embed_all(clip: minclip.CLIP, images: data.Dataset, device: str) -> Tensor:
    """Embed all images once -> unit vectors (images e): prior and decoder train on them."""
    z, progress = torch.empty(len(images), clip.config.embed_dim), Progress("embedding pictures")
    for indices in torch.arange(len(images)).split(64):
        progress(int(indices[0]), len(images))
        z[indices] = F.normalize(clip.encode_image(images.batch(indices).to(device)), dim=-1).cpu()
    progress(len(images), len(images))
    return z


@torch.no_grad()
def read_captions(clip: minclip.CLIP, ids: Tensor, unit_length: bool = True) -> Condition:
    """Read captions (b t) with CLIP -> what the prior reads; unit_length=False for Karlo's, trained on unnormalised z_t."""
    token_features = clip.text_encoder.tokens(ids)
    mask = torch.arange(ids.shape[1], device=ids.device) <= ids.argmax(dim=-1, keepdim=True)  # `end` is the highest id
    z_t = clip.encode_text(ids)
    return token_features, mask, F.normalize(z_t, dim=-1) if unit_length else z_t


@dataclass(frozen=True)
class DecoderSampling(Options):
    """How the decoder turns noise into an image. The prior always takes 25 steps."""

    steps: int = option(32, "steps from noise to image", least=1)
    guidance: float = option(1.5, "how strongly the image follows the embedding; 1 is the plain model")

    @property
    def times(self) -> list[float]:
        return unclip.even_times(self.steps)


KARLO_GUIDANCE = 4.0  # its own code's; our prior is best without [unCLIP sec. 5.5]
ETA = "how random the steps are: 0 (DDIM) keeps the noise, 1 (DDPM) renews it [DDIM eq. 16]"


def own_prior(models: Models) -> bool:
    """Return whether train.py trained the prior; if not, it is Karlo's."""
    return bool(models.checkpoint("prior"))


def read_texts(models: Models, texts: list[str]) -> Condition:
    """Read texts with the run's CLIP for its prior."""
    clip = models.get("clip")
    ids = models.encode("clip", models.clip_tokenizer(), texts, clip.config.context_length)
    return read_captions(clip, ids, unit_length=own_prior(models))


@torch.no_grad()
def draw_embeddings(models: Models, captions: list[str], seed: int, guidance: float | None = None) -> Tensor:
    """Draw an image embedding for each caption with the prior -> unit vectors (b e)."""
    prior, empty = models.unclip("prior"), tuple(part[0] for part in read_texts(models, [""]))
    if guidance is None:
        guidance = 1.0 if own_prior(models) else KARLO_GUIDANCE
    generator, parts = torch.Generator(models.device).manual_seed(seed), range(0, len(captions), AT_ONCE)
    z = torch.cat([unclip.draw_embeddings(prior, read_texts(models, captions[start : start + AT_ONCE]), empty, guidance=guidance,
                                          generator=generator) for start in parts])
    return F.normalize(z, dim=-1)


def denoiser(models: Models, how: DecoderSampling) -> unclip.Denoiser:
    """Return embeddings z (b e) -> denoise, by the decoder."""
    decoder = models.unclip("decoder")
    return lambda z: unclip.guided(decoder, (z,), (decoder.empty,), how.guidance)


def draw_steps(models: Models, z: Tensor, how: DecoderSampling, seed: int) -> Iterator[Tensor]:
    """Draw an image for each embedding (b e) -> after each step the images so far (b 3 h w), at the end in [-1, 1]."""
    side, generator = models.get("decoder").config.image_size, torch.Generator(models.device).manual_seed(seed)
    noise, progress = torch.randn(len(z), 3, side, side, device=models.device, generator=generator), Progress("drawing, step")
    parts = [unclip.sample_steps(denoiser(models, how)(some), its_noise, how.times)
             for some, its_noise in zip(z.split(AT_ONCE), noise.split(AT_ONCE))]
    for step, images in enumerate(zip(*parts), start=1):  # all parts take a step, then the next
        progress(step, how.steps)
        yield torch.cat(images).clamp(-1, 1)


def draw(models: Models, z: Tensor, how: DecoderSampling, seed: int) -> Tensor:
    """Draw an image for each embedding (b e) -> (b 3 h w) in [-1, 1]."""
    for images in draw_steps(models, z, how, seed):
        pass
    return images


@torch.no_grad()
def open_images(models: Models, paths: list[str]) -> tuple[list[str], Tensor, Tensor]:
    """Read images; fail if any cannot be read -> their names, images (b 3 h w), their embeddings, unit vectors (b e)."""
    # one by one: of several paths, read_images skips those that cannot be read
    images = torch.cat([models.read_images([path])[1] for path in paths]).to(models.device)
    return list(map(str, paths)), images, F.normalize(models.embed_images(images), dim=-1)


def write_strip(out: Output, names: list[str], images: Tensor, drawn: Tensor, entries: list[dict]) -> None:
    """Write drawn images (n 3 h w), and a sheet of them with the originals: the first in front, another at the end."""
    labels = [" ".join(f"{name} {value:.2f}" for name, value in entry.items() if isinstance(value, float)) for entry in entries]
    first, *last = zip(to_pil(images), (Path(name).name for name in names))
    pictures, texts = zip(first, *zip(to_pil(drawn), labels), *last)
    out.write(to_pil(drawn), entries, sheet=contact_sheet(list(pictures), list(texts), min(len(pictures), 10)))
