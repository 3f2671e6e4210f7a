"""Train CLIP, VQGAN and DALL·E, then DALL·E 2.

    python train.py                         CLIP, VQGAN and DALL·E in turn on the shapes world, then scores and pictures
    python train.py unclip                  DALL·E 2 over the run's CLIP: its prior, then its decoder
    python train.py MODEL [--data DIR]      clip, vqgan, dalle, prior or decoder alone; `MODEL --help` lists its options

What each learns from; codes and embeddings are computed once, before the training:

    CLIP      captions, images
    VQGAN     images
    DALL·E    captions, the images' codes by VQGAN
    prior     captions as CLIP reads them, the images' embeddings by CLIP
    decoder   images, their embeddings by CLIP
"""

import dataclasses
from functools import partial

import torch
from torch import nn

from common.scoring import held_out
from common.training import settle as jobs
from common.training.sources import check_lengths, distinct, fitting_length, learn_tokenizer, open_splits, settle_shift, without_look_alikes
from common.run.errors import InputError, one_line_errors
from common.finish import finish
from common.run.models import Models, encode_all, fingerprint
from common.training.muon import Muon
from common.training.distributed import average, gather, gather_rows, processes, share
from common.training.device import choose_precision, compiled, keep_freed_memory
from common.training.recipes import CLIPRecipe, DALLERecipe, DecoderRecipe, PriorRecipe, VQGANRecipe
from common.report import reported
from common.run.runs import Run
from common.training.loop import Training, random_batch, set_learning_rate, shifted, stable_seed
from common.drawing.unclip import embed_all, read_captions
from mindalle import DALLE, DALLEConfig, dalle_loss, drop_captions, unclip
from mindalle.unclip import Decoder, DecoderConfig, Prior, PriorConfig
from minclip import CLIP, LOSSES, CLIPConfig, LookAlikes, accumulated_backward, same_caption
from minvqgan import VQGAN, PatchGAN, VQGANConfig, discriminator_loss, generator_loss

# ---- The loops --------------------------------------------------------------------------------------------------


def train_clip(run: Run, config: CLIPConfig, recipe: CLIPRecipe) -> None:
    images, unseen = open_splits(run, config.image_size, recipe.scenes)
    tokenizer = learn_tokenizer(run, images, config.vocab_size)
    length = run.settled("clip", "context_length") or fitting_length(tokenizer, distinct(images, unseen))
    recipe = settle_shift(run, images, config.image_size, without_look_alikes(run, distinct(images), recipe))
    check_lengths(run, tokenizer, length, images, unseen)
    encode = partial(tokenizer.encode, context_length=length, truncate=run.job.truncate)
    texts = encode([captions[0] for captions in images.captions])                            # (images t)
    look_alikes = LookAlikes(texts)
    config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size, context_length=length)

    torch.manual_seed(stable_seed(run.job.seed, "clip"))
    model = CLIP(config).to(run.device)
    hidden = [model.image_encoder.transformer, model.text_encoder.transformer]
    if config.stem_width:
        hidden.append(model.image_encoder.patch_embedding[1:])
    optimiser = Muon(model, hidden, recipe.learning_rate, recipe.outer_rate, recipe.weight_decay, betas=(0.9, 0.98), eps=1e-6)
    loss_function = LOSSES[config.loss].loss
    run.expect("clip", "cosines of 0", *held_out.contrastive_bounds(model, texts[: recipe.batch_size]))

    some = range(min(len(images), recipe.batch_size))
    pixels, ids = images.batch(some).to(run.device), texts[some].to(run.device)
    precision = choose_precision(run, "clip", model, lambda: loss_function(model.logits(*model(pixels, ids))))
    training = Training(run, "clip", config, recipe, {"precision": precision, "tokenizer": tokenizer.fingerprint},
                        model=model, optimiser=optimiser)
    for step, done in training.steps():
        torch.manual_seed(stable_seed(run.job.seed, "clip", step))
        set_learning_rate(optimiser, done, recipe)

        indices = random_batch(len(images), recipe.batch_size, run.job.overfit)              # (b)
        if done >= recipe.look_alikes and not run.job.overfit and len(images) >= recipe.batch_size:
            indices = look_alikes.draw(recipe.batch_size, recipe.look_alike_group)
        captions = images.texts(indices, torch.default_generator)
        pixels, ids = shifted(images.batch(indices), recipe.shift), encode(captions)         # (b 3 h w), (b t)
        right = (same_caption(ids) | images.right(indices, captions)).to(run.device)         # (b b)
        pixels, ids = share(pixels.to(run.device), ids.to(run.device))

        optimiser.zero_grad()
        with torch.autocast(run.device, torch.bfloat16, enabled=precision == "bf16"):
            if recipe.accumulate > 1:
                loss = accumulated_backward(model, pixels, ids, recipe.accumulate, right)
            else:
                loss = loss_function(model.logits(*gather(*model(pixels, ids))), right)
        if recipe.accumulate == 1:
            loss.backward()
        average(model)
        optimiser.step()
        model.clamp_temperature()

        training.log(loss)
        if training.due:
            training.save()
            training.log_held_out(**held_out.clip_figures(model, encode, unseen, run.job.seed))


