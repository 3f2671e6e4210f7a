"""What DALL·E 2's prior and the layers that it shares with the decoder promise."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mindalle import InputError
from mindalle.unclip import Prior, PriorConfig, denoising_loss, draw_embeddings, even_times, guided, mix, random_times, sample
from mindalle.unclip.layers import Standardise, TimeEmbedding, sinusoids
from small_unclip import captions, new_decoder, new_prior, no_caption, normal, perturbed, rng


def test_a_time_is_described_by_cosines_and_sines_of_ever_lower_frequencies():
    steps = torch.tensor([0.0, 1.0, 250.0, 1000.0])
    expected = [[wave(step * 10_000 ** (-i / 4)) for wave in (math.cos, math.sin) for i in range(4)] for step in steps.tolist()]
    torch.testing.assert_close(sinusoids(steps, 8), torch.tensor(expected), rtol=0, atol=1e-4)


def test_a_time_embedding_tells_a_thousand_times_apart():
    torch.manual_seed(0)
    vectors = TimeEmbedding(16)(torch.arange(1001.0))
    assert vectors.shape == (1001, 16) and torch.pdist(vectors).min() > 0


def test_a_time_embedding_is_an_mlp_over_sinusoids():
    torch.manual_seed(0)
    embedding, steps = TimeEmbedding(16), torch.tensor([0.0, 3.5, 999.0])
    (first, _, second), waves = embedding, sinusoids(steps, 16)
    torch.testing.assert_close(embedding(steps), second(F.silu(first(waves))))


def test_standardising_gives_mean_0_and_std_1_and_can_be_inverted():
    z, standardise = 0.1 * normal(500, 6) * torch.arange(1, 7) + torch.arange(6), Standardise(6)
    assert standardise(z).equal(z)  # before it has seen any
    standardise.fit(z)
    standardised = standardise(z)
    torch.testing.assert_close(standardised.mean(dim=0), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(standardised.std(dim=0, correction=0), torch.ones(6))
    torch.testing.assert_close(standardise.inverse(standardised), z)


def test_standardising_does_not_scale_a_dimension_that_never_changes():
    standardise, z, other = Standardise(2), normal(50, 2), normal(50, 2, seed=1)
    z[:, 1] = 0.25
    standardise.fit(z)
    torch.testing.assert_close(standardise(other)[:, 1], other[:, 1] - 0.25)
    assert standardise(z).isfinite().all() and standardise(z)[:, 0].std(correction=0).item() == pytest.approx(1)
    torch.testing.assert_close(standardise.inverse(standardise(z)), z)


def test_standardising_survives_a_data_set_of_one_image():
    standardise = Standardise(2)
    standardise.fit(normal(1, 2))
    assert standardise(normal(1, 2)).isfinite().all()


@pytest.mark.parametrize("new, names", [(new_prior, ("standardise_image", "standardise_text")), (new_decoder, ("standardise",))])
def test_means_and_stds_are_saved_with_a_model_not_trained(new, names):
    model, other = new(), new()
    for name in names:
        getattr(model, name).fit(normal(20, 6, seed=3) + 4)
    other.load_state_dict(model.state_dict())
    assert all(getattr(other, name)(normal(2, 6)).equal(getattr(model, name)(normal(2, 6))) for name in names)
    assert not any("standardise" in name for name, _ in model.named_parameters())


# ----------------------------------------------------------------------------------------------------------------- prior


def test_what_stands_in_the_padding_never_matters():
    prior, (features, mask, z_t), x, t = perturbed(new_prior()), captions(3), normal(3, 6), torch.tensor([0.1, 0.5, 0.9])
    other = torch.where(rearrange(mask, "b t -> b t 1"), features, 100 * normal(3, 4, 5, seed=8))
    assert not other.equal(features)
    torch.testing.assert_close(prior(x, t, other, mask, z_t), prior(x, t, features, mask, z_t))
    longest = prior(x, t, other, torch.ones_like(mask), z_t)
    assert not longest[0].allclose(prior(x, t, features, mask, z_t)[0])  # the mask is what hides it


def test_how_long_the_padding_is_never_matters():
    prior, (features, mask, z_t), x, t = perturbed(new_prior()), captions(3), normal(3, 6), torch.tensor([0.1, 0.5, 0.9])
    longer, weights = new_prior(text_length=7), prior.state_dict()
    weights["positions"] = torch.cat([weights["positions"][:4], normal(3, 16, seed=8), weights["positions"][4:]])
    longer.load_state_dict(weights)
    padded = longer(x, t, torch.cat([features, normal(3, 3, 5, seed=8)], dim=1), F.pad(mask, (0, 3)), z_t)
    torch.testing.assert_close(padded, prior(x, t, features, mask, z_t))


def test_the_query_reads_tokens_caption_time_and_noised_embedding():
    prior, x, t = perturbed(new_prior()), normal(3, 6).requires_grad_(), torch.tensor([0.1, 0.5, 0.9], requires_grad=True)
    features, mask, z_t = captions(3)
    features.requires_grad_(), z_t.requires_grad_()
    prior(x, t, features, mask, z_t).square().sum().backward()
    assert all(inputs.grad.flatten(1).norm(dim=1).min() > 1e-4 for inputs in (x, z_t)) and t.grad.abs().min() > 1e-6
    assert ((features.grad.norm(dim=2) > 1e-5) == mask).all()
    assert all(parameter.grad.norm() > 1e-4 for parameter in prior.parameters())  # the query itself is one


@pytest.mark.parametrize("model, inputs", [
    (new_prior, (normal(4, 6), torch.rand(4, generator=rng()), *captions(4))),
    (new_decoder, (normal(4, 3, 16, 16), torch.rand(4, generator=rng()), normal(4, 6, seed=1))),
], ids=["prior", "decoder"])
def test_each_example_is_denoised_at_its_own_time_under_its_own_condition(model, inputs):
    model = perturbed(model())
    alone = torch.cat([model(*(part[i : i + 1] for part in inputs)) for i in range(4)])
    torch.testing.assert_close(model(*inputs), alone)


def test_no_token_of_the_prior_sees_a_later_one():
    prior, kept = perturbed(new_prior()), []
    prior.blocks[-1].register_forward_hook(lambda module, inputs, tokens: kept.append(tokens))
    features, _, z_t = (part.requires_grad_(part.is_floating_point()) for part in captions(1))
    x, t = normal(1, 6).requires_grad_(), torch.tensor([0.5], requires_grad=True)
    prior(x, t, features, torch.ones(1, 4, dtype=torch.bool), z_t)
    for i in range(8):  # four tokens, caption, time, noised embedding, query
        token = kept[0][0, i].square().sum()
        gradients = torch.autograd.grad(token, (features, z_t, t, x), retain_graph=True, materialize_grads=True)
        seen = [*(gradients[0][0].norm(dim=1) > 0).tolist(), *(bool(gradient.any()) for gradient in gradients[1:])]
        assert seen == [j <= i for j in range(7)]


def test_the_prior_reads_the_order_of_the_tokens():
    prior, (features, _, z_t), x, t = perturbed(new_prior()), captions(2), normal(2, 6), torch.rand(2, generator=rng())
    mask = torch.ones(2, 4, dtype=torch.bool)
    assert not prior(x, t, features[:, [1, 0, 2, 3]], mask, z_t).allclose(prior(x, t, features, mask, z_t), atol=1e-3)


def test_every_token_of_the_prior_has_a_position_of_its_own():
    prior, inputs = perturbed(new_prior()), (normal(2, 6), torch.rand(2, generator=rng()), *captions(2))
    before = prior(*inputs)
    for place in (0, 1, 4, 5, 6, 7):  # the first two tokens, which all captions have, then what follows the padding
        changed = copy.deepcopy(prior)
        changed.positions.data[place] += 1 + torch.arange(16) % 3
        assert not changed(*inputs).allclose(before, atol=1e-3)


def test_the_prior_standardises_the_caption_and_scales_back_what_it_draws():
    prior, other, (features, mask, z_t) = perturbed(new_prior()), perturbed(new_prior()), captions(3)
    mean, std = normal(6, seed=4), 0.5 + torch.rand(6, generator=rng())
    other.standardise_text.mean.copy_(mean), other.standardise_text.std.copy_(std)
    x, t = normal(3, 6), torch.rand(3, generator=rng())
    torch.testing.assert_close(other(x, t, features, mask, z_t * std + mean), prior(x, t, features, mask, z_t))

    draw = functools.partial(draw_embeddings, condition=(features, mask, z_t), empty=no_caption(), steps=4, candidates=1)
    standardised = draw(prior, generator=rng())
    prior.standardise_image.mean.copy_(mean), prior.standardise_image.std.copy_(std)
    torch.testing.assert_close(draw(prior, generator=rng()), standardised * std + mean)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("b", [1, 3])
def test_of_the_candidates_the_one_closest_to_the_caption_is_kept(b, guidance):
    prior, condition, empty = perturbed(new_prior()), captions(b), no_caption()
    prior.standardise_image.fit(normal(20, 6, seed=3) + 0.3)
    drawn = draw_embeddings(prior, condition, empty, steps=6, guidance=guidance, candidates=5, generator=rng())
    many, generator = [torch.repeat_interleave(part, 5, dim=0) for part in condition], rng()
    noise = torch.randn(5 * b, 6, generator=generator)
    z = prior.standardise_image.inverse(sample(guided(prior, many, empty, guidance), noise, even_times(6), 1.0, generator))
    choices = []
    for i in range(b):
        cosines = [F.cosine_similarity(z[5 * i + k], condition[2][i], dim=0).item() for k in range(5)]
        choices.append(cosines.index(max(cosines)))
        assert max(cosines) - sorted(cosines)[-2] > 1e-4  # no tie that rounding decides
        torch.testing.assert_close(drawn[i], z[5 * i + choices[-1]])
    assert b == 1 or len(set(choices)) > 1


def test_embeddings_are_bounded_where_guidance_leads_further():
    prior = new_prior()
    prior.out.bias.data.copy_(torch.tensor([99.0, -99, 9, 0, 10, 11]))
    z = draw_embeddings(prior, captions(2), no_caption(), steps=3, generator=rng())
    torch.testing.assert_close(z, torch.tensor([10.0, -10, 9, 0, 10, 10]).expand(2, 6))


def test_embeddings_are_drawn_in_25_steps_of_ddpm_of_two_candidates():
    prior, condition, empty = perturbed(new_prior()), captions(2), no_caption()
    spelled = draw_embeddings(prior, condition, empty, steps=25, eta=1.0, guidance=1.0, candidates=2, generator=rng())
    assert draw_embeddings(prior, condition, empty, generator=rng()).equal(spelled) and not spelled.requires_grad
    for change in (dict(steps=24), dict(eta=0.5), dict(guidance=1.5), dict(candidates=3)):
        assert not draw_embeddings(prior, condition, empty, **change, generator=rng()).allclose(spelled, atol=1e-4)


@functools.cache
def taught() -> tuple[Prior, tuple[Tensor, Tensor, Tensor], Tensor]:
    """Train a prior for which either of two captions fits two opposite embeddings -> it, the captions, embeddings (2 2 e)."""
    torch.manual_seed(0)
    prior = Prior(PriorConfig(embed_dim=2, token_width=2, text_length=1, width=32, layers=1, heads=2))
    embeddings = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]])
    features, mask, z_t = torch.eye(2)[:, None], torch.ones(2, 1, dtype=torch.bool), torch.tensor([[1.0, 0.1], [0.1, -1.0]])
    prior.standardise_image.fit(embeddings.flatten(0, 1))
    optimiser = torch.optim.Adam(prior.parameters(), 5e-3)
    for step in range(300):
        which, either = torch.randint(2, (2, 128))
        x = prior.standardise_image(embeddings[which, either])
        t = random_times(128)
        loss = denoising_loss(prior(mix(x, torch.randn_like(x), t), t, features[which], mask[which], z_t[which]), x, t)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return prior, (features, mask, z_t), embeddings


def test_of_two_fitting_embeddings_the_prior_draws_either_not_their_mean():
    prior, condition, embeddings = taught()
    many = tuple(torch.repeat_interleave(part, 100, dim=0) for part in condition)
    z = draw_embeddings(prior, many, tuple(part[0] for part in condition), candidates=1, generator=rng())
    for caption, drawn in enumerate(z.chunk(2)):
        apart = torch.cdist(drawn, embeddings[caption])                                      # (100 2)
        assert (apart.amin(dim=1) < 0.3).float().mean() > 0.9                                # their mean is 1 from both
        assert 0.3 < apart.argmin(dim=1).float().mean() < 0.7


def test_of_many_candidates_the_embedding_closest_to_the_caption_is_kept():
    prior, condition, embeddings = taught()
    z = draw_embeddings(prior, condition, tuple(part[0] for part in condition), candidates=16, generator=rng())
    torch.testing.assert_close(z, torch.stack([embeddings[0, 0], embeddings[1, 1]]), rtol=0, atol=0.3)


@pytest.mark.parametrize("name", ["embed_dim", "token_width", "text_length", "width", "layers", "heads"])
@pytest.mark.parametrize("value", [0, -2, 1.5, "4"])
def test_a_priors_size_that_is_no_whole_number_is_refused(name, value):
    with pytest.raises(InputError, match=f"^{name} is {value!r}: make it"):
        PriorConfig(**{name: value})


@pytest.mark.parametrize("nonsense, message", [
    (dict(width=130), "width is 130.* 4 heads"), (dict(width=15, heads=5), "width is 15: make it even"),
    (dict(schedule="sine"), "schedule 'sine'"),
])
def test_a_prior_that_cannot_be_built_is_refused_by_name(nonsense, message):
    with pytest.raises(InputError, match=message):
        PriorConfig(**nonsense)
