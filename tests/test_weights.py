"""What loading promises in every package: CLIP, VQGAN, DALL·E, and DALL·E 2's prior and decoder."""

import copy
import dataclasses
import os
import pickle
import re

import pytest
import torch
from small_clip import SMALL as SMALL_CLIP
from small_dalle import small_model as small_dalle
from small_unclip import new_decoder, new_prior
from small_vqgan import small as small_vqgan

import mindalle.pretrained
import mindalle.unclip
import minclip.pretrained
import minvqgan.pretrained
from minclip import CLIP

# name -> its package, a model in eval mode
BUILDERS = {"clip": (minclip, lambda: CLIP(SMALL_CLIP).eval()), "vqgan": (minvqgan, small_vqgan),
            "dalle": (mindalle, small_dalle), "prior": (mindalle.unclip, new_prior),
            "decoder": (mindalle.unclip, new_decoder)}


@pytest.fixture(params=BUILDERS)
def kind(request) -> str:
    torch.manual_seed(0)
    return request.param


@pytest.fixture
def package(kind):
    return BUILDERS[kind][0]


@pytest.fixture
def model(kind):
    return BUILDERS[kind][1]()


def checkpoint(kind: str, model, **changes) -> dict:
    return {"kind": kind, "config": dataclasses.asdict(model.config), "weights": model.state_dict(),
            "step": 7, **changes}


def refusal(package, path) -> str:
    """Return the one line that refuses a file."""
    with pytest.raises(ValueError) as error:
        package.load(path)
    assert type(error.value).__name__ == "InputError"
    assert os.path.basename(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("zipped", [True, False])  # False: as torch saved until 1.6
def test_a_saved_model_comes_back_in_eval_mode(package, kind, model, zipped, tmp_path):
    path = tmp_path / f"{kind}.pt"
    torch.save(checkpoint(kind, model), path, _use_new_zipfile_serialization=zipped)
    loaded, expected = package.load(path), model.state_dict()
    assert type(loaded) is type(model) and loaded.config == model.config and not loaded.training
    assert loaded.state_dict().keys() == expected.keys()
    assert all(tensor.equal(expected[name]) for name, tensor in loaded.state_dict().items())
    buffers = dict(model.named_buffers())  # those that no file holds, too
    assert all(tensor.equal(buffers[name]) for name, tensor in loaded.named_buffers())


def test_weights_in_half_precision_come_back_in_float32(package, kind, model, tmp_path):
    halved = copy.deepcopy(model).half().state_dict()
    torch.save(checkpoint(kind, model, weights=halved), tmp_path / f"{kind}.pt")
    for name, weight in package.load(tmp_path / f"{kind}.pt").named_parameters():
        assert weight.dtype == torch.float32 and weight.equal(halved[name].float())


def test_a_loaded_model_learns_and_its_file_never_changes(package, kind, model, tmp_path):
    path = tmp_path / f"{kind}.pt"
    torch.save(checkpoint(kind, model), path)
    random, before = torch.get_rng_state(), path.read_bytes()
    loaded = package.load(path)
    assert torch.get_rng_state().equal(random)  # no weights are drawn, to be thrown away
    for parameter in loaded.parameters():
        assert parameter.requires_grad
        parameter.data.zero_()
    assert path.read_bytes() == before
    loaded = package.load(path)
    (tmp_path / "new").write_bytes(b"")
    os.replace(tmp_path / "new", path)  # as a training does that saves: what is mapped is the old file
    for name, parameter in loaded.named_parameters():
        assert parameter.equal(model.get_parameter(name))


@pytest.mark.parametrize("content, what", [
    ({"kind": "owl", "config": {}, "weights": {}}, "a checkpoint of kind 'owl'"),
    ({"epoch": 1, "loss": 2}, "a dict with 'epoch', 'loss'"), ({}, "nothing in it"),
    ([1, 2], "a list")])
def test_a_file_of_another_kind_is_refused_with_known_ones(package, content, what, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    line = refusal(package, tmp_path / "other.pt")
    assert what in line and all(layout in line for layout in package.pretrained.LAYOUTS)


@pytest.mark.parametrize("change", [
    {"config": {"wheels": 3}}, {"config": None}, {"weights": {}}, {"weights": None},
    {"weights": {"norm.bias": "text"}}], ids=str)
def test_parts_that_do_not_fit_are_refused(package, kind, model, change, tmp_path):
    torch.save(checkpoint(kind, model) | change, tmp_path / f"{kind}.pt")
    assert f"{kind}.pt" in refusal(package, tmp_path / f"{kind}.pt")


@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"\x80\x02garbage", b"PK\x03\x04"])
def test_a_damaged_file_is_refused(package, content, tmp_path):
    (tmp_path / "broken.pt").write_bytes(content)
    assert re.search("damaged|no file of", refusal(package, tmp_path / "broken.pt"))


@pytest.mark.parametrize("pickled", [False, True])
def test_a_file_that_asks_to_run_code_runs_none(package, kind, pickled, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it-ran"),)

    content = {"kind": kind, "config": Malicious(), "weights": {}}
    if pickled:
        (tmp_path / "bad.pt").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, tmp_path / "bad.pt")
    line = refusal(package, tmp_path / "bad.pt")
    assert "asks to run" in line or pickled
    assert not (tmp_path / "it-ran").exists()
    pickle.loads(pickle.dumps(Malicious()))  # the trap works
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("name", ["missing.pt", "no/folder.pt", "x" * 300])
def test_a_file_that_cannot_be_opened_is_named_with_the_reason(package, name, tmp_path):
    assert re.search(": (No such file|File name too long)", refusal(package, tmp_path / name))


def test_a_folder_without_weights_says_what_it_looked_for(package, tmp_path):
    assert ", ".join(package.pretrained.FILES) in refusal(package, tmp_path)


def test_a_bug_in_the_model_is_not_blamed_on_the_file(package, kind, model, tmp_path, monkeypatch):
    torch.save(checkpoint(kind, model), tmp_path / f"{kind}.pt")
    monkeypatch.setattr(type(model), "__init__", lambda self, config: self.nothing)
    with pytest.raises(AttributeError, match="nothing"):
        package.load(tmp_path / f"{kind}.pt")
