"""What all of mindalle.unclip promises: dropped conditions, no hidden state, and that prior and decoder work together."""

import copy

import pytest
import torch
import torch.nn.functional as F
from einops import reduce, repeat

from mindalle.unclip import (
    Decoder, DecoderConfig, Prior, PriorConfig, denoising_loss, draw_embeddings, drop_condition, edit, even_times, guided, interpolate,
    invert, mix, random_times, sample, slerp, variations,
)
from mindalle.unclip.diffusion import SCHEDULES
from small_unclip import (
    TIMES_64, ClosedForm, Recorder, captions, gaussian, images_and_embeddings, new_decoder, new_prior, no_caption, normal, perturbed,
    rng,
)


# ---------------------------------------------------------------------------------------------------- dropped conditions


def test_a_dropped_caption_changes_nothing():
    prior, x, t = perturbed(new_prior()), normal(3, 6), torch.tensor([0.1, 0.5, 0.9])
    one, other = (drop_condition(captions(3, seed=seed), no_caption(), 1.0) for seed in (5, 20))
    assert prior(x, t, *one).equal(prior(x, t, *other))
    assert not prior(x, t, *captions(3, seed=5)).allclose(prior(x, t, *one), atol=1e-3)


def test_a_dropped_embedding_changes_nothing():
    decoder, x, t = perturbed(new_decoder()), normal(3, 3, 16, 16), torch.tensor([0.1, 0.5, 0.9])
    one, other = (drop_condition((normal(3, 6, seed=seed),), (decoder.empty,), 1.0) for seed in (5, 20))
    assert decoder(x, t, *one).equal(decoder(x, t, *other))
    assert not decoder(x, t, normal(3, 6, seed=5)).allclose(decoder(x, t, *one), atol=1e-3)


# ---------------------------------------------------------------------------------------------------------------- purity

