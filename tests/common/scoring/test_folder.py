"""Figures of a run over a folder, on sets so small, or made so, that the right value is known."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from common.scoring import classifier, folder


CLASSES = ["across", "down"]


class Pictures:
    """Images (n 3 h w) with their captions, as a Dataset serves them."""

    def __init__(self, images, captions):
        self.images, self.captions = images, captions

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[torch.as_tensor(indices)]


def normal(n, f, seed):
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed))


def noise(n, seed, side=8):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def described(n, seed):
    """Noise with a caption of its own for each picture."""
    return Pictures(noise(n, seed), [[f"picture {seed} {i}"] for i in range(n)])


def stripes(n, seed, side=16):
    """Pictures of two classes, stripes that run across or down, shifted and noisy."""
    rng = torch.Generator().manual_seed(seed)
    down = torch.randint(2, (n,), generator=rng).bool()
    phase = torch.randint(4, (n, 1), generator=rng)
    wave = ((torch.arange(side) + phase) % 4 < 2).float() * 2 - 1
    images = torch.where(down[:, None, None], wave[:, None, :], wave[:, :, None])
    images = images[:, None].expand(n, 3, side, side)
    noisy = images + 0.3 * torch.randn(images.shape, generator=rng)
    return Pictures(noisy.clamp(-1, 1), [[CLASSES[d]] for d in down.tolist()])


# ---- CLIP ---------------------------------------------------------------------------------------


def test_any_caption_of_a_picture_counts_for_clip():
    """Recall takes the first caption of each picture as its text, zero-shot takes all."""
    captions, figures = [[*"abcdef"], *map(list, "bcdef")], {}
    directions = {name: direction for name, direction in zip("abcdefg", torch.eye(7))}
    images = torch.stack([directions[name] for name in "fbcbef"])  # the second b is wrong
    models = SimpleNamespace(device="cpu", embed_images=lambda x: 5 * x,
                             embed_text=lambda texts: torch.stack([directions[t] for t in texts]))
    folder.score_clip(models, lambda name, value, note: figures.update({name: (value, note)}),
                      Pictures(None, [["g"]]), images, captions)
    assert figures["recall@1 image to text"] == (pytest.approx(5 / 6), "among 6")
    assert figures["zero-shot"] == (pytest.approx(5 / 6), "among 7 captions; chance 26.2%")


# ---- Classifier ---------------------------------------------------------------------------------


def test_captions_are_classes_if_few_with_enough_pictures_of_one_each():
    def classes(captions):
        return folder.class_names(SimpleNamespace(captions=captions))

    assert classes([["b"], ["a"]] * 8) == ["a", "b"]
    assert classes([["b"], ["a"]] * 7) is None  # too few pictures
    assert classes([["a"]] * 100) is None  # nothing to tell apart
    assert classes([["b"], ["a", "c"]] * 50) is None  # descriptions
    assert len(classes([[str(i)] for i in range(200)] * 8)) == 200
    assert classes([[str(i)] for i in range(201)] * 8) is None


def test_the_classifier_learns_stripes_and_knows_larger_ones(monkeypatch):
    monkeypatch.setattr(classifier, "MOST_STEPS", 20)
    monkeypatch.setattr(classifier, "BATCH_SIZE", 32)
    state = torch.get_rng_state()
    model = classifier.train_classifier(stripes(200, 0), CLASSES, 0, 10)
    new = stripes(100, 1)
    larger = torch.nn.functional.interpolate(new.images, scale_factor=3)
    for images in (new.images, larger):
        names = [CLASSES[i] for i in model(images).argmax(dim=1)]
        assert folder.accuracy(names, new.captions) >= 0.98
    assert model(larger).equal(model(classifier.resize(larger, 16))) and not model.training
    assert torch.equal(state, torch.get_rng_state())


def test_the_classifier_stops_when_its_time_is_over(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(classifier.time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(classifier, "Progress", lambda what: lambda *_: None)
    monkeypatch.setattr(classifier, "MOST_STEPS", 10**6)
    classifier.train_classifier(stripes(8, 0, side=8), CLASSES, 0, 3)
    assert next(ticks) == 4  # the start, and one look after each of three steps


# ---- Two sets -----------------------------------------------------------------------------------


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    """Whitened samples have exactly the moments asked for; here the covariances do not commute."""
    x = normal(500, 2, 0).double()
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    a = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()  # the roots of the covariances
    b = torch.tensor([[1.5, 0.5], [0.5, 1.0]]).double()
    mean = torch.tensor([3.0, 4.0]).double()
    A, B = a @ a, b @ b
    product = torch.linalg.eigvals(A @ B).real.sqrt().sum()  # tr (A^½ B A^½)^½ another way
    expected = (25 + A.trace() + B.trace() - 2 * product).item()
    assert folder.frechet_distance(x @ a, x @ b + mean) == pytest.approx(expected, rel=1e-9)
    assert folder.frechet_distance(x @ b + mean, x @ a) == pytest.approx(expected, rel=1e-9)
    few = normal(20, 64, 0)  # fewer than features
    assert folder.frechet_distance(few, few.flip(0)) == pytest.approx(0, abs=1e-5)


def test_a_drawing_reaches_as_far_as_the_third_nearest_other_one():
    drawn = torch.tensor([[0.0], [1.0], [2.0], [4.0], [100.0]])  # of 0 it is 4, of 100 it is 1
    true = torch.tensor([[-4.0], [-4.1], [8.0], [8.1], [199.0], [199.1]])
    reached = [folder.variety_recall(point[None], drawn) for point in true]
    assert reached == [1, 0, 1, 1, 1, 0]  # 100 reaches 8.1


def test_the_two_closest_training_pictures_are_found_across_batches(monkeypatch):
    monkeypatch.setattr(folder, "BATCH", 7)
    train = described(40, 0)
    train.images[20] = train.images[33] - 0.5  # the second closest, in an earlier batch
    train.images[39] = train.images[2] + 1
    asked = torch.stack([train.images[33], train.images[2] + 0.25])
    gaps, indices = folder.nearest_in_training(asked, train)
    assert indices.tolist() == [[33, 20], [2, 39]]
    assert gaps.flatten().tolist() == pytest.approx([0, 0.25, 0.0625, 0.5625], rel=1e-5, abs=1e-12)


def test_closeness_ignores_patterns_finer_than_32_pixels_but_not_brightness():
    shape = noise(1, 0, 64)
    train = Pictures(torch.cat([shape, 0.1 * shape + 0.01]), [["bright"], ["dim"]])
    assert folder.nearest_in_training(0.1 * shape, train)[1].tolist() == [[1, 0]]
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2 - 0.5
    assert folder.nearest_in_training(shape + checks, train)[0][0, 0] < 0.01


def test_copies_stand_out_and_smooth_or_new_pictures_do_not():
    train, new = described(200, 0), noise(101, 1)
    true, _ = folder.nearest_in_training(new, train)

    def copied(drawn):
        return folder.copied_fraction(folder.nearest_in_training(drawn, train)[0], true)

    assert copied(train.images[:50] + 0.01) == copied(train.images[:50]) == 1
    assert copied(new) == pytest.approx(0.5, abs=0.01)
    assert copied(0.2 * noise(100, 2)) < 0.7
    twice, true = torch.tensor([[0.0, 0.0], [0.1, 0.1]]), torch.tensor([[0.1, 0.2]])
    assert folder.copied_fraction(twice, true) == 0.5  # a picture that the training has twice


# ---- The whole ----------------------------------------------------------------------------------


@pytest.fixture
def score(monkeypatch, tmp_path):
    """Score a run whose DALL·E draws by a function of the captions -> its figures."""
    monkeypatch.setattr(classifier, "MOST_STEPS", 20)
    monkeypatch.setattr(classifier, "BATCH_SIZE", 16)
    (tmp_path / "run").mkdir()

    def score(draw, train, held_out, names=("dalle",), draws=32):
        def drawn(models, captions, settings, seed):
            assert seed == 5
            return draw(captions)

        models = SimpleNamespace(
            device="cpu", run=tmp_path / "run", has=lambda name: name in names,
            embed_images=lambda images: images.flatten(1)[:, :24],
            embed_text=lambda texts: normal(len(texts), 24, 1))
        monkeypatch.setattr(folder, "generate_images", lambda *arguments: (drawn(*arguments), None))
        monkeypatch.setattr(folder, "draw_embeddings", lambda models, captions, seed: captions)
        monkeypatch.setattr(folder, "draw", drawn)
        figures = {}
        folder.score_folder(models, lambda name, value, *_, **__: figures.update({name: value}),
                            train, held_out, None, 64, draws, 5)
        return figures

    return score


def test_new_pictures_of_the_class_asked_for_score_as_true_ones(score, tmp_path):
    new = stripes(400, 2)
    where = {name: [i for i, own in enumerate(new.captions) if own == [name]] for name in CLASSES}
    draw = lambda asked: new.batch([where[name][i] for i, name in enumerate(asked)])  # noqa: E731
    figures = score(draw, stripes(200, 0), stripes(100, 1))
    assert figures["read back"] == figures["read back true pictures"] == 1
    assert figures["frechet distance"] < 3 * figures["frechet floor"]
    assert figures["recall"] > 0.5 and 0.2 < figures["copied"] < 0.8
    with Image.open(tmp_path / "run" / "copied.png") as sheet:
        assert sheet.width > sheet.height / 2


def test_one_training_picture_drawn_over_and_over_is_told(score):
    train = stripes(200, 0)
    figures = score(lambda captions: train.images[:1].expand(len(captions), -1, -1, -1), train,
                    stripes(100, 1))
    assert figures["recall"] == 0 and figures["copied"] == 1 and 0.2 < figures["read back"] < 0.8
    assert figures["frechet distance"] > 3 * figures["frechet floor"]


def test_descriptions_are_compared_in_clips_embeddings_and_not_read_back(score):
    asked = []
    figures = score(lambda captions: asked.extend(captions) or noise(len(captions), 2),
                    described(100, 0), described(100, 1), names=("clip", "dalle"), draws=100)
    assert "read back" not in figures and "recall@1 image to text" in figures
    assert figures["frechet distance"] < 3 * figures["frechet floor"] and figures["zero-shot"] < 0.2
    assert len(set(asked)) == 64 and asked[:36] == asked[64:]  # all, then again from the first


def test_held_out_pictures_are_chosen_at_random_from_a_sorted_folder(score):
    new, asked = stripes(200, 1), []
    order = sorted(range(200), key=lambda i: new.captions[i])
    score(lambda captions: asked.extend(captions) or noise(len(captions), 3, 16), stripes(100, 0),
          Pictures(new.batch(order), [new.captions[i] for i in order]))
    assert 8 < asked.count("down") < 24


def test_dalle_2_is_scored_where_all_of_its_models_are_there(score, tmp_path):
    drawn = lambda captions: noise(len(captions), 2)  # noqa: E731
    pictures = described(100, 0), described(100, 1)
    figures = score(drawn, *pictures, names=("clip", "prior", "decoder"))
    assert "unclip recall" in figures and "recall" not in figures
    assert (tmp_path / "run" / "unclip-copied.png").exists()
    assert "unclip recall" not in score(drawn, *pictures, names=("clip", "decoder"))


@pytest.mark.parametrize("count, seed, missing, line", [
    (31, 1, "frechet distance", "need 32 held-out pictures"),
    (15, 1, "copied", "copied cannot be told"),
    (100, 0, "copied", "copied cannot be told"),
], ids=["too few for distances", "too few for copies", "those of the training"])
def test_figures_of_too_few_pictures_are_left_out(score, capsys, count, seed, missing, line):
    draw = lambda captions: noise(len(captions), 3, 16)  # noqa: E731
    figures, printed = score(draw, stripes(100, 0), stripes(count, seed)), capsys.readouterr().out
    assert missing not in figures and line in printed and "copied.png" in printed
