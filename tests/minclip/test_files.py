"""Files of weights: what is read as data, and what is refused."""

import json
import os
import struct
import zipfile

import pytest
import torch
from torch import nn

import minclip
from minclip import InputError
from minclip.files import read


def write_safetensors(path, tensors: dict[str, torch.Tensor], **changes) -> None:
    """Write the format, or with changes to the entry of the first tensor a lie."""
    header, blob = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        data = tensor.contiguous().numpy().tobytes()
        dtype = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape),
                        "data_offsets": [len(blob), len(blob) + len(data)]}
        blob += data
    header[next(iter(tensors))] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)


class Archive(nn.Module):
    """Own tensors by nested attributes, as the modules of a published archive do."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        nested = {}
        for name, tensor in weights.items():
            head, _, rest = name.partition(".")
            if rest:
                nested.setdefault(head, {})[rest] = tensor
            else:
                self.register_buffer(name, tensor)
        for head, tensors in nested.items():
            self.add_module(head, Archive(tensors))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def refusal(path) -> str:
    """Return the one line that refuses a file."""
    with pytest.raises(InputError) as error:
        minclip.load(path)
    assert path.name in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_safetensors_hold_scalars_empty_tensors_and_every_type(tmp_path):
    tensors = {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3),
               "half": torch.ones(2).half(), "whole": torch.tensor([2**40])}
    write_safetensors(tmp_path / "a.safetensors", tensors)
    for name, tensor in read(tmp_path / "a.safetensors").items():
        assert torch.equal(tensor, tensors[name]) and tensor.dtype == tensors[name].dtype


@pytest.mark.parametrize("lie, reason", [
    ({"data_offsets": [0, 10**9]}, "outside the file"),
    ({"data_offsets": [-8, 4]}, "outside the file"),
    ({"shape": [3]}, "8 bytes, which are not"), ({"shape": [-1, -2]}, "outside the file"),
    ({"dtype": "F8"}, "KeyError"),
])
def test_a_lying_safetensors_header_is_an_error_and_no_crash(lie, reason, tmp_path):
    path = tmp_path / "lie.safetensors"
    write_safetensors(path, {"a": torch.ones(2), "b": torch.ones(3)}, **lie)
    assert reason in refusal(path)


def test_a_safetensors_header_longer_than_the_file_is_an_error(tmp_path):
    (tmp_path / "lie.safetensors").write_bytes(struct.pack("<Q", 2**62) + b'{"a": 1}')
    assert "longer than the file" in refusal(tmp_path / "lie.safetensors")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_is_read_under_the_names_of_its_state_dict(tmp_path):
    tensors = {"a": torch.ones(2).half(), "b.c": torch.tensor(3), "b.d.e": torch.eye(3)[1:]}
    torch.jit.script(Archive(tensors)).save(str(tmp_path / "archive.pt"))
    found = read(tmp_path / "archive.pt")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_that_would_run_code_is_refused(tmp_path):
    torch.jit.script(Archive({"a": torch.ones(2)})).save(str(tmp_path / "good.pt"))
    payload = b"\x80\x02cposix\nmkdir\n(X" + struct.pack("<I", len(b"it-ran")) + b"it-rantR."
    with (zipfile.ZipFile(tmp_path / "good.pt") as good,
          zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad):
        for name in good.namelist():
            bad.writestr(name, payload if name.endswith("/data.pkl") else good.read(name))
    assert "asks to run posix.mkdir" in refusal(tmp_path / "bad.pt")
    assert not os.path.exists("it-ran")
