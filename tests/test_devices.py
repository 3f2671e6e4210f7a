"""Every tensor of a training step and of drawing stays on the model's device.

The meta device stands for a GPU: arithmetic on its tensors and the CPU's together raises. It has no
values, so there is no autocast, no bincount, and nothing to branch on.
"""

from contextlib import nullcontext

import pytest
import torch

import mindalle
import minclip
import minvqgan
from common.training.muon import balance, orthogonalise
from mindalle import unclip


@pytest.fixture
def away(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "bincount", lambda x, minlength: x.new_zeros(minlength))
    return "meta"


@pytest.mark.parametrize("loss", minclip.LOSSES)
def test_a_training_step_of_clip_stays_on_its_device(away, loss):
    config = minclip.CLIPConfig(vocab_size=50, context_length=8, loss=loss)
    model = minclip.CLIP(config).to(away)
    images, ids = torch.randn(4, 3, 32, 32).to(away), torch.randint(50, (4, 8)).to(away)
    same = minclip.same_caption(ids)
    minclip.LOSSES[loss].loss(model.logits(*model(images, ids)), same).backward()
    minclip.accumulated_backward(model, images, ids, 2, same)
    assert all(p.grad.is_meta for p in model.parameters())


@pytest.mark.parametrize("quantiser", minvqgan.QUANTISERS)
def test_a_training_step_of_vqgan_stays_on_its_device(away, quantiser):
    model = minvqgan.VQGAN(minvqgan.VQGANConfig(quantiser=quantiser)).to(away)
    discriminator = minvqgan.PatchGAN(layers=2).to(away)
    images = torch.randn(4, 3, 32, 32).to(away)
    reconstruction, quantised = model(images)
    loss, _ = minvqgan.generator_loss(
        images, reconstruction, quantised.loss, model.last_weight, discriminator, 0.8)
    loss.backward()
    minvqgan.discriminator_loss(discriminator, images, reconstruction).backward()
    assert all(p.grad.is_meta for p in discriminator.parameters()) and model.last_weight.grad.is_meta


def test_guiding_a_picture_stays_on_its_device(away):
    model = minvqgan.VQGAN(minvqgan.VQGANConfig()).to(away).eval()
    prompts, weights = torch.randn(2, 3).to(away), torch.ones(2).to(away)
    score = minvqgan.prompt_score(lambda images: images.mean(dim=(2, 3)), prompts, weights)
    for images in minvqgan.guide(model, score, steps=2, cutouts=2, cut_size=32, latent_noise=1.0):
        assert images.is_meta


@pytest.mark.parametrize("attention", ["full", "row,column,convolutional,full"])
def test_training_and_drawing_of_dalle_stay_on_its_device(away, attention):
    config = mindalle.DALLEConfig(text_vocab=50, image_vocab=64, text_length=8, grid=4, attention=attention)
    model = mindalle.DALLE(config).to(away)
    text, codes = torch.randint(50, (4, 8)).to(away), torch.randint(64, (4, 16)).to(away)
    dropped = mindalle.drop_captions(text, text[0], 0.5)
    mindalle.dalle_loss(*model(dropped, codes), dropped, codes, 0.125)[0].backward()
    assert all(p.grad.is_meta for p in model.parameters())
    options = {"temperature": 0.9, "top_k": 8, "top_p": 0.9}
    assert mindalle.generate(model.eval(), text, empty=text[0], guidance=1.5, **options).is_meta


def test_training_and_drawing_of_dalle_2_stay_on_its_device(away):
    prior = unclip.Prior(unclip.PriorConfig(layers=1)).to(away)
    decoder = unclip.Decoder(unclip.DecoderConfig()).to(away)
    z, images = torch.randn(4, 128).to(away), torch.randn(4, 3, 32, 32).to(away)
    read = (torch.randn(4, 16, 64).to(away), torch.ones(4, 16, dtype=torch.bool).to(away), z)
    for model, x, condition in ((prior, z, read), (decoder, images, (z,))):
        empty = tuple(part[0] for part in condition)
        t = unclip.random_times(4).to(away)
        noised = unclip.mix(x, torch.randn_like(x), t)
        dropped = unclip.drop_condition(condition, empty, 0.5)
        unclip.denoising_loss(model(noised, t, *dropped), x, t).backward()
        assert all(p.grad.is_meta for p in model.parameters())
        denoise, times = unclip.guided(model, condition, empty, 2.0), [0.0, 0.5, 1.0]
        assert unclip.sample(denoise, unclip.invert(denoise, x, times), times, eta=1.0).is_meta
    assert unclip.draw_embeddings(prior, read, empty=tuple(part[0] for part in read), steps=2).is_meta


def test_the_steps_of_muon_stay_on_their_device():
    updates = orthogonalise(torch.ones(2, 3, 4, device="meta"))
    assert balance(updates, list(torch.zeros(2, 3, 1, device="meta"))).is_meta
