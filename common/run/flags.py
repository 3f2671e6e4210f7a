"""Make command-line flags of dataclass fields: field, default and help are written once.

    @dataclass
    class Recipe:
        batch_size: int = option(128, "pairs a step") -> --batch-size N  pairs a step (default: 128)

Only what was typed ends up in the namespace: the rest may come from a checkpoint, or the default.
"""

import argparse
import dataclasses
import os
import shlex
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError

ROOT = Path(__file__).parents[2]


def option(default: Any, help: str, least: float | None = None, most: float | None = None,
           **more: Any) -> Any:
    """Declare a field with its help and range; `more` goes to add_argument, as `choices` does."""
    return dataclasses.field(default=default,
                             metadata={"help": help, "least": least, "most": most, **more})


def positional(metavar: str, nargs: str | None = None) -> Any:
    """Declare a field that is no flag but a word in its place."""
    return option(None, "", metavar=metavar, nargs=nargs, positional=True)


@dataclass(frozen=True)
class Options:
    """Check a dataclass's fields against the ranges that its options name. Raises InputError."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least, most = (getattr(self, field.name), field.metadata.get("least"),
                                  field.metadata.get("most"))
            low = value is not None and least is not None and value < least
            if low or value is not None and most is not None and value > most:
                between = f"from {least} to {most}" if most is not None else f"{least} or more"
                raise InputError(f"--{field.name.replace('_', '-')} {value}: choose {between}")


class Parser(argparse.ArgumentParser):
    """Refuse a bad command line in one line, with exit code 2; take no abbreviated flags."""

    def __init__(self, **options: Any):
        defaults = {"allow_abbrev": False, "argument_default": argparse.SUPPRESS}
        super().__init__(**defaults | options)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def add_fields(parser: argparse.ArgumentParser, cls: type, prefix: str = "",
               without: tuple[str, ...] = (), variants: dict[str, Any] = {}) -> None:
    """Give the parser a flag for each field of a dataclass, but for those in `without`.

    prefix: with "clip." the flag of `batch_size` is --clip.batch-size
    variants: {case: instance} with the defaults in other cases, which help names too
    """
    group, hints = parser.add_argument_group(f"{prefix}{cls.__name__}"), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in without:
            continue
        more = {key: value for key, value in field.metadata.items()
                if key not in ("help", "least", "most")}
        kind, many = value_type(hints[field.name])
        if more.pop("positional", False):
            group.add_argument(field.name, **more)
            continue
        if kind is bool:
            more["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
        else:
            letter = {int: "N", float: "X"}.get(kind, "NAME")
            usual = {"type": kind} | ({"nargs": "*"} if many else {})
            more = usual | ({} if "choices" in more else {"metavar": letter}) | more
        name = field.name.replace("_", "-")
        flag = f"-{name}" if len(name) == 1 else f"--{prefix}{name}"
        group.add_argument(flag, dest=prefix + field.name, help=help_of(field, variants), **more)


def help_of(field: dataclasses.Field, variants: dict[str, Any]) -> str:
    """Write a field's help with its default, and with other defaults by case."""
    text = field.metadata.get("help", "").replace("%", "%%")
    if field.default is None or field.default is False or field.default == ():
        return text
    cases = [f"{case} {words(getattr(other, field.name))}" for case, other in variants.items()
             if getattr(other, field.name) != field.default]
    return f"{text} (default: {', '.join([words(field.default), *cases])})"


def value_type(hint: Any) -> tuple[type, bool]:
    """Read a type hint -> the type of a value, whether there are many: int | None -> int, False."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def words(value: Any) -> str:
    """Write a value as it is typed: (1, 2, 4) -> "1 2 4"."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def typed_fields(args: argparse.Namespace, cls: type, prefix: str = "") -> dict[str, Any]:
    """Pick the fields of a dataclass that were typed -> {field: value}."""
    names = [field.name for field in dataclasses.fields(cls) if hasattr(args, prefix + field.name)]
    values = [getattr(args, prefix + name) for name in names]
    return {name: tuple(value) if isinstance(value, list) else value
            for name, value in zip(names, values)}


def command(script: str, *arguments: Any) -> str:
    """Spell a command that works when pasted into a shell, from the folder we are in."""
    def short(path: str | Path) -> str:
        return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else str(path)

    return shlex.join([short(sys.executable), short(ROOT / script), *map(str, arguments)])
