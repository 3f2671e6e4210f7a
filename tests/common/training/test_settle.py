"""What is trained and how: the command line, models that follow from a picture's side, the budget."""

from types import SimpleNamespace

import pytest
from conftest import TINY, TINY_UNCLIP, refused

import train
from common.run.job import MINUTES, Job
from common.training import settle
from common.training.settle import MAX_STEPS, TIME, Budget, fitting
from mindalle.unclip import DecoderConfig
from minclip import CLIPConfig
from minvqgan import VQGANConfig


def parse(*words):
    return settle.parse([*words], "", {name: model[1:] for name, model in train.MODELS.items()})


def budget(*words, of="vqgan", before=None, job=None):
    """The budget of a model in a job; before: the seconds that the models before it took."""
    model, typed, flags = parse(*([job] if job else []), *words)
    run = SimpleNamespace(job=Job(**typed, model=model, flags=flags), state=lambda name: before and {"seconds": before})
    return Budget.of(run, of, train.MODELS[of][2](steps=10))


def test_minutes_replace_the_recipes_steps_and_typed_steps_may_end_sooner():
    def done(*words):
        return budget(*words, job="vqgan").done(20, 30.0)

    assert done() == 2 and done("--minutes", "1") == 0.5
    assert done("--minutes", "1", "--steps", "10") == 2 and done("--minutes", "0.1", "--steps", "10") == 5


def test_models_divide_a_jobs_minutes_and_the_last_gets_the_rest():
    assert sum(TIME[name] for name in TINY) == sum(TIME[name] for name in TINY_UNCLIP) == 1
    assert budget("--minutes", "10", of="clip") == Budget(10 * TIME["clip"], MAX_STEPS["clip"])
    assert budget("--minutes", "10", of="vqgan").done(MAX_STEPS["vqgan"], 1.0) == 1
    assert budget("--minutes", "10", "--vqgan.steps", "7", of="vqgan") == Budget(10 * TIME["vqgan"], 10)
    assert budget("--minutes", "10", of="dalle", before=60.0) == Budget(8, None)
    assert budget("--minutes", "10", of="dalle", before=600.0).minutes == pytest.approx(10 * TIME["dalle"] / 2)
    assert budget("--minutes", "10", of="decoder", before=30.0, job="unclip") == Budget(9.5, None)


@pytest.mark.parametrize("job", [None, "unclip"])
def test_a_job_of_several_models_has_minutes_unless_an_end_is_typed(job, tmp_path):
    def minutes(*words):
        return settle.open_run(*parse(*([job] if job else []), "--run", str(tmp_path), *words))[0].job.minutes

    assert minutes() == MINUTES[job] and minutes("--minutes", "3") == 3 and minutes("--steps", "5") is None


@pytest.mark.parametrize("side", [28, 32, 36, 48, 56, 64, 80, 96, 128])
def test_the_shape_of_each_model_follows_from_the_pictures_side(side):
    clip, vqgan, decoder = (config(**{"image_size": side} | fitting(model, side)) for model, config in (
        ("clip", CLIPConfig), ("vqgan", VQGANConfig), ("decoder", DecoderConfig)))
    assert 16 <= (clip.image_size // clip.patch_size) ** 2 <= 144 and 49 <= vqgan.grid**2 <= 256 and decoder.grid <= 16
    if side == 32:
        assert (clip, vqgan, decoder) == (CLIPConfig(), VQGANConfig(), DecoderConfig())


def test_a_side_that_cannot_be_halved_is_refused_with_one_that_can(tmp_path):
    assert "image_size 50 cannot be halved 2 times: choose 48 or 52" in refused("train", "--image-size", 50, "--run", tmp_path)
    assert "cannot be halved" in refused("train", "vqgan", "--image-size", 31, "--run", tmp_path)


def test_common_flags_may_stand_before_or_after_the_models_name():
    before, after = parse("--run", "x", "clip", "--vision-width", "32"), parse("clip", "--vision-width", "32", "--run", "x")
    assert before == after and before[0] == "clip" and before[1] == {"run": "x"} and before[2]["clip"] == {"vision_width": 32}


@pytest.mark.parametrize("words, meant", [
    (["--beta", "3"], "--vqgan.beta"), (["--no-rotary"], "--no-dalle.rotary"), (["clip", "--vqgan.vision-width", "3"], "--vision-width"),
    (["unclip", "--channels", "3"], "--decoder.channels"), (["decoder", "--decoder.channels", "8"], "--channels"),
])
def test_an_unknown_flag_is_refused_with_the_one_meant(words, meant):
    assert meant in refused("train", *words)


def test_what_other_models_decide_is_no_flag_nor_are_abbreviations():
    for words in (["dalle", "--text-vocab", 9], ["--clip.image-size", 64], ["clip", "--vision-wid", 9]):
        assert words[-2] in refused("train", *words)
    assert "--temp" in refused("sample", "dalle", "a", "--temp", 1)


def test_a_run_may_be_called_like_a_model():
    assert parse("--run", "clip", "--clip.patch-size", "4")[0] is None
    assert parse("--run", "clip", "vqgan", "--beta", "1")[2]["vqgan"] == {"beta": 1.0}


@pytest.mark.parametrize("words, name", [
    (["clip", "--batch-size", "0"], "--batch-size"), (["vqgan", "--discriminator-start", "1.5"], "--discriminator-start"),
    (["--minutes", "0"], "--minutes"), (["dalle", "--steps", "0"], "--steps"), (["--seed", "x"], "--seed"), (["clip", "--ste", "4"], "--ste"),
])
def test_a_senseless_number_is_refused_by_its_flags_name(words, name, tmp_path):
    assert name in refused("train", *words, "--run", tmp_path)
    assert not any(tmp_path.glob("*.pt"))
