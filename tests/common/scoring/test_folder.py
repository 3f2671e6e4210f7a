"""The figures of a run on any pictures: each on sets so small, or made so, that its right value is known."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from common.scoring import classifier
from common.scoring import comparison
from common.scoring import folder as picture_scores
from common.drawing.dalle import Drawing
from mindalle import DALLE, DALLEConfig


class Pictures:
    """Images (n 3 h w) with their captions, as a Dataset serves them."""

    def __init__(self, images, captions):
        self.images, self.captions = images, captions

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[torch.as_tensor(indices)]


def normal(n, f, seed, mean=0.0, scale=1.0):
    return mean + scale * torch.randn(n, f, generator=torch.Generator().manual_seed(seed))


def noise(n, seed, side=8):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def stripes(n, seed, side=16):
    """Pictures of two classes, stripes that run across or down, shifted and noisy."""
    rng = torch.Generator().manual_seed(seed)
    down = torch.randint(2, (n,), generator=rng).bool()
    phase = torch.randint(4, (n, 1), generator=rng)
    wave = ((torch.arange(side) + phase) % 4 < 2).float() * 2 - 1
    images = torch.where(down[:, None, None], wave[:, None, :], wave[:, :, None])[:, None].expand(n, 3, side, side)
    captions = [["down"] if d else ["across"] for d in down.tolist()]
    return Pictures((images + 0.3 * torch.randn(images.shape, generator=rng)).clamp(-1, 1), captions)


# ---- CLIP -------------------------------------------------------------------------------------------------------------


def test_a_text_is_right_for_every_picture_that_has_it_among_its_captions():
    right = picture_scores.right_captions([["a", "b"], ["b"], ["c", "a"]])
    assert right.tolist() == [[True, True, False], [False, True, False], [True, False, True]]


@pytest.mark.parametrize("k", [1, 3, 20])
def test_chance_of_recall_is_what_random_orders_reach(k):
    right = picture_scores.right_captions([["a", *"bcdefgh"], *([letter] for letter in "bcdefgh")])  # a picture that all fit
    rng, hits, trials = random.Random(0), [0, 0], 4000
    for _ in range(trials):
        for way, rows in enumerate((right, right.T)):
            row = rows[rng.randrange(8)].tolist()
            hits[way] += any(rng.sample(row, min(k, 8)))
    expected = picture_scores.recall_chance(right, k)
    assert [h / trials for h in hits] == pytest.approx(expected, abs=0.03)


def test_zero_shot_counts_any_caption_of_a_picture_and_its_chance_does_too():
    texts, images = torch.eye(4), torch.eye(4)[[0, 1, 3]] * 5
    captions = [["a", "b"], ["a", "b"], ["c"]]  # found: a, b, d
    value, chance = picture_scores.zero_shot(images, texts, ["a", "b", "c", "d"], captions)
    assert value == pytest.approx(2 / 3) and chance == pytest.approx((2 + 2 + 1) / 3 / 4)


# ---- DALL·E -----------------------------------------------------------------------------------------------------------


class Reader(DALLE):
    """A model that knows all codes from the caption: code 1 where its second token is 1, likely by a factor of e^4."""

    def forward(self, text, codes):
        logits = torch.zeros(len(text), self.config.image_length, self.config.image_vocab)
        logits[text[:, 1] == 1, :, 1] = 4.0
        return torch.zeros(len(text), text.shape[1] - 1, self.config.text_vocab), logits


def test_nats_are_ln_v_for_a_guess_and_fall_by_what_a_caption_tells():
    model = Reader(DALLEConfig(text_vocab=8, image_vocab=16, text_length=4, grid=2, width=8, layers=1, heads=1))
    text = torch.tensor([[0, 1, 0, 0]]).expand(100, 4)  # more than one batch, the last smaller
    codes = torch.ones(100, 2, 2, dtype=torch.long)
    codes[:25] = 5  # a quarter is not as captioned: an average over batches instead of pictures would give another value
    said, other = -4 + math.log(math.exp(4) + 15), math.log(math.exp(4) + 15)
    assert picture_scores.nats_per_code(model, text, codes) == pytest.approx(0.75 * said + 0.25 * other, rel=1e-5)
    assert picture_scores.nats_per_code(model, torch.zeros_like(text), codes) == pytest.approx(math.log(16), rel=1e-5)


def test_the_caption_tells_the_difference_of_the_nats_with_it_and_without(monkeypatch):
    model = Reader(DALLEConfig(text_vocab=8, image_vocab=16, text_length=4, grid=2, width=8, layers=1, heads=1))

    def encode(name, tokenizer, texts, length):
        return torch.tensor([[0, text == "one", 0, 0] for text in texts]).long()

    models, figures = SimpleNamespace(dalle=lambda: (model, None), encode=encode), {}
    picture_scores.score_likelihood(models, lambda name, value, *_, **__: figures.update({name: value}), [["one", "two"]] * 3,
                                    torch.ones(3, 2, 2, dtype=torch.long))
    told = figures["nats told by caption"]
    assert told == pytest.approx(figures["nats a code, no caption"] - figures["nats a code"]) and told > 1


# ---- Classifier -------------------------------------------------------------------------------------------------------


def test_captions_are_classes_if_few_and_each_with_pictures_enough_and_one_for_each_picture():
    def classes(captions):
        return picture_scores.class_names(SimpleNamespace(captions=captions))

    assert classes([["b"], ["a"]] * 8) == ["a", "b"]
    assert classes([["b"], ["a"]] * 7) is None  # too few pictures
    assert classes([["a"]] * 100) is None  # nothing to tell apart
    assert classes([["b"], ["a", "c"]] * 50) is None  # descriptions
    assert classes([[str(i)] for i in range(201)] * 8) is None and len(classes([[str(i)] for i in range(200)] * 8)) == 200


def test_the_classifier_learns_stripes_and_names_new_ones_of_any_size(monkeypatch):
    monkeypatch.setattr(classifier, "MOST_STEPS", 20)
    state = torch.get_rng_state()
    model = classifier.train_classifier(stripes(200, 0), ["across", "down"], 0, 10)
    new = stripes(100, 1)
    assert picture_scores.accuracy(model.predict(new.images), new.captions) >= 0.98
    larger = torch.nn.functional.interpolate(new.images, scale_factor=3)
    assert picture_scores.accuracy(model.predict(larger), new.captions) >= 0.98
    assert model.features(larger).shape == (100, 128) and not model.training
    assert torch.equal(state, torch.get_rng_state())


def test_the_classifier_stops_when_its_time_is_over(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(classifier.time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(classifier, "Progress", lambda what: lambda *_: None)
    monkeypatch.setattr(classifier, "MOST_STEPS", 10**6)
    classifier.train_classifier(stripes(8, 0, side=8), ["across", "down"], 0, 3)
    assert next(ticks) == 4  # the start, and one look after each of three steps


# ---- Two sets ---------------------------------------------------------------------------------------------------------


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    """Whitened samples have exactly the moments asked for; here the covariances do not commute."""
    x = normal(500, 2, 0).double()
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    a, b = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([[1.5, 0.5], [0.5, 1.0]]).double()  # square roots
    mean = torch.tensor([3.0, 4.0]).double()
    A, B = a @ a, b @ b
    product = torch.linalg.eigvals(A @ B).real.sqrt().sum()  # tr (A^½ B A^½)^½ another way
    expected = 25 + A.trace() + B.trace() - 2 * product
    assert comparison.frechet_distance(x @ a, x @ b + mean) == pytest.approx(expected.item(), rel=1e-9)
    assert comparison.frechet_distance(x @ b + mean, x @ a) == pytest.approx(expected.item(), rel=1e-9)


def test_the_frechet_distance_is_0_for_equal_sets_of_fewer_pictures_than_features():
    x = normal(20, 64, 0)
    assert comparison.frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-5)
    assert comparison.frechet_distance(x, normal(20, 64, 1)) > 1


def test_precision_and_recall_of_equal_disjoint_and_collapsed_sets():
    true, other = normal(200, 4, 0), normal(200, 4, 1)
    assert comparison.covered(true, true) == 1
    assert comparison.covered(true, normal(200, 4, 2, mean=50)) == 0
    assert comparison.covered(other, true) > 0.7 and comparison.covered(true, other) > 0.7
    collapsed = true[:1] + normal(200, 4, 3, scale=1e-3)  # all alike, and good
    assert comparison.covered(collapsed, true) == 1  # precision
    assert comparison.covered(true, collapsed) < 0.05  # recall


def test_a_sphere_reaches_to_the_third_nearest_of_the_others():
    by = torch.tensor([[0.0], [1.0], [2.0], [4.0], [100.0]])  # the third nearest of 0 is 4, of 4 is 0, of 100 is 1
    points = torch.tensor([[-4.0], [-4.1], [8.0], [8.1], [199.0], [199.1]])
    inside = [comparison.covered(point[None], by) for point in points]
    assert inside == [1, 0, 1, 1, 1, 0]  # 8.1 lies in the sphere around 100, which reaches to 1


def test_the_two_closest_training_pictures_are_found_across_batches_with_exact_distances(monkeypatch):
    monkeypatch.setattr(comparison, "BATCH", 7)
    train = Pictures(noise(40, 0), [[str(i)] for i in range(40)])
    train.images[20] = train.images[33] - 0.5  # the second closest, in an earlier batch
    train.images[39] = train.images[2] + 1
    asked = torch.stack([train.images[33], train.images[2] + 0.25])
    gaps, indices = comparison.closest(asked, train)
    assert indices.tolist() == [[33, 20], [2, 39]]
    assert gaps[0, 0] == 0 and gaps.flatten()[1:].tolist() == pytest.approx([0.25, 0.0625, 0.5625], rel=1e-5)


def test_the_closest_is_not_the_brightest_and_a_pattern_finer_than_32_pixels_does_not_count():
    shape = noise(1, 0, 64)
    train = Pictures(torch.cat([shape, 0.1 * shape + 0.01]), [["bright"], ["dim"]])
    assert comparison.closest(0.1 * shape, train)[1].tolist() == [[1, 0]]
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2 - 0.5
    gaps, _ = comparison.closest(shape + checks, train)
    assert gaps[0, 0] < 0.01
    gaps, _ = comparison.closest(shape + checks, train, side=64)
    assert gaps[0, 0].item() == pytest.approx(0.25)


def test_copies_are_closer_and_stand_out_smooth_pictures_are_only_closer_and_new_ones_are_neither():
    train, new = Pictures(noise(200, 0), [["x"]] * 200), noise(101, 1)
    true, _ = comparison.closest(new, train)

    def figures(drawn):
        near, _ = comparison.closest(drawn, train)
        return [comparison.share_below(near[:, 0], true[:, 0]),
                comparison.share_below(comparison.standing_out(near), comparison.standing_out(true))]

    assert figures(train.images[:50] + 0.01) == [1, 1] and figures(train.images[:50]) == [1, 1]
    assert figures(noise(100, 2)) == pytest.approx([0.5, 0.5], abs=0.15) and figures(new) == pytest.approx([0.5, 0.5], abs=0.01)
    assert figures(2 * new)[0] == 0
    closer, copied = figures(0.2 * noise(100, 2))
    assert closer == 1 and copied < 0.7


def test_a_copy_of_a_training_picture_that_is_there_twice_stands_out():
    assert comparison.standing_out(torch.tensor([[0.0, 0.0], [0.1, 0.2], [0.3, 0.3]])).tolist() == pytest.approx([0, 0.5, 1])


# ---- All together -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(classifier, "MOST_STEPS", 20)


def drawings_scored(monkeypatch, drawn, train, held_out, count=64, draws=32, clip=False, seeds=None):
    """Score drawings: captions -> images (b 3 h w), by a run that has nothing but a DALL·E, or a CLIP too."""
    def generate(models, captions, how, seed):
        if seeds is not None:
            seeds.append(seed)
        return drawn(captions), None

    monkeypatch.setattr(picture_scores, "generate_images", generate)
    models = SimpleNamespace(device="cpu", has=lambda name: name == "dalle" or clip and name == "clip")
    models.embed_images, models.embed_text = lambda x: x.mean(dim=3).flatten(1), lambda texts: torch.randn(len(texts), 24)
    figures, sheets = {}, {}
    picture_scores.score(models, lambda name, value, note="", percent=True: figures.update({name: value}),
                         lambda name, picture: sheets.update({name: picture}), train, held_out, Drawing(), count, draws, 0)
    return figures, sheets


def test_new_pictures_of_the_class_asked_for_score_as_true_ones_do(monkeypatch, fast):
    new = stripes(400, 2)
    where = {name: [i for i, own in enumerate(new.captions) if own == [name]] for name in ("across", "down")}
    drawn = lambda captions: new.batch([where[caption][i] for i, caption in enumerate(captions)])  # noqa: E731
    figures, sheets = drawings_scored(monkeypatch, drawn, stripes(200, 0), stripes(100, 1))
    assert figures["read back"] == figures["read back true pictures"] == 1
    assert figures["frechet distance"] < 3 * figures["frechet floor"]
    assert figures["precision"] > 0.5 and figures["recall"] > 0.5 and 0.2 < figures["copied"] < 0.8
    assert isinstance(sheets["copied"], Image.Image)


def test_one_picture_drawn_over_and_over_has_no_variety_and_a_copy_of_a_training_picture_is_told(monkeypatch, fast):
    train = stripes(200, 0)
    drawn = lambda captions: train.images[:1].expand(len(captions), -1, -1, -1)  # noqa: E731
    figures, _ = drawings_scored(monkeypatch, drawn, train, stripes(100, 1))
    assert figures["recall"] == 0 and figures["copied"] == 1 and 0.2 < figures["read back"] < 0.8
    assert figures["frechet distance"] > 3 * figures["frechet floor"]


def test_descriptions_are_compared_in_clips_embeddings_and_not_read_back(monkeypatch):
    train = Pictures(noise(100, 0), [[f"picture {i}"] for i in range(100)])
    held_out = Pictures(noise(100, 1), [[f"other {i}"] for i in range(100)])
    asked, seeds = [], []

    def drawn(captions):
        asked.extend(captions)
        return noise(len(captions), len(asked))

    figures, _ = drawings_scored(monkeypatch, drawn, train, held_out, draws=100, clip=True, seeds=seeds)
    assert seeds == [0]
    assert "read back" not in figures and figures["frechet distance"] < 3 * figures["frechet floor"]
    assert "recall@5 image to text" in figures and figures["zero-shot"] < 0.2  # of exactly 200 captions less those not looked at
    assert len(set(asked)) == 64 and len(asked) == 100 and asked[:36] == asked[64:]  # all that are looked at, then over again


def test_held_out_pictures_are_drawn_at_random_as_a_folder_lists_them_by_class(monkeypatch, fast):
    new = stripes(200, 1)
    order = sorted(range(200), key=lambda i: new.captions[i])
    by_class, asked = Pictures(new.batch(order), [new.captions[i] for i in order]), []
    drawn = lambda captions: asked.extend(captions) or noise(len(captions), 3, 16)  # noqa: E731
    drawings_scored(monkeypatch, drawn, stripes(100, 0), by_class)
    assert 8 < asked.count("down") < 24


def test_dalle_2_draws_by_way_of_its_prior_where_all_three_models_are_there(monkeypatch):
    monkeypatch.setattr(picture_scores, "draw_embeddings", lambda models, captions, seed: torch.full((len(captions), 2), seed))
    monkeypatch.setattr(picture_scores, "draw", lambda models, z, how, seed: torch.full((len(z), 3, 2, 2), float(z[0, 0])))
    there = {"clip", "prior", "decoder"}
    models = SimpleNamespace(has=lambda name: name in there)
    drawings = picture_scores.draw_all(models, ["a"] * 70, Drawing(), 5)
    assert list(drawings) == ["unclip "] and drawings["unclip "][:, 0, 0, 0].tolist() == [5] * 70
    there.remove("prior")
    assert picture_scores.draw_all(models, ["a"] * 70, Drawing(), 5) == {}


def test_where_too_few_pictures_are_held_out_the_distances_are_left_out_in_a_line(monkeypatch, capsys, fast):
    figures, _ = drawings_scored(monkeypatch, lambda captions: noise(len(captions), 3, 16), stripes(100, 0), stripes(31, 1))
    assert "frechet distance" not in figures and "copied" in figures and "need 32 held-out pictures" in capsys.readouterr().out


def test_closer_and_copied_tell_copies_from_smooth_drawings(monkeypatch):
    train = Pictures(noise(100, 0), [[f"picture {i}"] for i in range(100)])
    held_out = Pictures(noise(100, 1), [[f"other {i}"] for i in range(100)])
    copies, _ = drawings_scored(monkeypatch, lambda captions: train.images[: len(captions)], train, held_out)
    smooth, _ = drawings_scored(monkeypatch, lambda captions: 0.2 * noise(len(captions), 2), train, held_out)
    assert copies["closer"] == copies["copied"] == smooth["closer"] == 1 and smooth["copied"] < 0.75


@pytest.mark.parametrize("count, seed", [(100, 0), (15, 1)])
def test_copied_is_only_shown_where_held_out_pictures_are_few_or_those_of_the_training(monkeypatch, capsys, fast, count, seed):
    drawn = lambda captions: noise(len(captions), 3, 16)  # noqa: E731
    figures, sheets = drawings_scored(monkeypatch, drawn, stripes(100, 0), stripes(count, seed))
    assert "copied" not in figures and "copied" in sheets and "copied cannot be told" in capsys.readouterr().out
