"""Figures of the shapes world, of answers that are right, wrong or given by chance."""

import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import data
from common.scoring import shapes


def scenes(count):
    images, captions = shapes.true_scenes(count, 32, -1, "cpu")
    return images["unseen"], captions["unseen"]


def oracle(captions):
    """Embed texts by what they mean, and images by their place in the batch."""
    def direction(text):
        seed = int(data.split.fraction(data.parse(text).canonical.caption) * 2**40)
        return torch.randn(64, generator=torch.Generator().manual_seed(seed))

    def embed_text(texts):
        return F.normalize(torch.stack([direction(text) for text in texts]), dim=-1)

    return lambda images: embed_text(captions), embed_text


def test_scored_scenes_come_from_the_seed_after_the_trainings():
    images, captions = shapes.true_scenes(3, 32, 3, "cpu")
    for split in data.SPLITS:
        expected = data.load("shapes", 32, split, 3, seed=4)
        assert captions[split] == [own[0] for own in expected.captions]
        assert images[split].equal(expected.batch(range(3)))


def test_similar_captions_differ_from_the_scene_in_one_attribute():
    rng = random.Random(0)
    for _ in range(50):
        scene = data.random_scene(rng)
        choices = shapes.similar_captions(scene, 15, rng)
        assert len({scene.caption, *choices}) == 16
        for other in map(data.parse, choices):
            pairs = [(scene.background, other.background), (scene.relation, other.relation)]
            for mine, its in zip(scene.objects, other.objects, strict=True):
                pairs += [(getattr(mine, name), getattr(its, name)) for name in vars(mine)]
            assert sum(a != b for a, b in pairs) == 1


def test_zero_shot_is_1_for_an_oracle_and_a_sixteenth_by_chance():
    images, captions = scenes(64)
    embed_images, embed_text = oracle(captions)
    assert shapes.zero_shot_of_16(embed_images, embed_text, images, captions, 0) == 1
    torch.manual_seed(0)
    guess = lambda images: torch.randn(64, 64)  # noqa: E731
    assert shapes.zero_shot_of_16(guess, embed_text, images, captions, 0) < 0.2


def test_recall_counts_another_wording_of_the_same_scene():
    captions = ["a red star above a blue ring on a black background",
                "a blue ring below a red star on a black background",
                "a small pink star on a gray background"]
    (embed_images, embed_text), images = oracle(captions), torch.zeros(3, 3, 32, 32)
    assert shapes.recall_at_1(embed_images, embed_text, images, captions) == (1, 1)
    turned = lambda images: embed_text(captions[1:] + captions[:1])  # noqa: E731
    assert shapes.recall_at_1(turned, embed_text, images, captions)[0] < 1


def test_recall_works_on_captions_that_are_no_scenes():
    images, eye = torch.zeros(3, 3, 8, 8), lambda _: torch.eye(3)
    assert shapes.recall_at_1(eye, eye, images, ["a", "b", "c"]) == (1, 1)


def test_the_judge_agrees_with_true_pictures_under_their_captions_only():
    images, captions = scenes(32)
    assert shapes.agreement(images, captions) >= 0.98
    assert shapes.agreement(images, captions[1:] + captions[:1]) <= 0.05


@pytest.mark.parametrize("clip, vqgan, codes, best", [
    (1, 0, True, 1), (-1, 0, True, 0), (0, 1, True, 1), (1, 0, False, 1),
], ids=["CLIP", "CLIP, misled", "VQGAN", "DALL·E 2"])
def test_match_takes_the_first_picture_and_the_preferred_one(clip, vqgan, codes, best):
    """Of three candidates the second is right; the others are blank."""
    images, captions = scenes(8)

    def draw(asked, seed):
        part = slice(seed - 5, seed - 1)
        assert asked == [caption for caption in captions[part] for _ in range(3)]
        blank = torch.zeros_like(images[part])
        pictures = torch.stack([blank, images[part], blank], dim=1).flatten(0, 1)
        drawn_as = torch.tensor([0, 1, 0]).repeat(len(asked) // 3)[:, None, None].expand(-1, 2, 2)
        return pictures, drawn_as if codes else None

    right = lambda images: images.abs().mean(dim=(1, 2, 3)).sign()  # noqa: E731
    again = lambda images: torch.where(right(images) > 0, 1 if vqgan else 9, 9)  # noqa: E731
    encode = lambda images: again(images)[:, None, None].expand(-1, 2, 2)  # noqa: E731
    models = SimpleNamespace(
        similarity=lambda caption: lambda images: clip * right(images), checkpoint=lambda name: {1},
        get=lambda name: SimpleNamespace(encode=encode))
    assert shapes.match(models, captions, draw, 3, 5, at_once=4) == (0, best)


def test_a_single_drawing_leaves_nothing_to_prefer():
    images, captions = scenes(4)
    draw = lambda asked, seed: (images, None)  # noqa: E731
    assert shapes.match(None, captions, draw, 1, 0) == (1, None)
