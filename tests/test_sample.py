"""sample.py from outside: every command on tiny models, of our own and in the published layouts."""

import json
import shutil
import sys

import pytest
import torch
from PIL import Image

import mindalle
import published_karlo
import sample
import seeded
from common.drawing.dalle import Drawing, at_once, default_drawing, generate_images, keep_best, preference
from common.drawing.guide import Guiding, default_guiding, guide_and_write, guide_pictures
from common.drawing.unclip import DecoderSampling
from common.run.models import Models
from common.run.pictures import Output, read_images
from common.scoring import shapes
from conftest import TINY, TINY_ALL, refused, samples, trains
from minclip import Tokenizer
from minvqgan import Prompt


def test_classify_gives_each_image_and_label_a_probability(trained, folder, capsys):
    samples(trained, "classify", folder / "0.png", folder / "1.png", "--labels", "number 1", "number 2")
    assert capsys.readouterr().out.count("%") == 4


def test_search_ranks_a_folder_by_text_and_by_picture(trained, folder, tmp_path):
    samples(trained, "search", "number 1", folder, "-n", 5, "--out", tmp_path)
    assert (tmp_path / "index.jsonl").read_text().count("\n") == 5
    samples(trained, "search", folder, "--image", folder / "3.png", "-n", 5, "--out", tmp_path)
    assert '3.png", "score": 1.0' in (tmp_path / "index.jsonl").read_text().splitlines()[0].replace("0.99999", "1.0")


def test_reconstruct_shows_originals_over_reconstructions(trained, folder, tmp_path):
    samples(trained, "reconstruct", folder / "0.png", folder / "1.png", "--out", tmp_path)
    assert {"0000.png", "0001.png", "sheet.png", "index.jsonl"} == {p.name for p in tmp_path.iterdir()}


