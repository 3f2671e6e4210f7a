"""`python sample.py explain`: what it records, what it shows, and how it is graded."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import nn

import mindalle
import minclip
import minvqgan
from common.scoring import explain as explain_scores
from common.drawing.explaining import (
    looks, most_used, most_varied, pieces, recorded, squares, swap_rarest, word_choices, word_log_probabilities, word_maps,
)
from common.run.models import Models
from conftest import refused, samples
from data import shapes

SMALL = mindalle.DALLEConfig(text_vocab=20, image_vocab=8, text_length=4, grid=3, width=16, layers=2, heads=2)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.fixture
def dalle():
    torch.manual_seed(0)
    return mindalle.DALLE(SMALL).eval()


# ---- The recorder ----


def test_the_recorder_sees_every_layer_in_order_and_leaves_no_hook(dalle):
    text, codes = torch.randint(20, (2, 4)), torch.randint(8, (2, 9))
    with recorded(dalle) as maps:
        dalle(text, codes)
        with recorded(dalle.blocks[1]) as last:
            dalle(text, codes)
    assert [weights.shape for weights in maps[:2]] == [(2, 2, 13, 13)] * 2 and len(maps) == 4 and len(last) == 1
    assert maps[1].equal(last[0]) and not maps[0].equal(last[0])
    torch.testing.assert_close(maps[0].sum(dim=-1), torch.ones(2, 2, 13))
    assert hooks(dalle) == 0


def test_the_recorder_leaves_no_hook_after_an_error(dalle):
    with pytest.raises(ValueError, match="captions have 3 tokens"), recorded(dalle):
        dalle(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 9, dtype=torch.int64))
    assert hooks(dalle) == 0


@pytest.mark.parametrize("model, call, shape", [
    (minclip.CLIP(minclip.CLIPConfig()), lambda m: m.encode_image(torch.rand(1, 3, 32, 32)), (1, 4, 17, 17)),
    (minvqgan.VQGAN(minvqgan.VQGANConfig()), lambda m: m(torch.rand(1, 3, 32, 32))[0], (1, 64, 64)),
], ids=["clip", "vqgan"])
def test_recorded_weights_have_their_gradient(model, call, shape):
    with recorded(model) as maps:
        result = call(model)
    gradient, = torch.autograd.grad(result.square().sum(), maps[:1])
    assert maps[0].shape == gradient.shape == shape and gradient.abs().sum() > 0


# ---- CLIP ----


class ReadsOneCorner(minclip.CLIP):
    """Embed an image by its mean colour in the top left quarter alone."""

    def encode_image(self, images):
        return F.pad(images[..., :16, :16].mean(dim=(2, 3)), (0, self.config.embed_dim - 3))


def test_a_words_map_is_highest_where_the_model_reads_the_word_and_zero_where_it_reads_nothing():
    model, image = ReadsOneCorner(minclip.CLIPConfig()), torch.full((3, 32, 32), -0.5)
    image[0, :16, :16] = 1.0  # red
    choices = torch.eye(128)[torch.tensor([[0, 1], [1, 0]])]  # "red" rather than "green", and the reverse
    heat = word_maps(model, image, choices)
    row, column = divmod(int(heat[0].argmax()), 32)
    assert row < 16 and column < 16 and heat[0, 28:, 28:].abs().max() < 1e-6
    assert heat[1, row, column] < 0  # the same pixels speak against green


def test_the_squares_cover_every_pixel_and_each_has_its_side():
    covers = squares(32)
    assert covers.shape == (21 * 21, 32, 32) and covers.any(dim=0).all() and covers.any(dim=(1, 2)).all()
    assert covers.sum(dim=(1, 2)).max() == 12 * 12


def test_the_choices_for_a_word_are_the_captions_other_words(trained):
    models = Models(trained, "cpu")
    words, choices = word_choices(models, "a picture, a number")
    assert words == ["a", "picture", ",", "a", "number"] and choices.shape[:2] == (5, 4)
    expected = models.embed_text(["a picture, a number", "a a, a number", "a, , a number", "a number, a number"])
    torch.testing.assert_close(choices[1], F.normalize(expected, dim=-1))


def test_the_only_word_of_a_caption_is_compared_with_none(trained):
    models = Models(trained, "cpu")
    _, choices = word_choices(models, "picture")
    torch.testing.assert_close(choices[0], F.normalize(models.embed_text(["picture", ""]), dim=-1))


def test_the_probability_of_a_word_is_a_softmax_over_its_choices():
    model, images = minclip.CLIP(minclip.CLIPConfig()), torch.randn(2, 3, 32, 32)
    choices = F.normalize(torch.randn(3, 4, 128), dim=-1)
    each = [word_log_probabilities(model, images, choices.roll(shift, dims=1)).exp() for shift in range(4)]
    torch.testing.assert_close(sum(each), torch.ones(2, 3))


# ---- DALL·E ----


def test_one_pass_over_the_finished_codes_sees_what_was_looked_at_while_drawing():
    dalle, text = mindalle.DALLE(SMALL).eval(), torch.randint(20, (1, 4))
    with recorded(dalle) as maps:
        codes = mindalle.generate(dalle, text, generator=torch.Generator().manual_seed(0))
    seen = looks(dalle, text, codes)
    assert seen.shape == (1, 2, 9, 4 + 8)
    for step in range(9):
        for layer in range(2):
            drawn = maps[2 * step + layer][0].mean(dim=0)[-1]  # of the last token then read, (4 + step)
            torch.testing.assert_close(seen[0, layer, step, : 4 + step], drawn)
            assert seen[0, layer, step, 4 + step :].abs().sum() == 0  # not yet drawn


def test_the_pieces_of_a_caption_leave_out_start_end_and_padding():
    ours = minclip.Tokenizer.train(["a red star"] * 2, 530)
    assert list(pieces(ours, ours.encode(["a red star"], 10)[0]).values()) == ["a", "red", "star"]
    letters = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "a</w>", "b</w>"])}
    theirs = mindalle.MinDALLETokenizer(letters, [])
    assert pieces(theirs, theirs.encode(["a b"], 5)[0]) == {0: "a", 1: "b"}


def test_a_layer_that_looks_at_the_same_words_for_every_code_is_shown_last():
    text = torch.rand(3, 9, 4)
    text[1] = text[1, :1]
    assert most_varied(text, 3)[-1] == 1 and len(most_varied(text, 2)) == 2


# ---- VQGAN ----


def test_the_rarest_code_of_a_grid_is_swapped_for_the_most_frequent():
    swapped, place = swap_rarest(torch.tensor([[5, 5, 2], [5, 7, 2], [5, 2, 5]]))
    assert place == 4 and swapped.tolist() == [[5, 5, 2], [5, 5, 2], [5, 2, 5]]


def test_the_most_used_codes_are_the_codebooks_or_else_the_pictures():
    vqgan, codes = minvqgan.VQGAN(minvqgan.VQGANConfig()), torch.tensor([[3, 3], [3, 9]])
    assert most_used(vqgan, codes, 20) == [3, 9]
    vqgan.codebook.share[7] = 0.5
    assert most_used(vqgan, codes, 20)[0] == 7 and len(most_used(vqgan, codes, 20)) == 20


# ---- The grades ----


def test_a_map_points_at_an_object_where_it_is_highest_inside_it():
    heat, masks = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    heat[:, 1, 2], masks[0, 1, 2], masks[1, 2, 1] = 1, True, True
    assert explain_scores.pointing(heat, masks).tolist() == [True, False]


def test_the_mask_of_each_graded_word_has_the_colour_that_the_word_says():
    colours = {name: torch.tensor(rgb) / 127.5 - 1 for name, rgb in shapes.COLOURS.items()}
    for scene in explain_scores.graded_scenes(20, 64, 0):
        words = [scene.words[colour] for colour, _ in scene.places]
        for word, mask in zip(words, scene.masks):
            pixels = rearrange(scene.image, "c h w -> h w c")[mask]
            found = {name for name in words if ((pixels - colours[name]).abs().sum(dim=-1) < 0.02).any()}
            assert found == {word}
        assert all(scene.words[shape] in shapes.SHAPES for _, shape in scene.places)
        assert shapes.split_of(" ".join(scene.words)) == "unseen"


def test_the_share_on_own_words_is_one_where_codes_look_at_no_other():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 2:] = True, True
    scene, looked = SimpleNamespace(masks=masks), torch.zeros(1, 2, 4, 6)  # one scene, two layers, 2 x 2 codes, 6 tokens
    looked[0, 0, :2, 1], looked[0, 0, 2:, 3] = 1, 1     # layer 0: each its own word
    looked[0, 1, :, 1] = 1                              # layer 1: all the first object's
    shares = explain_scores.own_share(looked, [scene], [[[1], [3]]], 2)
    assert shares.tolist() == [1.0, 0.5]


def test_attention_weighed_by_gradient_differs_from_word_to_word_and_plain_attention_does_not():
    torch.manual_seed(0)
    model, choices = minclip.CLIP(minclip.CLIPConfig(vision_layers=2)), F.normalize(torch.randn(2, 3, 128), dim=-1)
    plain, relevant = explain_scores.attention_maps(model, torch.randn(3, 32, 32), choices)
    assert plain.shape == relevant.shape == (2, 32, 32) and plain[0].equal(plain[1])
    assert not relevant[0].equal(relevant[1]) and relevant.min() >= 0


# ---- The command ----


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 32), "red").save(path)
    return path


def test_explaining_a_drawing_writes_a_sheet_an_animation_and_a_number_for_every_word(trained, tmp_path, capsys):
    samples(trained, "explain", "picture number 3", "--out", tmp_path)
    entry = json.loads((tmp_path / "index.jsonl").read_text())
    assert [word["word"] for word in entry["words"]] == ["picture", "number", "3"]
    assert all(0 <= word["probability"] <= 1 for word in entry["words"])
    with Image.open(tmp_path / "explain.gif") as animation:
        assert animation.n_frames > 1
        first = np.asarray(animation.convert("L").crop((0, 0, 160, 160)))
        animation.seek(animation.n_frames - 1)
        last = np.asarray(animation.convert("L").crop((0, 0, 160, 160)))
    grey = [((picture > 20) & (picture < 235)).mean() for picture in (first, last)]
    assert grey[0] == 0 and grey[1] > 0.1  # nothing is drawn yet: white, and the outline of the first code
    assert (tmp_path / "sheet.png").exists() and "layer by layer" in capsys.readouterr().out


def test_a_model_that_the_run_lacks_is_left_out_with_a_line_that_says_so(trained, tmp_path, picture, capsys):
    place = tmp_path / "run"
    place.mkdir()
    for name in ("clip.pt", "tokenizer.json"):
        (place / name).write_bytes((trained / name).read_bytes())
    samples(place, "explain", "picture number 3", "--image", picture)
    printed = capsys.readouterr().out
    assert "vqgan is left out" in printed and "dalle is left out" in printed and "CLIP: cosine" in printed
    assert (place / "samples" / "explain" / "sheet.png").exists()


def test_published_clip_weights_are_explained_without_any_other_model(tmp_path, picture):
    torch.manual_seed(0)
    config = minclip.CLIPConfig(stem_width=0, vision_layers=2, vocab_size=512 + 2, context_length=40)
    weights, tokenizer = tmp_path / "clip.pt", tmp_path / "tokenizer.json"
    torch.save({"kind": "clip", "config": vars(config), "weights": minclip.CLIP(config).state_dict()}, weights)
    minclip.Tokenizer([]).save(tokenizer)
    samples(tmp_path / "none", "explain", "two dogs play", "--image", picture, "--clip", weights, "--tokenizer", tokenizer,
            "--out", tmp_path / "o")
    assert [w["word"] for w in json.loads((tmp_path / "o" / "index.jsonl").read_text())["words"]] == ["two", "dogs", "play"]


@pytest.mark.parametrize("words, message", [
    ((), 'explain needs a "CAPTION", or --grade N'),
    (("a cat",), "clip.pt is missing"),
    (("--grade", 0, "a cat"), "--grade 0: choose 1 or more"),
])
def test_a_run_without_models_and_a_command_without_a_caption_are_refused(tmp_path, words, message):
    assert message in refused("sample", "explain", *words, "--run", tmp_path)


def test_a_picture_must_be_named_where_there_is_no_model_to_draw_one(trained, tmp_path):
    assert "--image FILE" in refused("sample", "explain", "a", "--run", tmp_path, "--clip", trained / "clip.pt")


def test_grades_need_the_shapes_world(trained, tmp_path):
    line = refused("sample", "explain", "--grade", 2, "--run", trained, "--out", tmp_path)
    assert "where the place of every object is known" in line


def test_grades_are_written_beside_what_chance_and_random_weights_give(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(explain_scores, "trained_on", lambda models: {"data": "shapes"})
    models = Models(trained, "cpu")
    monkeypatch.setattr(explain_scores, "word_choices", lambda models, caption: (caption.split(), F.normalize(torch.randn(
        len(caption.split()), 3, models.get("clip").config.embed_dim, generator=torch.Generator().manual_seed(0)), dim=-1)))
    explain_scores.grade_clip(models, report := explain_scores.Report(tmp_path / "explain.json", {}), 2, 0)
    explain_scores.grade_vqgan(models, report, 2, 0)
    figures = json.loads((tmp_path / "explain.json").read_text())
    assert {"clip occlusion", "clip chance", "clip random weights", "clip Chefer et al.", "vqgan own square"} <= set(figures)
    assert 0 < figures["clip chance"] < 0.15 and figures["vqgan own square"] <= figures["vqgan within one square"] <= 1


def test_an_animation_of_ours_is_replaced_and_another_is_not(trained, tmp_path, picture):
    (tmp_path / "explain.gif").write_bytes(b"mine")
    line = refused("sample", "explain", "picture", "--run", trained, "--out", tmp_path)
    assert "explain.gif was not written by sample.py" in line
