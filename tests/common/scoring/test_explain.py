"""Explanations are graded where the place of every object is known."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

import data
import minclip
import minvqgan
from common.run.errors import InputError
from common.scoring import explain


def test_a_map_points_at_an_object_where_it_is_highest_inside():
    heat, masks = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    heat[:, 1, 2], masks[0, 1, 2], masks[1, 2, 1] = 1, True, True
    assert explain.points_inside(heat, masks).tolist() == [True, False]


def test_the_mask_of_each_graded_object_has_its_words_colour():
    colours = {name: torch.tensor(rgb) / 127.5 - 1 for name, rgb in data.COLOURS.items()}
    for scene in explain.graded_scenes(20, 64, 0):
        words = [scene.words[i] for i in scene.colour_words]
        for word, mask in zip(words, scene.masks):
            pixels = rearrange(scene.image, "c h w -> h w c")[mask]
            found = {name for name in words
                     if ((pixels - colours[name]).abs().sum(dim=-1) < 0.02).any()}
            assert found == {word}
        assert all(scene.words[i + 1] in data.SHAPES for i in scene.colour_words)
        assert data.split_of(" ".join(scene.words)) == "unseen"


def test_attention_on_own_words_is_1_if_codes_see_no_other():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 2:] = True, True
    attention = torch.zeros(2, 4, 6)  # two layers, 2 x 2 codes, 6 tokens
    attention[0, :2, 1], attention[0, 2:, 3] = 1, 1     # layer 0: each its own word
    attention[1, :, 1] = 1                              # layer 1: all the first object's
    first, second = explain.own_fractions(attention, masks, [[1], [3]])
    assert first.tolist() == [1, 1] and second.tolist() == [1, 0]
    masks[1, 3:] = False  # half of the squares remains, then less
    assert len(explain.own_fractions(attention, masks, [[1], [3]])) == 2
    masks[1, :, 1:] = False
    assert len(explain.own_fractions(attention, masks, [[1], [3]])) == 1


def test_grades_stand_beside_what_chance_and_random_weights_give(tmp_path, monkeypatch):
    torch.manual_seed(0)
    loaded = {"clip": minclip.CLIP(minclip.CLIPConfig(vision_width=32, vision_layers=1)),
              "vqgan": minvqgan.VQGAN(minvqgan.VQGANConfig(channels=8))}
    models = SimpleNamespace(get=loaded.get, has=loaded.__contains__, device="cpu")
    choices = F.normalize(torch.randn(20, 3, loaded["clip"].config.embed_dim), dim=-1)
    monkeypatch.setattr(explain, "word_choices", lambda models, caption: (caption.split(), choices))
    monkeypatch.setattr(explain, "trained_on", lambda models: {"data": "shapes"})
    explain.grade(models, tmp_path / "explain.json", 2, 0)
    figures = json.loads((tmp_path / "explain.json").read_text())
    assert {"clip occlusion", "clip random weights", "vqgan own square"} <= set(figures)
    assert 0 < figures["clip chance"] < 0.15 and 0 < figures["vqgan own square"] <= 1


def test_grades_need_the_shapes_world(tmp_path, monkeypatch):
    monkeypatch.setattr(explain, "trained_on", lambda models: {"data": "pictures"})
    with pytest.raises(InputError, match="where the place of every object is known"):
        explain.grade(None, tmp_path / "explain.json", 2, 0)