def test_dalle_draws_the_same_pictures_from_the_same_seed(trained, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        samples(trained, "dalle", "picture number 1", "", "-n", 2, "--seed", seed, "--out", tmp_path / name)
    a, b, c = (b"".join((tmp_path / name / f"000{i}.png").read_bytes() for i in range(4)) for name in "abc")
    assert a == b and a != c


def test_drawing_gives_the_codes_of_the_pictures_as_well(trained):
    models = Models(trained, "cpu")
    images, codes = generate_images(models, ["picture number 1"], Drawing(), 0)
    assert torch.equal(images, models.get("vqgan").decode(codes).clamp(-1, 1).detach())
    dalle, tokenizer = models.dalle()
    *text, empty = tokenizer.encode(["picture number 1", ""], dalle.config.text_length)
    options = dict(empty=empty, generator=torch.Generator().manual_seed(0), guidance=1.5, top_k=2)
    assert torch.equal(codes, mindalle.generate(dalle, torch.stack(text), **options))


@torch.no_grad()
def test_the_best_drawings_have_the_highest_cosine_plus_codes_chosen_again(trained, monkeypatch):
    models, caption = Models(trained, "cpu"), "picture number 1"
    images, codes = generate_images(models, [caption] * 3, Drawing(top_k=0), 0)
    cosine = models.similarity(caption)(images)
    again = (models.get("vqgan").encode(images) == codes).float().mean(dim=(1, 2))
    assert again.min() < again.max()
    assert torch.allclose(preference(models, caption, codes)(images), cosine + again)
    _, entries = keep_best(models, caption, images, 2, 3, codes)
    assert [entry["score"] for entry in entries] == pytest.approx((cosine + again).sort(descending=True).values[:2].tolist())
    assert torch.equal(preference(models, caption)(images), cosine)  # DALL·E 2 draws no codes
    monkeypatch.setattr(models, "checkpoint", lambda name: {})  # published: ranked by CLIP alone, as in the paper
    assert torch.equal(preference(models, caption, codes)(images), cosine)


def test_dalle_reranks_and_primes(trained, folder, tmp_path):
    samples(trained, "dalle", "picture number 1", "--rerank", 4, "-n", 2, "--prime", folder / "0.png", "--prime-rows", 3,
            "--out", tmp_path)
    assert '"rank": 1' in (tmp_path / "index.jsonl").read_text()


def test_guide_leaves_the_picture_a_filmstrip_and_a_gif(trained, tmp_path):
    samples(trained, "guide", "picture number 1: 1 | number 2: -0.3", "--steps", 3, "--cutouts", 2, "--out", tmp_path)
    assert {"0000.png", "filmstrip.png", "guide.gif"} <= {p.name for p in tmp_path.iterdir()}


def test_unclip_draws_the_same_pictures_from_the_same_seed(trained, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        samples(trained, "unclip", "picture number 1", "", "-n", 2, "--steps", 3, "--seed", seed, "--out", tmp_path / name)
    a, b, c = (b"".join((tmp_path / name / f"000{i}.png").read_bytes() for i in range(4)) for name in "abc")
    assert a == b and a != c
    assert Image.open(tmp_path / "a" / "unclip.gif").n_frames == 3


def test_unclip_reranks_and_ranks_the_pictures_of_a_folder(trained, folder, tmp_path):
    samples(trained, "unclip", "picture number 1", "--rerank", 4, "-n", 2, "--steps", 2, "--out", tmp_path / "drawn")
    assert '"rank": 1' in (tmp_path / "drawn" / "index.jsonl").read_text()
    samples(trained, "unclip", "picture number 1", "--rank", folder, "-n", 5, "--out", tmp_path / "ranked")
    assert {p.name for p in (tmp_path / "ranked").iterdir()} == {"sheet.png", "index.jsonl"}  # a folder's pictures stay where they are
    assert (tmp_path / "ranked" / "index.jsonl").read_text().count(str(folder)) == 5
    assert "one caption" in refused("sample", "unclip", "a", "b", "--rank", folder, "--run", trained)


def test_vary_interpolate_and_edit_leave_pictures_between_the_originals(trained, folder, tmp_path):
    for words in (["vary", folder / "1.png"], ["interpolate", folder / "1.png", folder / "2.png"],
                  ["edit", folder / "1.png", "picture number 1", "picture number 2"]):
        out = tmp_path / words[0]
        samples(trained, *words, "-n", 3, "--steps", 2, "--out", out)
        entries = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
        assert [entry["file"] for entry in entries] == ["0000.png", "0001.png", "0002.png"]
        assert all(entry["original"].endswith("1.png") for entry in entries)
        cells = {"vary": 4, "interpolate": 5, "edit": 4}[words[0]]
        assert Image.open(out / "sheet.png").width == 8 + cells * (128 + 8)
    assert [entry["strength"] for entry in entries] == [0, 0.5, 1]


def test_vary_gives_the_picture_back_only_at_eta_0(trained, folder, tmp_path):
    for eta in (0, 1):
        samples(trained, "vary", folder / "1.png", "-n", 2, "--eta", eta, "--steps", 4, "--out", tmp_path / str(eta))
    one, other = ([(tmp_path / eta / f"000{i}.png").read_bytes() for i in range(2)] for eta in "01")
    assert one[0] == one[1] and other[0] != other[1]


def test_an_unreadable_picture_is_refused_where_every_picture_is_needed(trained, folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    words = ["--run", trained, "--out", tmp_path / "out"]
    assert "broken.png" in refused("sample", "vary", tmp_path / "broken.png", *words)
    assert "broken.png" in refused("sample", "interpolate", folder / "1.png", tmp_path / "broken.png", *words)


def test_a_prior_and_a_decoder_refuse_another_clip(trained, folder, tmp_path):
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 1, "--seed", 5, *TINY["clip"].split())
    for words in (["unclip", "picture"], ["vary", folder / "1.png"]):
        assert "another clip" in refused("sample", *words, "--clip", tmp_path / "clip.pt", "--run", trained)


def test_karlos_prior_ranks_pictures_and_says_that_it_cannot_draw(published, trained, folder, tmp_path):
    shapes = published_karlo.published_shapes(text_length=16, embed_dim=32, width=64, layers=1)
    shapes["model.text_enc_proj.weight"] = (64, 64)  # this CLIP's tokens are wider than its embeddings
    karlo = tmp_path / "karlo"
    karlo.mkdir()
    torch.save({"state_dict": {name: seeded.fill(name, shape) for name, shape in shapes.items()}},
               karlo / published_karlo.CHECKPOINT)
    torch.save((torch.zeros(32), torch.ones(32)), karlo / published_karlo.STATS)
    words = ["unclip", "the thing", "--prior", karlo, "--clip", published / "clip", "--run", tmp_path / "none"]
    samples(tmp_path / "none", *words[:-2], "--rank", folder, "-n", 3, "--out", tmp_path / "ranked")
    assert (tmp_path / "ranked" / "index.jsonl").read_text().count("rank") == 3
    assert "--rank DIR" in refused("sample", *words)
    assert "needs a CLIP of embed_dim" in refused("sample", "unclip", "number 1", "--prior", karlo, "--rank", folder, "--run", trained)


def test_score_prints_every_figure_and_the_ceiling_beside_it(tmp_path, capsys, monkeypatch):
    place = tmp_path / "run"
    monkeypatch.setattr("common.scoring.unclip.SAMPLING", DecoderSampling(steps=4))
    for model, options in TINY_ALL.items():
        trains(model, "--run", place, "--steps", 1, "--overfit", *options.split())
    samples(place, "score", "--count", 16, "--draws", 2, "--rerank", 2)
    printed = capsys.readouterr().out
    figures = json.loads((place / "scores.json").read_text())
    for figure in ("judge unseen", "zero-shot novel", "recall@1", "psnr", "usage", "perplexity", "kept", "match unseen reranked",
                   "unclip unseen", "unclip novel reranked", "unclip from the true z_i", "unclip from z_t",
                   "variations kept", "variations spread", "inversion", "edits", "interpolation"):
        assert figure in printed and any(name.startswith(figure) for name in figures)


def test_a_search_survives_a_thread_a_broken_picture_and_a_bomb(published, folder, tmp_path, capsys):
    place = tmp_path / "pictures"
    place.mkdir()
    for name in ("1.png", "2.png"):
        shutil.copy(folder / name, place)
    Image.new("RGB", (30_000, 1), "red").save(place / "thread.png")
    Image.new("1", (20_000, 10_000)).save(place / "bomb.png")
    (place / "broken.jpg").write_bytes(b"no picture")
    samples(tmp_path / "none", "search", "a cat", place, "--clip", published / "clip")
    printed = capsys.readouterr()
    assert "thread.png" in printed.out and "1.png" in printed.out and "skipped 2 of 5" in printed.err


def test_drawings_do_not_depend_on_how_many_are_drawn_at_once(trained, monkeypatch):
    models = Models(trained, "cpu")
    asked = [f"picture number {i}" for i in range(5)]
    parts, whole = [], mindalle.generate_steps
    monkeypatch.setattr(mindalle, "generate_steps", lambda model, text, **options: parts.append(len(text)) or whole(model, text, **options))
    assert len(generate_images(models, asked, Drawing(temperature=0), 0)[0]) == 5 and parts == [5]
    together = generate_images(models, asked, Drawing(temperature=0), 0)[1]
    monkeypatch.setattr(sys.modules["common.drawing.dalle"], "at_once", lambda config: 2)
    assert generate_images(models, asked, Drawing(temperature=0), 0)[1].equal(together) and parts[2:] == [2, 2, 1]
    large = mindalle.DALLEConfig.mindalle_1_3b()
    assert at_once(mindalle.DALLEConfig()) == 256 and 1 <= at_once(large) <= 8


def test_score_of_a_folder_looks_at_its_held_out_pictures(trained, capsys):
    samples(trained, "score", "--draws", 2)
    figures, printed = json.loads((trained / "scores.json").read_text()), capsys.readouterr().out
    assert {"recall@1 image to text", "zero-shot", "psnr", "usage"} <= figures.keys()
    assert figures["settings"]["draws"] == 2 and "judge" not in printed and "chance 20.0%" in printed
    assert (trained / "copied.png").exists() and (trained / "unclip-copied.png").exists()


def test_score_refuses_published_weights_and_models_of_several_data_sets(trained, published, tmp_path):
    assert "nothing to score it on" in refused("sample", "score", "--run", trained, "--clip", published / "clip", "--merges", published / "clip")
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("samples"))
    trains("vqgan", "--run", tmp_path / "other", "--steps", 1, "--scenes", 64, *TINY["vqgan"].split())
    (tmp_path / "run" / "vqgan.pt").write_bytes((tmp_path / "other" / "vqgan.pt").read_bytes())
    assert "vqgan.pt was trained on shapes" in refused("sample", "score", "--run", tmp_path / "run")


def test_score_writes_each_figure_as_it_comes(tmp_path, monkeypatch, capsys):
    trains("vqgan", "--run", tmp_path, "--steps", 1, "--overfit", *TINY["vqgan"].split())
    monkeypatch.setattr(shapes.minvqgan, "perplexity", lambda counts: 1 / 0)  # a crash half way
    with pytest.raises(ZeroDivisionError):
        samples(tmp_path, "score", "--count", 16)
    assert {"psnr", "usage"} <= json.loads((tmp_path / "scores.json").read_text()).keys()
    monkeypatch.undo()
    samples(tmp_path, "score", "--count", 16)
    assert "kept" in (tmp_path / "scores.json").read_text() and "zero-shot" not in capsys.readouterr().out


def test_a_dalle_refuses_the_codes_of_another_vqgan(trained, folder, tmp_path):
    trains("vqgan", "--data", folder, "--run", tmp_path, "--steps", 1, "--seed", 5, *TINY["vqgan"].split())
    with pytest.raises(ValueError, match="another vqgan"):
        samples(trained, "dalle", "picture", "--vqgan", tmp_path / "vqgan.pt")


# ---- Published weights: each package's layout is proven in its own tests; here the commands that use them ----------


def test_every_command_takes_published_weights(published, folder, tmp_path):
    clip, dalle, picture = f"--clip {published}/clip", f"--dalle {published}/1.3B", f"{folder}/1.png"
    for line in (f"classify {picture} --labels the thing {clip}", f"search the {folder} {clip}",
                 f"search {folder} --image {picture} {clip}", f"reconstruct {picture} --vqgan {published}/1.3B",
                 f"guide the {clip} --vqgan {published}/1.3B --steps 2 --cutouts 2",
                 f"dalle the {dalle} {clip} --rerank 3 -n 2"):
        command = line.split()[0]
        sample.main([*line.split(), "--device", "cpu", "--run", str(tmp_path / "none"), "--out", str(tmp_path / command)])
        assert (tmp_path / command / "sheet.png").exists(), line
    assert Image.open(tmp_path / "dalle" / "0001.png").size == (16, 16)


def test_published_weights_see_pictures_as_they_were_trained_to(published, trained, tmp_path):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))  # red where nothing shows
    clear.save(tmp_path / "clear.png")
    theirs = Models(tmp_path, "cpu", clip=published / "clip").read_images([tmp_path / "clear.png"])[1]
    ours = Models(trained, "cpu").read_images([tmp_path / "clear.png"])[1]
    assert theirs[0, :, 0, 0].tolist() == [1, -1, -1] and ours[0, :, 0, 0].tolist() == [1, 1, 1]


