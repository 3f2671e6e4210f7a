"""What every quantiser must do: whoever adds one to QUANTISERS has these tests for nothing."""

import copy
import dataclasses

import pytest
import torch
from einops import rearrange
from small_vqgan import SMALL, pictures, redness, save, seeded, step
from torch import nn

from minvqgan import (QUANTISERS, VQGAN, InputError, Quantised, VQGANConfig, generator_loss, guide,
                      load, reconstruction_loss, straight_through)


@pytest.fixture(params=sorted(QUANTISERS))
def new(request) -> VQGAN:
    """A small VQGAN in training mode, of the default codebook_size and codebook_dim."""
    torch.manual_seed(0)
    return VQGAN(VQGANConfig(quantiser=request.param, image_size=16, channels=8,
                             multipliers=(1, 2), z_channels=16))


@pytest.fixture
def begun(new) -> VQGAN:
    """The same after one training batch, in eval mode."""
    new(pictures(8))
    return new.eval()


@pytest.mark.parametrize("training", [True, False])
def test_codes_are_int64_and_in_range_one_for_each_position(new, training):
    codes = new.train(training)(pictures())[1].codes
    assert codes.shape == (4, 8, 8) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < new.config.codebook_size


def test_decoding_the_codes_gives_the_reconstruction_of_eval_mode(begun):
    reconstruction, quantised = begun(pictures())
    codes = begun.encode(pictures())
    assert torch.equal(codes, quantised.codes) and len(codes.unique()) > 1
    assert torch.allclose(begun.codebook.lookup(codes), quantised.z_q, atol=1e-6)
    assert torch.allclose(begun.decode(codes), reconstruction, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_of_the_reconstruction_reaches_the_latents(begun, training):
    z = begun.train(training).latents(pictures()).detach().requires_grad_()
    begun.decode_latents(begun.codebook(z).z_q).square().sum().backward()
    assert z.grad.isfinite().all() and z.grad.abs().sum() > 0


def test_clamped_latents_keep_their_shape_and_can_be_quantised(begun):
    z = 100 * torch.randn(2, begun.config.codebook_dim, 8, 5, generator=seeded())
    clamped = begun.codebook.clamp(z)
    assert clamped.shape == z.shape and clamped.isfinite().all()
    assert begun.codebook(clamped).codes.shape == (2, 8, 5)


def test_eval_mode_changes_no_weight_and_no_buffer(begun):
    before = {key: tensor.clone() for key, tensor in begun.state_dict().items()}
    begun(pictures()), begun.decode(begun.encode(pictures()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in begun.state_dict().items())


def test_a_saved_model_loads_with_the_same_codes_and_images(begun, tmp_path):
    save(tmp_path / "vqgan.pt", begun)
    again, codes = load(tmp_path / "vqgan.pt"), begun.encode(pictures())
    assert again.config == begun.config and torch.equal(again.encode(pictures()), codes)
    assert torch.equal(again.decode(codes), begun.decode(codes))


def test_thirty_steps_learn_one_batch_and_guide_moves_towards_a_score(new):
    optimiser = torch.optim.Adam(new.parameters(), 3e-3)
    before = reconstruction_loss(pictures(), new(pictures())[0]).item()
    for i in range(30):
        if hasattr(new.codebook, "anneal"):
            new.codebook.anneal(i / 30)
        step(new, optimiser, pictures())
    assert reconstruction_loss(pictures(), new.eval()(pictures())[0]).item() < before / 2
    first, *_, last = guide(new, redness, steps=20, cutouts=4, cut_size=8, generator=seeded())
    assert redness(last).item() > redness(first).item() + 0.1


def test_one_training_step_changes_the_encoder(new):
    before = {key: p.detach().clone() for key, p in new.encoder.named_parameters()}
    step(new, torch.optim.SGD(new.parameters(), 0.1), pictures())
    assert not any(torch.equal(p, before[key]) for key, p in new.encoder.named_parameters())


def test_a_resumed_run_is_bit_for_bit_the_run_that_went_on(new):
    optimiser = torch.optim.Adam(new.parameters(), 1e-3)
    for _ in range(2):
        step(new, optimiser, pictures())
    resumed = VQGAN(new.config)
    resumed.load_state_dict(new.state_dict())
    optimiser2 = torch.optim.Adam(resumed.parameters(), 1e-3)
    optimiser2.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for model, its_optimiser in ((new, optimiser), (resumed, optimiser2)):
        torch.manual_seed(1)
        for _ in range(3):
            step(model, its_optimiser, pictures())
    pairs = zip(new.state_dict().values(), resumed.state_dict().values())
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_under_bf16_autocast_the_loss_is_finite_and_float32(new):
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, quantised = new(pictures())
        loss, _ = generator_loss(pictures(), reconstruction.float(), quantised.loss,
                                 new.last_weight)
    loss.backward()
    assert quantised.loss.dtype == loss.dtype == quantised.z_q.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in new.parameters())


def test_bf16_autocast_changes_no_code_of_the_same_latents(begun):
    z, book = begun.latents(pictures(16)).detach(), begun.codebook
    codes = book(z).codes
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(book(z).codes, codes)
        z_q = book.lookup(codes)
    assert torch.equal(z_q, book.lookup(codes))


class Signs(nn.Module):
    """Quantise each channel to -1 or 1, with the methods that codebook.py asks for."""

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("places", 2 ** torch.arange(dim))

    def forward(self, z):
        codes = torch.einsum("bzhw,z->bhw", (z > 0).long(), self.places)
        return Quantised(straight_through(z, self.lookup(codes)), codes, z.new_zeros(()))

    def lookup(self, codes):
        bits = rearrange(codes, "b h w -> b 1 h w") & rearrange(self.places, "z -> z 1 1")
        return (bits > 0).float() * 2 - 1

    def clamp(self, z):
        return z.clamp(-1, 1)


def test_another_quantiser_needs_one_line_in_the_table(monkeypatch):
    with pytest.raises(InputError, match="one of nearest, gumbel, fsq"):
        VQGANConfig(quantiser="signs")
    monkeypatch.setitem(QUANTISERS, "signs", lambda config: Signs(config.codebook_dim))
    model = VQGAN(dataclasses.replace(SMALL, quantiser="signs"))
    reconstruction, quantised = model(pictures())
    (reconstruction.sum() + quantised.loss).backward()
    assert isinstance(model.codebook, Signs)
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert torch.allclose(model.decode(model.encode(pictures())), reconstruction, atol=1e-5)
    list(guide(model.eval(), redness, steps=1, cutouts=2, cut_size=8))