IMAGES, Z, NOISE = images_and_embeddings(2)
T = torch.tensor([0.2, 0.7])
CALLS = {
    "mix": lambda g, *args: mix(*args), "denoising_loss": lambda g, *args: denoising_loss(*args),
    "drop_condition": lambda g, *args: torch.cat([part.flatten(1).float() for part in drop_condition(*args)], dim=1),
    "guided": lambda g, *args: guided(Recorder(), args[2:4], args[4:], 2.0)(*args[:2]),
    "sample": lambda g, *args: sample(gaussian(1.0, 0.5), *args, 0.5, g), "invert": lambda g, *args: invert(gaussian(1.0, 0.5), *args),
    "slerp": lambda g, *args: slerp(*args), "variations": lambda g, *args: variations(ClosedForm(), *args, generator=g),
    "interpolate": lambda g, *args: interpolate(ClosedForm(), *args), "edit": lambda g, *args: edit(ClosedForm(), *args),
    "prior": lambda g, *args: perturbed(new_prior())(*args), "decoder": lambda g, *args: perturbed(new_decoder())(*args),
    "draw_embeddings": lambda g, *args: draw_embeddings(perturbed(new_prior()), *args, steps=3, guidance=2.0, generator=g),
    **{schedule: lambda g, *args, schedule=schedule: SCHEDULES[schedule](*args)[0] for schedule in SCHEDULES},
}
ARGUMENTS = {
    "mix": (IMAGES, NOISE, T), "denoising_loss": (IMAGES, NOISE, T), "drop_condition": (captions(2), no_caption(), 0.5),
    "guided": (normal(2, 6), T, normal(2, 6), normal(2, 6) > 0, normal(6), normal(6) > 0),
    "sample": (NOISE, TIMES_64), "invert": (IMAGES, TIMES_64), "slerp": (Z[0], Z[1], T), "variations": (IMAGES[:1], Z[:1], 3, TIMES_64),
    "interpolate": (IMAGES, Z, 3, TIMES_64), "edit": (IMAGES[:1], Z[:1], normal(6), normal(6, seed=1), T, TIMES_64),
    "prior": (normal(2, 6), T, *captions(2)), "decoder": (normal(2, 3, 16, 16), T, normal(2, 6)),
    "draw_embeddings": (captions(2), no_caption()), **{schedule: (IMAGES, T) for schedule in SCHEDULES},
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_seed_gives_the_same_result_and_no_argument_is_changed(name):
    arguments = copy.deepcopy(ARGUMENTS[name])
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(CALLS[name](rng(3), *arguments))
    assert results[0].equal(results[1])
    torch.testing.assert_close(arguments, ARGUMENTS[name], rtol=0, atol=0)


def test_a_generator_of_its_own_leaves_the_global_one_alone():
    prior, before = perturbed(new_prior()), torch.random.get_rng_state()
    random_times(3, generator=rng())
    sample(gaussian(0.0, 1.0), normal(2, 2), even_times(3), 1.0, rng())
    variations(ClosedForm(), IMAGES[:1], Z[:1], 2, even_times(3), generator=rng())
    draw_embeddings(prior, captions(2), no_caption(), steps=2, generator=rng())
    assert torch.random.get_rng_state().equal(before)


# ------------------------------------------------------------------------------------------------------------ both parts


def trained_on(model, x, condition, empty, steps):
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        indices = torch.randint(len(x), (64,))
        t, noise = random_times(64), torch.randn_like(x[indices])
        given = drop_condition(tuple(part[indices] for part in condition), empty, 0.1)
        loss = denoising_loss(model(mix(x[indices], noise, t), t, *given), x[indices], t)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def test_z_i_draws_better_than_z_t_and_that_than_anothers():
    """A world of four captions: each a direction in which its images' embeddings scatter, with a colour of its own.

    Text has a direction that images lack, as in CLIP, where the two kinds of embeddings lie apart.
    """
    torch.manual_seed(0)
    caption = torch.arange(1024) % 4
    classes, gap = F.normalize(torch.randn(4, 16), dim=-1), F.normalize(torch.randn(16), dim=-1)
    z = F.normalize(classes[caption] + 0.15 * torch.randn(1024, 16), dim=-1)
    z_t = F.normalize(classes + 1.5 * gap, dim=-1)[caption]
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])
    images = repeat(colours[caption], "b c -> b c h w", h=4, w=4) + 0.05 * torch.randn(1024, 3, 4, 4)
    features, mask = torch.eye(4)[caption].unsqueeze(1), torch.ones(1024, 1, dtype=torch.bool)

    prior = Prior(PriorConfig(embed_dim=16, token_width=4, text_length=1, width=32, layers=1, heads=2))
    prior.standardise_image.fit(z)
    read, empty = (features, mask, z_t), (torch.zeros(1, 4), mask[0], torch.zeros(16))
    trained_on(prior, prior.standardise_image(z), read, empty, 300)
    decoder = Decoder(DecoderConfig(image_size=4, embed_dim=16, channels=16, multipliers=(1,), heads=2, condition_width=32))
    decoder.standardise.fit(z)
    trained_on(decoder, images, (z,), (decoder.empty,), 220)

    def right(z):
        drawn = sample(guided(decoder, (z,), (decoder.empty,), 1), torch.randn(len(z), 3, 4, 4), even_times(8))
        error = (reduce(drawn, "b c h w -> b 1 c", "mean") - colours).square().sum(-1)       # (b 4)
        return ((error.argmin(1) == caption[: len(z)]) & (error.amin(1) < 0.1)).float().mean().item()

    with torch.no_grad():
        by_prior = right(draw_embeddings(prior, tuple(part[:128] for part in read), empty, steps=16))
        by_text, by_another = right(z_t[:128]), right(z[:128].roll(1, 0))
    assert right(z[:128]) > 0.95 and by_prior > 0.9 and by_prior > by_text + 0.1 > by_another + 0.2, (by_prior, by_text, by_another)
