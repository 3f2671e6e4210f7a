"""The gallery of failures still breaks today's sources."""

import re

import pytest

from benchmarks.failures import FAILURES, break_sources
from common.run.errors import InputError
from conftest import ROOT

GALLERY = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_breaks_a_copy_of_the_sources_and_leaves_ours(name, tmp_path):
    before = {file: (ROOT / file).read_bytes() for file, *_ in FAILURES[name].changes}
    break_sources(tmp_path, FAILURES[name])
    for file, text in before.items():
        assert (ROOT / file).read_bytes() == text != (tmp_path / file).read_bytes()
        compile((tmp_path / file).read_text(encoding="utf-8"), file, "exec")


def test_a_line_that_no_longer_stands_in_its_file_is_refused(tmp_path):
    failure = FAILURES["learning_rate"]
    stale = type(failure)("clip", "", changes=(("train.py", "a line that is not there", ""),))
    with pytest.raises(InputError, match="train.py holds 'a line that is not there' 0 times"):
        break_sources(tmp_path, stale)


def test_the_gallery_names_every_failure_and_only_tests_that_exist():
    assert set(re.findall(r"benchmarks\.failures ([a-z_]+)`", GALLERY)) == set(FAILURES)
    guards = re.findall(r"`(test_\w+)`", GALLERY)
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert guards and not [guard for guard in guards if f"def {guard}(" not in tests]
