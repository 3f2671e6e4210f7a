"""VQGAN+CLIP with a run's own models: pictures are changed step by step until CLIP finds that they match the prompts."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from einops import repeat
from PIL import Image
from torch import Tensor

import minvqgan

from ..run.errors import file_errors
from ..run.flags import Options, option
from ..run.models import Models
from ..run.pictures import Output, Progress, contact_sheet, to_pil


@dataclass(frozen=True)
class Guiding(Options):
    """How to guide pictures by a CLIP of our own. docs/tried.md says what each setting is worth."""

    steps: int = option(400, "steps of Adam", least=1)
    cutouts: int = option(8, "random views of a picture that CLIP sees per step", least=1)
    smallest: float = option(0.7, "side of the smallest view, as a share of the picture", least=0.01, most=1)
    tries: int = option(2, "pictures guided at once, each from a start of its own; the one that CLIP likes best is kept", least=1)
    octaves: int = option(4, "grids of latents that are moved and added up, each half as fine as the one before", least=1)
    latent_noise: float = option(0.5, "std of the noise added to each view's latents at first, in codebook stds; it falls to 0",
                                 least=0)
    jitter: float = option(0.1, "std of the random brightness of views, and highest std of their noise, pixels in [-1, 1]", least=0)
    lr: float = option(0.1, "learning rate of Adam on the latents", least=0)


PUBLISHED_GUIDING = Guiding(steps=500, cutouts=32, smallest=0.5, tries=1, octaves=1, latent_noise=0.0)


def guiding(models: Models, **typed) -> Guiding:
    """Return how to guide: what was typed, and for the rest what suits our own CLIP, or a published one."""
    return replace(Guiding() if models.checkpoint("clip") else PUBLISHED_GUIDING, **typed)


def guide_pictures(models: Models, prompts: list[minvqgan.Prompt], targets: Tensor, how: Guiding, seed: int,
                   init: Tensor | None = None) -> Iterator[tuple[int, list[Image.Image], list[float]]]:
    """Guide `tries` pictures -> about 48 times (step, the pictures, their mean cosines with the prompts), the last step's included.

    targets (m e): CLIP's embeddings of the prompts; init (1 3 h w): a picture to start from
    """
    device, options = models.device, asdict(how)
    weights = torch.tensor([p.weight for p in prompts], device=device)
    score = minvqgan.prompt_score(models.embed_images, targets, weights)
    every, tries = max(1, how.steps // 48), options.pop("tries")
    if init is not None:
        init = repeat(init, "1 c h w -> b c h w", b=tries)
    steps = minvqgan.guide(models.get("vqgan"), score, cut_size=models.get("clip").config.image_size, count=tries, init=init,
                           learning_rate=options.pop("lr"), generator=torch.Generator(device).manual_seed(seed), **options)
    for step, images in enumerate(steps):
        if step % every == 0 or step == how.steps - 1:
            with torch.no_grad():
                cosines = F.normalize(models.embed_images(images), dim=-1) @ F.normalize(targets, dim=-1).mT  # (b m)
            yield step, to_pil(images), ((cosines * weights).sum(dim=1) / weights.abs().sum()).tolist()


def guide_and_write(models: Models, output: Output, caption: str, prompts: list[minvqgan.Prompt], targets: Tensor, how: Guiding,
                    seed: int, init: Tensor | None = None) -> None:
    """Guide pictures as above, until the end or Ctrl-C, and write the best with the way there as a filmstrip and a GIF."""
    walk, progress = [], Progress("guiding, step")
    try:
        for step, pictures, cosines in guide_pictures(models, prompts, targets, how, seed, init):
            walk.append(list(zip(pictures, cosines)))
            progress(step + 1, how.steps, f"cosine {max(cosines):.3f}")
    except KeyboardInterrupt:
        print("\nstopped early: writing what there is")
    if not walk:
        return
    best = max(range(how.tries), key=lambda i: walk[-1][i][1])
    frames, cosines = zip(*(step[best] for step in walk))
    print(f"cosine with {caption!r} from {cosines[0]:.3f} to {cosines[-1]:.3f}")
    output.write(frames[-1:], [{"caption": caption, "score": cosines[-1], "start": cosines[0]}])
    chosen = sorted({round(i * (len(frames) - 1) / 7) for i in range(8)})
    large = [frame.resize((256, 256), Image.Resampling.NEAREST) for frame in frames]
    with file_errors():
        filmstrip = contact_sheet([frames[i] for i in chosen], [f"{cosines[i]:.2f}" for i in chosen], 8)
        filmstrip.save(output.folder / "filmstrip.png")
    output.write_gif("guide.gif", large)
