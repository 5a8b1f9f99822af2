"""The text of the demo: real, split by file, and the same at every call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from root_dash.demo.text import Text, standard_library
from root_dash.exceptions import RootDashError


def test_no_file_is_in_both_splits(tmp_path: Path) -> None:
    """Each file is whole in one of the two texts, by its path alone. Files of site-packages are in neither."""
    for index in range(200):
        (tmp_path / f"m{index}.py").write_text(f"# file {index}\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("# not ours\n")
    text = standard_library(tmp_path)
    train, validation = (bytes(part.numpy()).decode() for part in (text.train, text.validation))
    lines = [set(part.splitlines()) for part in (train, validation)]
    assert lines[0] & lines[1] == set()
    assert lines[0] | lines[1] == {f"# file {index}" for index in range(200)}
    assert 2 <= len(lines[1]) <= 30


def test_the_standard_library_has_megabytes_of_both() -> None:
    """There is enough text to train on and to validate on, and it is the same at every call."""
    text = standard_library()
    assert len(text.train) > 3_000_000
    assert len(text.validation) > 100_000
    assert torch.equal(text.validation, standard_library().validation)


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    """Some distributions leave the sources out: the message then names the folder."""
    with pytest.raises(RootDashError, match=str(tmp_path)):
        standard_library(tmp_path)


def test_targets_are_the_next_bytes() -> None:
    """The targets of random training windows and of the fixed validation windows are the next bytes."""
    text = Text(torch.arange(200, dtype=torch.uint8), torch.arange(200, dtype=torch.uint8))
    for inputs, targets in [text.batch(4, 10, torch.Generator().manual_seed(0)), *text.validation_batches(4, 10, 2)]:
        assert inputs.shape == targets.shape == (4, 10)
        assert torch.equal(inputs + 1, targets)