def test_drawing_defaults_follow_the_model_and_its_pictures(published, trained, monkeypatch):
    theirs, ours = Models(trained, "cpu", dalle=published / "1.3B"), Models(trained, "cpu")
    assert default_drawing(theirs) == Drawing(temperature=1.0, top_k=256, top_p=1.0, guidance=1.0)
    assert default_drawing(ours) == Drawing(temperature=1.0, top_k=8, top_p=1.0, guidance=1.5)
    monkeypatch.setattr(ours, "checkpoint", lambda name: {"job": {"data": "shapes"}})
    assert default_drawing(ours) == Drawing(temperature=1.0, top_k=2, top_p=1.0, guidance=1.5)


def test_what_is_typed_wins_over_the_models_defaults(trained, monkeypatch):
    drawn = []
    monkeypatch.setattr(sample, "COMMANDS", sample.COMMANDS | {"dalle": sample.COMMANDS["dalle"]._replace(
        run=lambda models, options, drawing: drawn.append(drawing))})
    samples(trained, "dalle", "a", "--temperature", 0.3)
    assert drawn == [Drawing(temperature=0.3, top_k=8)]


def test_guiding_defaults_follow_the_clip(published, trained):
    theirs, ours = Models(trained, "cpu", clip=published / "clip"), Models(trained, "cpu")
    assert default_guiding(ours) == Guiding()
    assert default_guiding(theirs) == Guiding(steps=500, cutouts=32, smallest=0.5, tries=1, octaves=1, latent_noise=0.0)


