"""What ends a job of several models: scores on the shapes world, and on any data pictures that are worth a look."""

import minvqgan

from .scoring import shapes as scores
from .training.sources import held_out_images
from .drawing.dalle import drawing, generate_images
from .run.flags import command
from .drawing.guide import Guiding, guide_and_write
from .run.models import Models, reconstruct
from .training.distributed import LEADER
from .run.pictures import Output, reconstruction_sheet, to_pil
from .run.runs import JOBS, Run
from .drawing.unclip import DecoderSampling, draw, draw_embeddings


def finish(run: Run) -> None:
    """Leave pictures and scores of a job of several models; a model alone and one batch learned by heart have none."""
    if LEADER and tuple(run.models) in JOBS.values() and not run.job.overfit:
        {None: finish_all, "unclip": finish_unclip}[run.job.model](run)


def finish_unclip(run: Run) -> None:
    """Draw the captions of 16 held-out pictures with DALL·E 2."""
    models, folder, seed, how = Models(run.folder, run.device), run.folder / "samples", run.job.seed, DecoderSampling()
    size = models.get("decoder").config.image_size
    _, captions, _ = scores.first_captions(held_out_images(run, size), 16)
    drawn = draw(models, draw_embeddings(models, captions, seed), how, seed)
    Output(folder / "unclip", "unclip", 16).write(to_pil(drawn), [{"caption": caption} for caption in captions])


def finish_all(run: Run, prompt: str = "a large red star on a gray background") -> None:
    """Reconstruct and draw 16 held-out pictures; on the shapes world also guide one by the prompt, and report the scores."""
    models, folder, seed = Models(run.folder, run.device), run.folder / "samples", run.job.seed
    vqgan = models.get("vqgan")
    originals, captions, scenes = scores.first_captions(held_out_images(run, vqgan.config.image_size), 16)
    entries = [{"caption": caption} for caption in captions]
    Output(folder / "originals", "originals", 16).write(to_pil(originals), entries)

    redrawn = reconstruct(vqgan, originals.to(run.device))[0].cpu()
    psnr = minvqgan.psnr(originals, redrawn).tolist()
    sheet = reconstruction_sheet(to_pil(originals), to_pil(redrawn), [f"{i:04d}.png" for i in range(len(entries))], psnr)
    Output(folder / "reconstruct", "reconstruct", 16).write(
        to_pil(redrawn), [entry | {"psnr": value} for entry, value in zip(entries, psnr)], sheet=sheet)

    drawn, _ = generate_images(models, captions, drawing(models), seed)
    Output(folder / "dalle", "dalle", 16).write(to_pil(drawn), entries)
    if scenes:
        output = Output(folder / "guide", "guide", 1)
        guide_and_write(models, output, prompt, minvqgan.parse_prompts(prompt), models.embed_text([prompt]), Guiding(), seed)
        scores.score(models, drawing(models), seed=seed)
    else:  # a classifier would first learn the pictures, for a minute or more
        print(f"to score it on held-out pictures: {command('sample.py', 'score', '--run', folder.parent)}")
