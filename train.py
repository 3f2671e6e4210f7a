"""Train CLIP, VQGAN and DALL·E, then DALL·E 2.

    python train.py                     CLIP, VQGAN, DALL·E in turn on the shapes world, then scores
    python train.py unclip              DALL·E 2 over the run's CLIP: its prior, then its decoder
    python train.py MODEL [--data DIR]  clip, vqgan, dalle, prior or decoder; --help lists options

What each learns from; codes and embeddings are computed once, before the training:

    CLIP      captions, images
    VQGAN     images
    DALL·E    captions, the images' codes by VQGAN
    prior     captions as CLIP reads them, the images' embeddings by CLIP
    decoder   images, their embeddings by CLIP
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

import minvqgan
from common.drawing.dalle import default_drawing, generate_images
from common.drawing.guide import Guiding, guide_and_write
from common.drawing.unclip import DecoderSampling, draw, draw_embeddings
from common.run.errors import InputError, one_line_errors
from common.run.flags import Options, command, option
from common.run.folder import LEADER, WORLD, Run
from common.run.job import JOBS
from common.run.models import Models, reconstruct
from common.run.pictures import Output, reconstruction_sheet, to_pil
from common.scoring import held_out
from common.scoring.scores import score
from common.scoring.shapes import first_captions
from common.training import bounds
from common.training.device import keep_freed_memory
from common.training.distributed import gather, processes, replicate
from common.training.loop import Training, stable_seed
from common.training.muon import Muon
from common.training.settle import open_run, parse, settle
from common.training.sources import (
    CaptionedCodes, CaptionedImages, CaptionEmbeddings, ImageEmbeddings, Images)
from mindalle import DALLE, DALLEConfig, dalle_loss, drop_captions
from mindalle.unclip import Decoder, DecoderConfig, Prior, PriorConfig, diffusion_step
from minclip import CLIP, LOSSES, CLIPConfig, accumulated_backward
from minvqgan import VQGAN, PatchGAN, VQGANConfig, discriminator_loss, generator_loss
from page.export import reported


@dataclass(frozen=True)
class Recipe(Options):
    """How a model is trained. Every field is a flag, as the fields of the models' configs are."""

    warmup: float = option(0.05, "fraction of the training in which the rate rises",
                           least=0.001, most=1)
    scenes: int = option(80_000, "pictures of the shapes world to train on", least=1)


RATIO = "learning rate of all but the hidden matrices, as a multiple"
SHIFT = ("pixels by which training pictures move at random (default: a 16th of their side if fewer "
         "than 10,000, else 0)")

# ---- CLIP ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CLIPRecipe(Recipe):
    steps: int = option(2200, "optimiser steps", least=1)
    batch_size: int = option(128, "pairs per step, each a negative for all others", least=1)
    learning_rate: float = option(1e-2, "highest learning rate", least=0)
    adamw_ratio: float = option(0.1, RATIO, least=0)
    weight_decay: float = option(0.2, "weight decay of the matrices", least=0)
    look_alikes: float = option(0.3, "fraction completed when look-alikes begin; 1: never",
                                least=0, most=1)
    look_alike_group: int = option(4, "captions in a group that are hard to tell apart", least=2)
    accumulate: int = option(1, "chunks of the batch, one at a time in memory", least=1)
    shift: int | None = option(None, SHIFT, least=0)


def train_clip(run: Run, config: CLIPConfig, recipe: CLIPRecipe) -> None:
    source = CaptionedImages(run, config, recipe)
    config = replace(config, **source.sizes)
    torch.manual_seed(stable_seed(run.job.seed, "clip"))
    model = CLIP(config).to(run.device)
    hidden = [model.image_encoder.transformer, model.text_encoder.transformer]
    if config.stem_width:
        hidden.append(model.image_encoder.patch_embedding[1:])
    optimiser = Muon(model, hidden, recipe.learning_rate, recipe.adamw_ratio, recipe.weight_decay,
                     betas=(0.9, 0.98), eps=1e-6)
    expected = bounds.contrastive(config.loss, source.ids[: recipe.batch_size])
    training = Training(run, "clip", config, recipe, source, expected,
                        model=model, optimiser=optimiser)
    network, loss_function = replicate(model), LOSSES[config.loss].loss
    if recipe.accumulate > 1 and WORLD > 1:
        raise InputError("several processes divide the batch already: leave --accumulate out")
    for indices in training.steps():
        pixels, ids, right = source.batch(indices)                    # (b 3 h w), (b t), (b b)

        optimiser.zero_grad()
        with training.autocast():
            if recipe.accumulate > 1:
                loss = accumulated_backward(model, pixels, ids, recipe.accumulate, right)
            else:
                loss = loss_function(model.logits(*gather(*network(pixels, ids))), right)
        if recipe.accumulate == 1:
            loss.backward()
        optimiser.step()
        model.clamp_temperature()

        training.log(loss)
        if training.due:
            training.save()
            figures = held_out.clip_figures(model, source.encode, source.held_out, run.job.seed)
            training.log_held_out(**figures)


