"""VQGAN+CLIP with a run's own models: a picture is changed step by step until CLIP finds that it matches the prompts."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import minvqgan

from .errors import file_errors
from .flags import Options, option
from .models import Models
from .pictures import Output, Progress, contact_sheet, to_pil


@dataclass(frozen=True)
class Guiding(Options):
    """How to guide a picture by a CLIP of our own. Without all this noise a few red scraps satisfy it as a large red circle."""

    steps: int = option(200, "steps of Adam", least=1)
    cutouts: int = option(16, "random views that CLIP sees per step", least=1)
    start: str = option("blank", "start from the mean code everywhere, random codes or noise",
                        choices=list(minvqgan.STARTS))
    latent_noise: float = option(1.0, "std of the noise added to each cutout's latents, in codebook stds", least=0)
    jitter: float = option(0.6, "std of the random brightness of cutouts, and highest std of their noise, pixels in [-1, 1]",
                           least=0)
    lr: float = option(0.1, "learning rate of Adam on the latents", least=0)


PUBLISHED_GUIDING = Guiding(steps=500, cutouts=32, start="codes", latent_noise=0.0, jitter=0.1)


def guiding(models: Models, **typed) -> Guiding:
    """Return how to guide: what was typed, and for the rest what suits our own CLIP, or a published one."""
    return replace(Guiding() if models.checkpoint("clip") else PUBLISHED_GUIDING, **typed)


def guide_picture(models: Models, prompts: list[minvqgan.Prompt], targets: Tensor, how: Guiding, seed: int,
                  init: Tensor | None = None) -> Iterator[tuple[int, Image.Image, float]]:
    """Guide one picture -> about 48 times (step, the picture, its mean cosine with the prompts), the last step's included.

    targets (m e): CLIP's embeddings of the prompts; init (1 3 h w): a picture to start from
    """
    device, options = models.device, asdict(how)
    weights, stops = (torch.tensor([getattr(p, key) for p in prompts], device=device) for key in ("weight", "stop"))
    score = minvqgan.prompt_score(models.embed_images, targets, weights, stops)
    count, every = how.steps, max(1, how.steps // 48)
    generator = torch.Generator(device).manual_seed(seed)
    steps = minvqgan.guide(models.get("vqgan"), score, cut_size=models.get("clip").config.image_size,
                           learning_rate=options.pop("lr"), init=init, generator=generator, **options)
    for step, images in enumerate(steps):
        if step % every == 0 or step == count - 1:
            with torch.no_grad():
                cosines = F.normalize(models.embed_images(images), dim=-1) @ F.normalize(targets, dim=-1).mT  # (1 m)
            yield step, to_pil(images)[0], (cosines * weights).sum().item() / weights.abs().sum().item()


def guide_and_write(models: Models, output: Output, caption: str, prompts: list[minvqgan.Prompt], targets: Tensor, how: Guiding,
                    seed: int, init: Tensor | None = None) -> None:
    """Guide a picture as above, until the end or Ctrl-C, and write it with the way there as a filmstrip and a GIF."""
    frames, cosines, progress = [], [], Progress("guiding, step")
    try:
        for step, frame, cosine in guide_picture(models, prompts, targets, how, seed, init):
            frames.append(frame)
            cosines.append(cosine)
            progress(step + 1, how.steps, f"cosine {cosine:.3f}")
    except KeyboardInterrupt:
        print("\nstopped early: writing what there is")
    if not frames:
        return
    print(f"cosine with {caption!r} from {cosines[0]:.3f} to {cosines[-1]:.3f}")
    output.write(frames[-1:], [{"caption": caption, "score": cosines[-1], "start": cosines[0]}])
    chosen = sorted({round(i * (len(frames) - 1) / 7) for i in range(8)})
    large = [frame.resize((256, 256), Image.Resampling.NEAREST) for frame in frames]
    with file_errors():
        filmstrip = contact_sheet([frames[i] for i in chosen], [f"{cosines[i]:.2f}" for i in chosen], 8)
        filmstrip.save(output.folder / "filmstrip.png")
    output.write_gif("guide.gif", large)
