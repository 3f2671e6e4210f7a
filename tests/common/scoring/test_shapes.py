"""The figures by which runs are judged: each against what it must be for answers that are right, wrong or given by chance."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
from common.training import sources as captions
from common.scoring import held_out
from common.scoring import shapes as scores
from common.scoring import unclip as unclip_scores
from common.drawing.dalle import Drawing
from common.training.settle import Job
from common.run.runs import Run
from common.drawing.unclip import DecoderSampling
from minclip import CLIP, CLIPConfig
from mindalle import DALLEConfig


def scenes(count: int, split: str = "unseen"):
    images = data.load("shapes", 32, split, count)
    return images.batch(range(count)), [captions[0] for captions in images.captions]


def oracle(captions):
    """Embed texts, and images by their place in the batch, so that what belongs together has a cosine of 1, all else about 0."""
    def direction(text):
        return torch.randn(64, generator=torch.Generator().manual_seed(int(data.split.fraction(text) * 2**40)))

    def text(texts):
        return F.normalize(torch.stack([direction(data.parse(t).canonical.caption) for t in texts]), dim=-1)

    return lambda images: text(captions), text


def test_neighbours_differ_from_the_scene_in_one_attribute_each():
    rng = random.Random(0)
    for _ in range(50):
        scene = data.random_scene(rng)
        choices = scores.neighbours(scene, 15, rng)
        assert len({scene.caption, *choices}) == 16
        for other in map(data.parse, choices):
            pairs = [(scene.background, other.background), (scene.relation, other.relation)]
            for mine, theirs in zip(scene.objects, other.objects, strict=True):
                pairs += [(mine.colour, theirs.colour), (mine.shape, theirs.shape), (mine.size, theirs.size)]
            assert sum(a != b for a, b in pairs) == 1


def test_zero_shot_is_1_for_an_oracle_and_a_sixteenth_by_chance():
    images, captions = scenes(200)
    embed_images, embed_text = oracle(captions)
    assert scores.zero_shot(embed_images, embed_text, images, captions, 0) == 1
    by_chance = scores.zero_shot(lambda images: torch.randn(200, 64), embed_text, images, captions, 0)
    assert by_chance < 0.2


def test_recall_counts_another_wording_of_the_same_scene_as_right():
    captions = ["a red star above a blue ring on a black background", "a blue ring below a red star on a black background",
                "a small pink star on a gray background"]
    embed_images, embed_text = oracle(captions)
    assert scores.recall_at_1(embed_images, embed_text, torch.zeros(3, 3, 32, 32), captions) == (1, 1)
    assert scores.recall_at_1(lambda images: embed_text(captions[1:] + captions[:1]), embed_text, torch.zeros(3, 3, 32, 32), captions)[0] < 1


def test_recall_works_on_captions_that_are_no_scenes():
    features = torch.eye(3)
    assert scores.recall_at_1(lambda _: features, lambda _: features, torch.zeros(3, 3, 8, 8), ["a", "b", "c"]) == (1, 1)


def test_the_judge_agrees_with_true_pictures_and_not_with_those_of_other_captions():
    images, captions = scenes(64)
    assert scores.agreement(images, captions) >= 0.98
    assert scores.agreement(images, captions[1:] + captions[:1]) <= 0.05


def test_match_takes_the_first_picture_and_the_one_that_clip_and_vqgan_like_best(monkeypatch):
    images, captions = scenes(8)
    wrong = torch.zeros_like(images)

    def drawn(models, asked, how, seed):
        assert asked == [caption for caption in captions for _ in range(3)]
        pictures = torch.stack([wrong, images, wrong], dim=1).flatten(0, 1)  # of three, the second is right
        return pictures, torch.ones(len(pictures), 2, 2)

    def models(cosine, encode):
        return SimpleNamespace(has=lambda name: True, checkpoint=lambda name: {"kind": name}, similarity=lambda caption: cosine,
                               get=lambda name: SimpleNamespace(encode=encode))

    monkeypatch.setattr(scores, "generate_images", drawn)
    light = lambda images: images.abs().mean(dim=(1, 2, 3)) - 1  # noqa: E731
    drawn_well = lambda images: (light(images) > -1).float().view(-1, 1, 1).expand(-1, 2, 2)  # noqa: E731
    any_codes = lambda images: torch.ones(len(images), 2, 2)  # noqa: E731
    assert scores.match(models(light, any_codes), captions, Drawing(), 3, 0) == (0, 1)
    assert scores.match(models(lambda images: -light(images), any_codes), captions, Drawing(), 3, 0) == (0, 0)
    assert scores.match(models(lambda images: 0 * light(images), drawn_well), captions, Drawing(), 3, 0) == (0, 1)


def test_the_pictures_held_out_from_a_training_are_those_that_score_judges():
    for seed in (0, 3):
        held = captions.held_out_images(Run(Job(seed=seed)), 32, 4)
        assert held.captions == data.load("shapes", 32, "unseen", 4, seed=seed + 1).captions


def test_a_report_is_written_at_every_figure_and_leaves_a_foreign_file_alone(tmp_path):
    report = scores.Report(tmp_path / "scores.json", {"count": 16})
    report.add("psnr", 31.41592, percent=False)
    assert json.loads((tmp_path / "scores.json").read_text()) == {
        "settings": {"count": 16}, "printed": {"psnr": ["31.4", ""]}, "psnr": 31.4159}
    (tmp_path / "foreign.json").write_text("{}")
    with pytest.raises(ValueError, match="foreign.json"):
        scores.Report(tmp_path / "foreign.json", {})


# ---- DALL·E 2 ---------------------------------------------------------------------------------------------------------


def test_the_spread_is_how_far_the_centres_of_a_scene_move_whatever_its_colours():
    def circle(x, background):
        return data.paint([("circle", (x, 0.5, 0.2), (220, 40, 40))], background, 32)

    moved = np.stack([circle(x, background) for background in ((20, 20, 24), (240, 240, 240)) for x in (0.3, 0.7)])
    assert unclip_scores.spread(moved, 2) == pytest.approx(0.2, abs=0.01)
    assert unclip_scores.spread(moved[[0, 0, 3, 3]], 2) == 0  # the two scenes differ, but nothing moves within one
    grain = np.random.default_rng(0).integers(-6, 7, moved.shape)
    assert unclip_scores.spread((moved + grain).clip(0, 255).astype(np.uint8), 2) == pytest.approx(0.2, abs=0.01)


def test_a_word_changes_in_one_object_and_gives_a_caption():
    rng = random.Random(0)
    for _ in range(100):
        scene = data.random_scene(rng)
        changed = unclip_scores.change_a_word(scene, rng)
        assert data.parse(changed.caption) == changed
        assert sum(a != b for a, b in zip(scene.caption.split(), changed.caption.split())) - (
            scene.caption.split()[0] != changed.caption.split()[0]) in (1, 2)  # "a" may become "an"
        assert sum((a.colour != b.colour) + (a.shape != b.shape) for a, b in zip(scene.objects, changed.objects)) == 1


def test_match_of_dalle_2_takes_the_first_picture_and_the_one_that_clip_likes_best(monkeypatch):
    images, captions = scenes(8)
    wrong = torch.zeros_like(images)
    pictures = torch.stack([wrong, images, wrong], dim=1).flatten(0, 1)  # of three, the second is right
    monkeypatch.setattr(unclip_scores, "draw_embeddings", lambda models, asked, seed: [captions.index(caption) for caption in asked])
    monkeypatch.setattr(unclip_scores, "draw", lambda models, z, how, seed: torch.cat([pictures[3 * i : 3 * i + 3] for i in z[::3]]))
    models = SimpleNamespace(similarity=lambda caption: lambda images: images.abs().mean(dim=(1, 2, 3)))
    assert unclip_scores.match(models, captions, DecoderSampling(), 3, 0) == (0, 1)


# ---- Losses to expect -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss, first, lowest", [("softmax", math.log(128), math.log(16)), ("sigmoid", 160.006, 0)])
def test_eight_captions_in_a_batch_of_128_have_the_first_and_lowest_loss_that_arithmetic_says(loss, first, lowest):
    ids = torch.arange(128).unsqueeze(1) % 8
    start, floor = held_out.contrastive_bounds(CLIP(CLIPConfig(loss=loss)), ids)
    assert start == pytest.approx(first, abs=1e-3) and floor == pytest.approx(lowest, abs=1e-3)



class Captioned(list):
    captions = property(lambda self: self)


def test_dalles_lowest_loss_is_the_text_where_captions_name_pictures_and_the_pictures_where_they_do_not():
    config = DALLEConfig(text_length=5, grid=2, text_vocab=600, image_vocab=32)
    start, floor = held_out.dalle_bounds(config, Captioned([["a"], ["b"], ["c"], ["d"]]), 0.25, 0)
    assert start == pytest.approx(0.25 * math.log(600) + 0.75 * math.log(32))
    assert floor == pytest.approx(0.25 * math.log(4) / 4)
    _, floor = held_out.dalle_bounds(config, Captioned([["a"]] * 4), 0.25, 0)
    assert floor == pytest.approx(0.75 * math.log(4) / 4)
    _, floor = held_out.dalle_bounds(config, Captioned([["a"], ["b"], ["c"], ["d"]]), 0.25, 1)  # all captions dropped
    assert floor == pytest.approx(0.75 * math.log(4) / 4)
    _, floor = held_out.dalle_bounds(config, Captioned([["a", "b"]]), 0.25, 0)  # one picture, two captions
    assert floor == pytest.approx(0.25 * math.log(2) / 4)


def test_dalles_lowest_loss_is_never_beaten_by_a_model_that_knows_the_data_by_heart():
    """The loss of the best model, counted out: the mean of -log of the true chances, over pictures, captions and dropping."""
    data_set, dropout = Captioned([["a"], ["a", "b"], ["b"], ["c"], ["c"]]), 0.3
    seen = {}  # (text, picture) -> chance
    for i, texts_of_i in enumerate(data_set):
        for caption in texts_of_i:
            for text, p in ((caption, 1 - dropout), ("", dropout)):
                seen[text, i] = seen.get((text, i), 0) + p / len(texts_of_i) / len(data_set)
    texts = {text: sum(p for (t, _), p in seen.items() if t == text) for text, _ in seen}
    text_nats = -sum(p * math.log(texts[text]) for (text, _), p in seen.items())
    image_nats = -sum(p * math.log(p / texts[text]) for (text, _), p in seen.items())
    config = DALLEConfig(text_length=5, grid=2)
    _, floor = held_out.dalle_bounds(config, data_set, 0.25, dropout)
    assert floor == pytest.approx(0.25 * text_nats / 4 + 0.75 * image_nats / 4)