# ---- VQGAN --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VQGANRecipe(Recipe):
    steps: int = option(1800, "optimiser steps", least=1)
    batch_size: int = option(16, "images per step", least=1)
    learning_rate: float = option(8e-3, "highest learning rate", least=0)
    adamw_ratio: float = option(1.0, RATIO, least=0)
    discriminator: bool = option(False, "train against a patch discriminator: sharper, but slower")
    discriminator_start: float = option(0.55, "fraction completed when it begins", least=0, most=1)
    discriminator_layers: int = option(2, "halvings in it; two suit pictures of 32 pixels", least=1)
    adversarial_weight: float = option(0.8, "its strength relative to the reconstruction", least=0)
    shift: int | None = option(None, SHIFT, least=0)


def train_vqgan(run: Run, config: VQGANConfig, recipe: VQGANRecipe) -> None:
    source = Images(run, config.image_size, recipe)
    torch.manual_seed(stable_seed(run.job.seed, "vqgan"))
    model = VQGAN(config).to(run.device, memory_format=torch.channels_last)
    model.codebook.gather = lambda rows: gather(rows)[0]  # rows of all processes
    hidden = [model.encoder.levels, model.encoder.middle, model.decoder.levels, model.decoder.middle]
    optimiser = Muon(model, hidden, recipe.learning_rate, recipe.adamw_ratio, betas=(0.9, 0.99))
    saved = {"model": model, "optimiser": optimiser}
    if recipe.discriminator:
        discriminator = PatchGAN(layers=recipe.discriminator_layers).to(run.device)
        if config.image_size < discriminator.min_side:
            raise InputError(f"--discriminator-layers {recipe.discriminator_layers}: choose fewer, "
                             f"or pictures of {discriminator.min_side} pixels or more")
        optimiser_d = Muon(discriminator, [], recipe.learning_rate, betas=(0.5, 0.9))
        saved |= {"discriminator": discriminator, "optimiser_d": optimiser_d}
    expected = bounds.reconstruction(source.train.batch(range(min(64, len(source.train)))))
    training = Training(run, "vqgan", config, recipe, source, expected, **saved)
    network = replicate(model)
    network_d = replicate(discriminator) if recipe.discriminator else None
    for indices in training.steps():
        pixels = source.batch(indices)                                # (b 3 h w)
        adversary = recipe.discriminator and training.done >= recipe.discriminator_start
        if hasattr(model.codebook, "anneal"):
            model.codebook.anneal(training.done)

        with training.autocast():
            reconstruction, quantised = network(pixels)
        loss, parts = generator_loss(
            pixels, reconstruction.float(), quantised.loss, model.last_weight,
            discriminator if adversary else None, recipe.adversarial_weight)
        optimiser.zero_grad()
        loss.backward()
        # one odd batch must not undo many
        parts["gradient_norm"] = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

        if adversary:
            loss_d = discriminator_loss(network_d, pixels, reconstruction.float())
            optimiser_d.zero_grad()
            loss_d.backward()
            optimiser_d.step()
            parts["discriminator"] = loss_d

        training.log(loss, **parts)
        if training.due:
            training.save()
            training.log_held_out(**held_out.vqgan_figures(model, source.held_out))


