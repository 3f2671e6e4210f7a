"""Flags made of dataclass fields."""

from dataclasses import dataclass

from common.run.flags import Options, Parser, add_fields, option, typed_fields


@dataclass(frozen=True)
class ExampleOptions(Options):
    some_sizes: tuple[int, ...] = option((1, 2), "how many sizes")
    share: float = option(0.5, "not quite 100%", least=0, most=1)
    on: bool = option(True, "a switch")
    plain: int = 3


def test_every_field_becomes_a_flag_with_its_help_and_default():
    parser = Parser(prog="x")
    add_fields(parser, ExampleOptions)
    assert typed_fields(parser.parse_args(["--some-sizes", "3", "4", "--plain", "5", "--no-on"]), ExampleOptions) == {
        "some_sizes": (3, 4), "plain": 5, "on": False}
    assert typed_fields(parser.parse_args([]), ExampleOptions) == {}  # only what was typed
    text = parser.format_help()
    assert "how many sizes (default: 1 2)" in text and "--share" in text and "100%" in text