def test_guide_keeps_the_try_that_ends_with_the_highest_cosine(trained, monkeypatch, tmp_path, capsys):
    gray, white = Image.new("RGB", (8, 8), "gray"), Image.new("RGB", (8, 8), "white")
    monkeypatch.setattr("common.drawing.guide.guide_pictures", lambda *_: [(0, [gray, white], [0.7, 0.1]), (1, [gray, white], [0.2, 0.6])])
    guide_and_write(Models(trained, "cpu"), Output(tmp_path, "guide", 1), "x", [], torch.zeros(1, 4), Guiding(tries=2), 0)
    assert "from 0.100 to 0.600" in capsys.readouterr().out
    assert Image.open(tmp_path / "0000.png").getpixel((0, 0)) == (255, 255, 255)


def test_every_try_starts_from_the_picture_that_guide_is_given(trained, folder):
    models, guiding = Models(trained, "cpu"), Guiding(steps=1, cutouts=2, tries=3, lr=1e-6)
    init = read_images([str(folder / "1.png")], models.get("vqgan").config.image_size)[1]
    (_, pictures, cosines), = guide_pictures(models, [Prompt("x")], models.embed_text(["x"]), guiding, 0, init)
    assert len(pictures) == len(cosines) == 3 and pictures[0].tobytes() == pictures[1].tobytes() == pictures[2].tobytes()


