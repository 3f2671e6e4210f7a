"""Read files of weights as data: code in them is never run.

    torch.save     a zip around a pickle (before 1.6 a bare pickle)    ours, open_clip, Hugging Face
    TorchScript    a zip around a pickle of modules, and their code    OpenAI
    safetensors    length of the header, header in JSON, numbers       Hugging Face, open_clip

A pickle is a small program: one of its instructions is "call this function with these arguments",
and a malicious file calls os.system. So a file may call only what is in a short list of harmless
names; anything else is refused. Tensors are memory-mapped: they stay in the file, and reading one
costs nothing until its numbers are used.
"""

import json
import math
import mmap
import pickle
import re
import struct
import zipfile
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from .errors import InputError

DTYPES = {  # of safetensors
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}
STORAGES = {  # of TorchScript
    "HalfStorage": torch.float16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "BoolStorage": torch.bool, "ByteStorage": torch.uint8,
}


def read(path: str | PathLike) -> Any:
    """Return the content of a file, usually a dict of names and tensors, on the CPU.

    Raises InputError, in one line, if it cannot be opened, is damaged, or asks to run code.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if start[8:] == b"{":  # JSON after 8 bytes of length; torch's files have another byte here
            return read_safetensors(path)
        is_zip = zipfile.is_zipfile(path)
        names = zipfile.ZipFile(path).namelist() if is_zip else []
        if any(name.endswith("/constants.pkl") for name in names):
            return read_torchscript(path)
        # mmap, which needs a zip, leaves on disk what nobody uses, such as an optimiser's state
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # damaged bytes make a reader fail in every way there is
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InputError(f"{path} asks to run {wanted[1]}, which no file of weights needs: "
                             "refused") from None
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise InputError(f"{path} is damaged, or no file of weights ({reason})") from error


def map_file(path: str | PathLike) -> mmap.mmap:
    """Map a file into memory, copy-on-write: changing a tensor leaves the file as it is."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def read_safetensors(path: str | PathLike) -> dict[str, Tensor]:
    """Read {name: tensor}. Numbers in the header may be wrong: each is checked first."""
    memory = map_file(path)
    first = 8 + int.from_bytes(memory[:8], "little")  # the header ends here, the numbers begin
    if first > len(memory):
        raise InputError(f"its header of {first - 8} bytes is longer than the file")
    tensors = {}
    for name, entry in json.loads(memory[8:first]).items():
        if name == "__metadata__":
            continue
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
        begin, end = entry["data_offsets"]
        if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(memory) - first:
            raise InputError(f"{name} lies outside the file")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise InputError(f"{name} has {end - begin} bytes, which are not {shape} of "
                             f"{entry['dtype']}")
        count, flat = math.prod(shape), torch.empty(0, dtype=dtype)
        if end > begin:  # frombuffer refuses to read nothing
            flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=first + begin)
        tensors[name] = flat.reshape(shape)
    return tensors


class Module:
    """Replace every class of a TorchScript archive: only the attributes of an instance are kept."""

    def __setstate__(self, attributes: dict[str, Any]):
        self.attributes = attributes

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the state dict: each tensor under the path of attributes that leads to it."""
        found = {}
        for name, value in self.attributes.items():
            if isinstance(value, Module):
                found |= value.tensors(f"{prefix}{name}.")
            elif isinstance(value, Tensor):
                found[prefix + name] = value
        return found


def read_torchscript(path: str | PathLike) -> dict[str, Tensor]:
    """Read a TorchScript archive's tensors, under the names of its state dict; its code is not run.

    ROOT/data.pkl holds the modules; a tensor names the file ROOT/data/KEY of its numbers.
    """
    archive, memory = zipfile.ZipFile(path), map_file(path)
    modules = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    root = modules.removesuffix("data.pkl")

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module.split(".")[0] == "__torch__":
                return Module
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return lambda numbers, offset, shape, strides, *_: numbers.as_strided(
                    shape, strides, offset)
            if (module, name) == ("collections", "OrderedDict"):
                return dict
            if module == "torch" and name in STORAGES:
                return STORAGES[name]
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

        def persistent_load(self, reference: tuple) -> Tensor:
            _, dtype, key, _, count = reference
            entry = archive.getinfo(f"{root}data/{key}")
            too_short = count * dtype.itemsize > entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED or too_short:
                raise pickle.UnpicklingError(f"storage {key} is compressed or too short")
            # the numbers follow zip's local header: 30 bytes, a name and extras of these lengths
            name, extra = struct.unpack_from("<HH", memory, entry.header_offset + 26)
            offset = entry.header_offset + 30 + name + extra
            return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)

    with archive.open(modules) as file:
        return Reader(file).load().tensors()