def train_vqgan(run: Run, config: VQGANConfig, recipe: VQGANRecipe) -> None:
    images, unseen = open_splits(run, config.image_size, recipe.scenes)
    recipe = settle_shift(run, images, config.image_size, recipe)

    torch.manual_seed(stable_seed(run.job.seed, "vqgan"))
    model = VQGAN(config).to(run.device, memory_format=torch.channels_last)
    model.codebook.gather = gather_rows
    hidden = [part for half in (model.encoder, model.decoder) for part in (half.levels, half.middle)]
    optimiser = Muon(model, hidden, recipe.learning_rate, recipe.outer_rate, betas=(0.9, 0.99))
    saved = {"model": model, "optimiser": optimiser}
    discriminator = None
    if recipe.discriminator:
        discriminator = PatchGAN(layers=recipe.discriminator_layers).to(run.device)
        optimiser_d = Muon(discriminator, [], recipe.learning_rate, betas=(0.5, 0.9))
        if config.image_size < discriminator.min_side:
            raise InputError(f"--discriminator-layers {recipe.discriminator_layers}: choose fewer, or pictures of "
                             f"{discriminator.min_side} pixels or more")
        saved |= {"discriminator": discriminator, "optimiser_d": optimiser_d}
    run.expect("vqgan", "noise", held_out.reconstruction_start(images), 0.0)

    some = images.batch(range(min(len(images), recipe.batch_size))).to(run.device)
    precision = choose_precision(run, "vqgan", model, lambda: model(some)[0].float().square().mean())
    training = Training(run, "vqgan", config, recipe, {"precision": precision}, **saved)
    for step, done in training.steps():
        torch.manual_seed(stable_seed(run.job.seed, "vqgan", step))
        set_learning_rate(optimiser, done, recipe)
        adversary = discriminator if done >= recipe.discriminator_start else None

        indices = random_batch(len(images), recipe.batch_size, run.job.overfit)              # (b)
        pixels, = share(shifted(images.batch(indices), recipe.shift).to(run.device))         # (b 3 h w)

        with torch.autocast(run.device, torch.bfloat16, enabled=precision == "bf16"):
            reconstruction, quantised = model(pixels)
        loss, parts = generator_loss(pixels, reconstruction.float(), quantised.loss, model.last_weight, adversary,
                                     recipe.adversarial_weight)
        optimiser.zero_grad()
        loss.backward()
        average(model)
        parts["gradient_norm"] = nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # one odd batch must not undo many
        optimiser.step()

        if adversary is not None:
            set_learning_rate(optimiser_d, done, recipe)
            loss_d = discriminator_loss(adversary, pixels, reconstruction.float())
            optimiser_d.zero_grad()
            loss_d.backward()
            average(discriminator)
            optimiser_d.step()
            parts["discriminator"] = loss_d

        training.log(loss, **parts)
        if training.due:
            training.save()
            training.log_held_out(**held_out.vqgan_figures(model, unseen))