def test_a_named_tokenizer_takes_the_place_of_the_runs_own(trained, folder, tmp_path):
    Tokenizer([]).save(tmp_path / "other.json")
    words = ["classify", folder / "1.png", "--labels", "one", "--run", trained, "--tokenizer", tmp_path / "other.json"]
    assert "the tokenizer 514" in refused("sample", *words)


def test_a_clip_refuses_a_tokenizer_it_was_not_trained_with(trained, folder, tmp_path):
    tokenizer = Tokenizer.load(trained)
    Tokenizer([*tokenizer.merges[:-1], ("z", "z</w>")]).save(tmp_path / "other.json")
    words = ["classify", folder / "1.png", "--labels", "one", "--run", trained, "--tokenizer", tmp_path / "other.json"]
    assert "another tokenizer" in refused("sample", *words, "--out", tmp_path / "out")


def test_a_published_clip_asks_for_merges_a_dalle_for_its_vqgan(published, trained, folder, tmp_path):
    (tmp_path / "config.json").write_text((published / "clip" / "config.json").read_text())
    (tmp_path / "model.bin").write_bytes((published / "clip" / "pytorch_model.bin").read_bytes())
    words = ["classify", folder / "1.png", "--labels", "the", "--clip", tmp_path / "model.bin", "--run", trained]
    line = refused("sample", *words)
    assert "knows 524 tokens" in line and "--merges" in line
    sample.main([*map(str, words), "--merges", str(published / "clip" / "merges.txt"), "--out", str(tmp_path / "out")])
    line = refused("sample", "dalle", "a", "--dalle", published / "1.3B", "--vqgan", trained / "vqgan.pt", "--run", trained)
    assert "draws in 96 codes" in line and "name the right --vqgan" in line


def test_help_names_every_default_0_among_them(capsys):
    with pytest.raises(SystemExit):
        sample.main(["edit", "--help"])
    help = " ".join(capsys.readouterr().out.split())
    assert "keeps places and outlines (default: 0)" in help and "seed of everything random (default: 0)" in help


def test_a_checkpoint_is_read_once_however_often_it_is_asked_for(trained, monkeypatch):
    models, read, reads = Models(trained, "cpu"), mindalle.pretrained.read, []
    monkeypatch.setattr(mindalle.pretrained, "read", lambda path: reads.append(path) or read(path))
    assert models.checkpoint("dalle") is models.checkpoint("dalle") and len(reads) == 1
