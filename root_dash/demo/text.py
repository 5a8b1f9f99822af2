"""Real text that every machine has: the source code of Python's standard library, as bytes."""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from root_dash.exceptions import RootDashError

VOCABULARY = 256
"""Number of different tokens. A token is a byte."""

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_HELD_OUT_SHARE = 16
"""One file in 16 is for validation."""


@dataclass(frozen=True, slots=True)
class Text:
    """The bytes to train on and the bytes to validate on, each (n,) of uint8. No file is in both."""

    train: Tensor
    validation: Tensor

    def batch(self, size: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random windows of the training text, and their targets one byte further: (size, context), int64."""
        starts = torch.randint(len(self.train) - context, (size,), generator=generator)
        return _windows(self.train, starts, context)

    def validation_batches(self, size: int, context: int, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return `count` batches of evenly spread windows of the validation text, the same at every call."""
        starts = torch.linspace(0, len(self.validation) - context - 1, size * count).long()
        return [_windows(self.validation, part, context) for part in starts.split(size)]


def standard_library(root: Path | None = None) -> Text:
    """Return the modules of the standard library. The hash of its path decides whether a file is for validation.

    Raises:
        RootDashError: there are no sources below `root`. Some distributions of Python leave them out.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not _LEFT_OUT.intersection(relative.parts):
            digest = hashlib.sha256(relative.as_posix().encode()).digest()
            parts[digest[0] % _HELD_OUT_SHARE == 0].append(path.read_bytes())
    if not parts[True] or not parts[False]:
        raise RootDashError(f"the demo trains on the standard library's source, and there is too little in {root}")
    return Text(
        *(torch.frombuffer(bytearray(b"".join(parts[held_out])), dtype=torch.uint8) for held_out in (False, True))
    )


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    windows = text[starts.unsqueeze(1) + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]