def train_dalle(run: Run, config: DALLEConfig, recipe: DALLERecipe) -> None:
    models = Models(run.folder, run.device)
    vqgan, tokenizer = models.get("vqgan"), models.get("tokenizer")
    size = vqgan.config.image_size
    images, unseen = open_splits(run, size, recipe.scenes)
    length = run.settled("dalle", "text_length") or fitting_length(tokenizer, distinct(images, unseen))
    check_lengths(run, tokenizer, length, images, unseen)
    encode = partial(tokenizer.encode, context_length=length, truncate=run.job.truncate)
    empty = encode("")[0].to(run.device)                                                     # (t)
    recipe = settle_shift(run, images, size, recipe)
    codes = encode_all(vqgan, images, run.device, recipe.shift)                              # (copies images n)
    config = dataclasses.replace(config, text_vocab=tokenizer.vocab_size, text_length=length,
                                 image_vocab=vqgan.config.codebook_size, grid=vqgan.config.grid)

    torch.manual_seed(stable_seed(run.job.seed, "dalle"))
    model = DALLE(config).to(run.device)
    optimiser = Muon(model, [model.blocks], recipe.learning_rate, recipe.outer_rate, recipe.weight_decay, betas=(0.9, 0.95))
    run.expect("dalle", "a guess", *held_out.dalle_bounds(config, images, recipe.text_loss_weight, recipe.caption_dropout))

    some = range(min(len(images), recipe.batch_size))
    text, targets = encode(images.texts(some, torch.default_generator)).to(run.device), codes[0, some].long().to(run.device)
    precision = choose_precision(run, "dalle", model, lambda: dalle_loss(*model(text, targets), text, targets)[0])
    notes = {"precision": precision, "tokenizer": tokenizer.fingerprint, "vqgan": fingerprint(vqgan)}
    training = Training(run, "dalle", config, recipe, notes, model=model, optimiser=optimiser)
    losses = compiled(run, "dalle", lambda text, codes: dalle_loss(*model(text, codes), text, codes, recipe.text_loss_weight))
    for step, done in training.steps():
        torch.manual_seed(stable_seed(run.job.seed, "dalle", step))
        set_learning_rate(optimiser, done, recipe)

        indices = random_batch(len(images), recipe.batch_size, run.job.overfit)              # (b)
        text = encode(images.texts(indices, torch.default_generator)).to(run.device)         # (b t)
        text = drop_captions(text, empty, recipe.caption_dropout)
        copy = torch.randint(len(codes), (len(indices),)) if recipe.shift else 0
        text, targets = share(text, codes[copy, indices].long().to(run.device))              # (b n)

        with torch.autocast(run.device, torch.bfloat16, enabled=precision == "bf16"):
            loss, text_loss, image_loss = losses(text, targets)
        optimiser.zero_grad()
        loss.backward()
        average(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

        training.log(loss, text=text_loss, image=image_loss, gradient_norm=norm)
        if training.due:
            training.save()
            training.log_held_out(**held_out.dalle_figures(model, vqgan, encode, unseen, run.job.seed))


def train_prior(run: Run, config: PriorConfig, recipe: PriorRecipe) -> None:
    models = Models(run.folder, run.device)
    clip, tokenizer = models.get("clip"), models.clip_tokenizer()
    size, length = clip.config.image_size, clip.config.context_length
    images, unseen = open_splits(run, size, recipe.scenes)
    check_lengths(run, tokenizer, length, images, unseen)
    encode = partial(tokenizer.encode, context_length=length, truncate=run.job.truncate)
    read = lambda texts: read_captions(clip, encode(texts).to(run.device))  # noqa: E731  features (b t d), mask (b t), z_t (b e)
    empty = tuple(part[0] for part in read([""]))
    embeddings = embed_all(clip, images, run.device)                                         # (images e)
    config = dataclasses.replace(config, embed_dim=clip.config.embed_dim, token_width=clip.config.text_width, text_length=length)

    torch.manual_seed(stable_seed(run.job.seed, "prior"))
    model = Prior(config).to(run.device)
    model.standardise_image.fit(embeddings)
    model.standardise_text.fit(read([captions[0] for captions in images.captions[:4096]])[-1])
    embeddings = model.standardise_image(embeddings.to(run.device))
    optimiser = Muon(model, [model.blocks], recipe.learning_rate, recipe.outer_rate, betas=(0.9, 0.99))
    run.expect("prior", "the mean embedding", unclip.expected_loss(embeddings))

    some = range(min(len(images), recipe.batch_size))
    z, condition = embeddings[some], read(images.texts(some, torch.default_generator))
    precision = choose_precision(run, "prior", model, lambda: model(z, torch.rand(len(z)).to(z), *condition).float().square().mean())
    notes = {"precision": precision, "tokenizer": tokenizer.fingerprint, "clip": fingerprint(clip)}
    training = Training(run, "prior", config, recipe, notes, model=model, optimiser=optimiser)
    for step, done in training.steps():
        torch.manual_seed(stable_seed(run.job.seed, "prior", step))
        set_learning_rate(optimiser, done, recipe)

        indices = random_batch(len(images), recipe.batch_size, run.job.overfit)              # (b)
        z = embeddings[indices]                                                              # (b e)
        condition = unclip.drop_condition(read(images.texts(indices, torch.default_generator)), empty, recipe.caption_dropout)
        t, noise = unclip.random_times(len(z)).to(run.device), torch.randn_like(z)           # (b), (b e)
        z, t, noise, *condition = share(z, t, noise, *condition)

        with torch.autocast(run.device, torch.bfloat16, enabled=precision == "bf16"):
            prediction = model(unclip.mix(z, noise, t), t, *condition)                       # (b e)
        loss = unclip.denoising_loss(prediction, z, t)
        optimiser.zero_grad()
        loss.backward()
        average(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

        training.log(loss, gradient_norm=norm)
        if training.due:
            training.save()
            training.log_held_out(**held_out.prior_figures(model, clip, read, empty, unseen, run.job.seed))


def train_decoder(run: Run, config: DecoderConfig, recipe: DecoderRecipe) -> None:
    clip = Models(run.folder, run.device).get("clip")
    size = clip.config.image_size
    images, unseen = open_splits(run, size, recipe.scenes)
    embeddings = embed_all(clip, images, run.device)                                         # (images e)
    config = dataclasses.replace(config, image_size=size, embed_dim=clip.config.embed_dim)

    torch.manual_seed(stable_seed(run.job.seed, "decoder"))
    model = Decoder(config).to(run.device, memory_format=torch.channels_last)
    model.standardise.fit(embeddings)
    optimiser = Muon(model, [model.condition, model.levels, model.middle], recipe.learning_rate, recipe.outer_rate, betas=(0.9, 0.99))
    pixels = images.batch(range(min(len(images), recipe.batch_size))).to(run.device)
    run.expect("decoder", "a gray image", unclip.expected_loss(pixels))

    z = embeddings[: len(pixels)].to(run.device)
    precision = choose_precision(run, "decoder", model, lambda: model(pixels, torch.rand(len(z)).to(z), z).float().square().mean())
    notes = {"precision": precision, "clip": fingerprint(clip)}
    training = Training(run, "decoder", config, recipe, notes, model=model, optimiser=optimiser)
    denoise = compiled(run, "decoder", model)
    for step, done in training.steps():
        torch.manual_seed(stable_seed(run.job.seed, "decoder", step))
        set_learning_rate(optimiser, done, recipe)

        indices = random_batch(len(images), recipe.batch_size, run.job.overfit)              # (b)
        pixels = images.batch(indices).to(run.device)                                        # (b 3 h w)
        condition = unclip.drop_condition((embeddings[indices].to(run.device),), (model.empty,), recipe.embedding_dropout)
        t, noise = unclip.random_times(len(pixels)).to(run.device), torch.randn_like(pixels) # (b), (b 3 h w)
        pixels, t, noise, *condition = share(pixels, t, noise, *condition)

        with torch.autocast(run.device, torch.bfloat16, enabled=precision == "bf16"):
            prediction = denoise(unclip.mix(pixels, noise, t), t, *condition)                # (b 3 h w)
        loss = unclip.denoising_loss(prediction, pixels, t)
        optimiser.zero_grad()
        loss.backward()
        average(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

        training.log(loss, gradient_norm=norm)
        if training.due:
            training.save()
            training.log_held_out(**held_out.decoder_figures(model, clip, unseen, run.job.seed))


# ---- All of it --------------------------------------------------------------------------------------------------------

# name -> its loop, config, recipe, and the config fields that the data and the other models decide
MODELS = {
    "clip": (train_clip, CLIPConfig, CLIPRecipe, ()),
    "vqgan": (train_vqgan, VQGANConfig, VQGANRecipe, ()),
    "dalle": (train_dalle, DALLEConfig, DALLERecipe, ("text_vocab", "image_vocab", "text_length", "grid")),
    "prior": (train_prior, PriorConfig, PriorRecipe, ("embed_dim", "token_width", "text_length")),
    "decoder": (train_decoder, DecoderConfig, DecoderRecipe, ("embed_dim", "image_size")),
}


def parse(argv: list[str] | None = None) -> tuple:
    return jobs.parse(argv, __doc__.split("\n")[0], {name: classes for name, (_, *classes) in MODELS.items()})


def main(argv: list[str] | None = None) -> None:
    keep_freed_memory()
    with processes(), jobs.open_run(*parse(argv)).locked() as run:
        settled = {name: jobs.settle(run, name, *MODELS[name][1:3]) for name in run.models}  # all now: a mistake shows at once
        with reported(run):
            for name in run.models:
                MODELS[name][0](run, *settled[name])
            finish(run)


if __name__ == "__main__":
    one_line_errors(main)