# ---- DALL·E -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DALLERecipe(Recipe):
    steps: int = option(2500, "optimiser steps", least=1)
    batch_size: int = option(48, "captioned images per step", least=1)
    learning_rate: float = option(6.5e-3, "highest learning rate", least=0)
    adamw_ratio: float = option(1.0, RATIO, least=0)
    weight_decay: float = option(0.05, "weight decay of the matrices", least=0)
    text_loss_weight: float = option(1 / 8, "of the loss; the image has the rest", least=0, most=1)
    caption_dropout: float = option(0.05, "fraction left out, for guidance", least=0, most=1)
    shift: int | None = option(None, SHIFT, least=0)


def train_dalle(run: Run, config: DALLEConfig, recipe: DALLERecipe) -> None:
    source = CaptionedCodes(run, recipe)
    config = replace(config, **source.sizes)
    torch.manual_seed(stable_seed(run.job.seed, "dalle"))
    model = DALLE(config).to(run.device)
    optimiser = Muon(model, [model.blocks], recipe.learning_rate, recipe.adamw_ratio,
                     recipe.weight_decay, betas=(0.9, 0.95))
    expected = bounds.dalle(config, source.train, recipe.text_loss_weight, recipe.caption_dropout)
    training = Training(run, "dalle", config, recipe, source, expected,
                        model=model, optimiser=optimiser)
    network = replicate(model)
    for indices in training.steps():
        text, codes = source.batch(indices)                           # (b t), (b n)
        text = drop_captions(text, source.empty, recipe.caption_dropout)

        with training.autocast():
            loss, text_loss, image_loss = dalle_loss(
                *network(text, codes), text, codes, recipe.text_loss_weight)
        optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

        training.log(loss, text=text_loss, image=image_loss, gradient_norm=norm)
        if training.due:
            training.save()
            training.log_held_out(**held_out.dalle_figures(
                model, source.vqgan, source.encode, source.held_out, run.job.seed))


# ---- DALL·E 2 -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PriorRecipe(Recipe):
    steps: int = option(1600, "optimiser steps", least=1)
    batch_size: int = option(256, "pairs of caption and embedding per step", least=1)
    learning_rate: float = option(2e-3, "highest learning rate", least=0)
    adamw_ratio: float = option(0.5, RATIO, least=0)
    caption_dropout: float = option(0.1, "fraction left out, for guidance", least=0, most=1)
    scenes: int = option(40_000, "pictures of the shapes world to train on", least=1)


def train_prior(run: Run, config: PriorConfig, recipe: PriorRecipe) -> None:
    source = CaptionEmbeddings(run, recipe)
    config = replace(config, **source.sizes)
    torch.manual_seed(stable_seed(run.job.seed, "prior"))
    model = Prior(config).to(run.device)
    source.standardise(model)
    optimiser = Muon(model, [model.blocks], recipe.learning_rate, recipe.adamw_ratio,
                     betas=(0.9, 0.99))
    expected = bounds.denoising(source.embeddings, "the mean embedding")
    training = Training(run, "prior", config, recipe, source, expected,
                        model=model, optimiser=optimiser)
    network = replicate(model)
    for indices in training.steps():
        z, condition = source.batch(indices)                          # (b e), what CLIP reads

        with training.autocast():
            loss = diffusion_step(network, z, condition, source.empty, recipe.caption_dropout)
        optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

        training.log(loss, gradient_norm=norm)
        if training.due:
            training.save()
            training.log_held_out(**held_out.prior_figures(
                model, source.clip, source.read, source.empty, source.held_out, run.job.seed))


@dataclass(frozen=True)
class DecoderRecipe(Recipe):
    steps: int = option(12_000, "optimiser steps", least=1)
    batch_size: int = option(48, "images per step", least=1)
    learning_rate: float = option(3e-3, "highest learning rate", least=0)
    adamw_ratio: float = option(0.4, RATIO, least=0)
    embedding_dropout: float = option(0.1, "fraction left out, for guidance", least=0, most=1)
    scenes: int = option(40_000, "pictures of the shapes world to train on", least=1)


