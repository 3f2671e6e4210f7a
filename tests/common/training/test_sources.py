"""What each training learns from: batches, look-alikes, moved pictures and their codes."""

from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, copy_needs, samples, trains

import data
import train
from common.run.folder import Run
from common.run.job import Job
from common.run.pictures import shifted
from common.scoring.shapes import true_scenes
from common.training import sources
from common.training.sources import COPIES


def test_captions_that_share_no_words_have_no_look_alikes_unless_typed(capsys):
    def begin(texts, **typed):
        source = object.__new__(sources.CaptionedImages)
        source.recipe, source.run = train.CLIPRecipe(**typed), SimpleNamespace(job=Job(flags={"clip": typed}))
        source.train = SimpleNamespace(captions=[[text] for text in texts])
        return source.begin_look_alikes()

    names, scenes = ["cat", "dog", "cow"], [f"{a} {b} {c}" for a in "abcd" for b in "efgh" for c in "ij"]
    assert begin(names) == 1 and "hardly share words" in capsys.readouterr().out
    assert begin(scenes) == 0.3 and begin(names, look_alikes=0.5) == 0.5 and not capsys.readouterr().out


@pytest.mark.parametrize("model", ["clip", "vqgan"])
def test_every_batch_of_few_pictures_is_moved(folder, tmp_path, monkeypatch, model):
    moved = []
    monkeypatch.setattr(sources, "shifted", lambda images, pixels: moved.append(pixels) or images)
    trains(model, "--data", folder, "--run", tmp_path, "--steps", 3, *TINY[model].split())
    assert moved == [2, 2, 2]


def test_dalle_learns_from_all_copies_of_moved_pictures(folder, trained, tmp_path, monkeypatch):
    copy_needs("dalle", trained, tmp_path)
    monkeypatch.setattr(sources.CaptionedCodes, "encode_pictures",
                        lambda self: torch.arange(COPIES).reshape(-1, 1, 1).repeat(1, len(self.train), 64))
    seen, loss = set(), train.dalle_loss
    monkeypatch.setattr(train, "dalle_loss", lambda *args: seen.update(args[3].unique().tolist()) or loss(*args))
    trains("dalle", "--data", folder, "--run", tmp_path, "--steps", 12, *TINY["dalle"].split())
    assert seen == set(range(COPIES))


def test_shapes_many_pictures_and_an_overfitted_batch_are_never_moved(tmp_path, monkeypatch):
    def shift(count, typed=None, **job):
        images = SimpleNamespace(__len__=lambda: count)
        monkeypatch.setattr(sources, "open_splits", lambda *_: (range(count), images))
        run = Run(Job(run=str(tmp_path), **job))
        return sources.Images(run, 64, train.VQGANRecipe(shift=typed)).shift

    assert shift(1000, data="emoji") == 4 and shift(1000, data="emoji", typed=0) == 0 and shift(9, typed=3) == 3
    assert shift(1000) == shift(sources.FEW, data="emoji") == shift(1000, data="emoji", overfit=True) == 0


def test_a_moved_image_repeats_its_border():
    image = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    assert shifted(image, 0) is image
    generator, found = torch.Generator().manual_seed(0), set()
    for _ in range(100):
        for one, moved in zip(image, shifted(image, 1, generator)):
            places = [(y, x) for y in (0, 1, 2) for x in (0, 1, 2)
                      if moved.equal(torch.nn.functional.pad(one[None], [1] * 4, mode="replicate")[0, :, y : y + 8, x : x + 8])]
            assert len(places) == 1
            found.add(places[0])
    assert len(found) == 9


def test_the_first_copy_of_a_pictures_codes_is_not_moved(folder):
    model = train.VQGAN(train.VQGANConfig(channels=8, z_channels=8)).eval()

    def codes(shift):
        source = object.__new__(sources.CaptionedCodes)
        source.shift, source.train, source.vqgan = shift, data.load(folder, 32), model
        source.run = SimpleNamespace(device="cpu")
        return source.encode_pictures()

    moved, plain = codes(4), codes(0)
    assert plain.shape == (1, 24, 64) or plain.shape[1] == moved.shape[1]
    assert moved.shape[0] == COPIES and moved[0].equal(plain[0])
    assert all((copy != plain[0]).float().mean() > 0.2 for copy in moved[1:])


def test_captions_of_one_word_leave_room_for_longer_prompts(folder, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "a" / name).write_bytes((folder / name).read_bytes())
    trains("clip", "--data", tmp_path, "--run", tmp_path / "run", "--steps", 1, *TINY["clip"].split())
    samples(tmp_path / "run", "classify", folder / "0.png", "--labels", "a", "b", "--templates", "an icon: {}")


@pytest.mark.parametrize("seed", [0, 3])
def test_held_out_scenes_are_those_that_score_judges(seed, tmp_path):
    held_out = sources.open_split(Run(Job(seed=seed, run=str(tmp_path))), 32, 4, "unseen")
    assert held_out.captions == data.load("shapes", 32, "unseen", 4, seed=seed + 1).captions
    _, captions = true_scenes(4, 32, seed, "cpu")
    assert [texts[0] for texts in held_out.captions] == captions["unseen"]