def train_decoder(run: Run, config: DecoderConfig, recipe: DecoderRecipe) -> None:
    source = ImageEmbeddings(run, recipe)
    config = replace(config, **source.sizes)
    torch.manual_seed(stable_seed(run.job.seed, "decoder"))
    model = Decoder(config).to(run.device, memory_format=torch.channels_last)
    model.standardise.fit(source.embeddings)
    hidden = [model.condition, model.levels, model.middle]
    optimiser = Muon(model, hidden, recipe.learning_rate, recipe.adamw_ratio, betas=(0.9, 0.99))
    expected = bounds.denoising(source.probe[0], "a gray image")
    training = Training(run, "decoder", config, recipe, source, expected,
                        model=model, optimiser=optimiser)
    network = replicate(model)
    for indices in training.steps():
        pixels, z = source.batch(indices)                             # (b 3 h w), (b e)

        with training.autocast():
            loss = diffusion_step(network, pixels, (z,), (model.empty,), recipe.embedding_dropout)
        optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

        training.log(loss, gradient_norm=norm)
        if training.due:
            training.save()
            training.log_held_out(**held_out.decoder_figures(
                model, source.clip, source.held_out, run.job.seed))


# ---- The job ------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """A loop, config and recipe, and the config fields that the data decide."""

    train: Callable[[Run, Any, Any], None]
    config: type
    recipe: type
    decided: tuple[str, ...] = ()


MODELS = {
    "clip": Trained(train_clip, CLIPConfig, CLIPRecipe),
    "vqgan": Trained(train_vqgan, VQGANConfig, VQGANRecipe),
    "dalle": Trained(train_dalle, DALLEConfig, DALLERecipe,
                     ("text_vocab", "image_vocab", "text_length", "grid")),
    "prior": Trained(train_prior, PriorConfig, PriorRecipe,
                     ("embed_dim", "token_width", "text_length")),
    "decoder": Trained(train_decoder, DecoderConfig, DecoderRecipe, ("embed_dim", "image_size")),
}


def main(argv: list[str] | None = None) -> None:
    keep_freed_memory()
    classes = {name: model[1:] for name, model in MODELS.items()}
    with processes():
        run, names = open_run(*parse(argv, __doc__.split("\n")[0], classes))
        with run.locked(), reported(run.folder):
            # all now: a mistake in the settings of the last model shows before the first is trained
            settled = [settle(run, name, *classes[name][:2]) for name in names]
            for name, settings in zip(names, settled):
                MODELS[name].train(run, *settings)
            if LEADER and names in JOBS.values() and not run.job.overfit:
                finish(run, names)


def finish(run: Run, names: tuple[str, ...]) -> None:
    """Draw the captions of 16 held-out pictures; on the shapes world also guide one, and score."""
    models, folder, seed = Models(run.folder, run.device), run.folder / "samples", run.job.seed
    images = next(images for (_, _, split), images in run.datasets.items() if split != "train")
    originals, captions, scenes = first_captions(images, 16)
    entries = [{"caption": caption} for caption in captions]

    def write(name: str, pictures: torch.Tensor, entries: list[dict], **options: Any) -> None:
        Output(folder / name, name, 16).write(to_pil(pictures), entries, **options)

    if "decoder" in names:
        z = draw_embeddings(models, captions, seed)
        write("unclip", draw(models, z, DecoderSampling(), seed), entries)
        return
    write("originals", originals, entries)
    redrawn = reconstruct(models.get("vqgan"), originals.to(run.device))[0].cpu()
    psnr = minvqgan.psnr(originals, redrawn).tolist()
    files = [f"{i:04d}.png" for i in range(len(entries))]
    write("reconstruct", redrawn, [entry | {"psnr": value} for entry, value in zip(entries, psnr)],
          sheet=reconstruction_sheet(originals, redrawn, files, psnr))
    write("dalle", generate_images(models, captions, default_drawing(models), seed)[0], entries)
    if scenes:
        output, prompt = Output(folder / "guide", "guide", 1), "a large red star on a gray background"
        guide_and_write(models, output, prompt, minvqgan.parse_prompts(prompt),
                        models.embed_text([prompt]), Guiding(), seed)
        score(models, default_drawing(models), seed=seed)
    else:  # a classifier would first learn the pictures, for a minute or more
        print("to score it on held-out pictures: "
              + command("sample.py", "score", "--run", run.folder))


if __name__ == "__main__":
    one_line_errors(main)
