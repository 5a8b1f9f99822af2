"""Values of any type as plain JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from root_dash.records.plain import plain


class _Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("cannot show itself")


@pytest.mark.parametrize("key", [_Unshowable(), 10**5000], ids=["an object that cannot show itself", "a long integer"])
def test_a_key_that_has_no_text_becomes_the_name_of_its_type(key: object) -> None:
    """A config must not stop a training run, whatever its keys."""
    assert json.loads(json.dumps(plain({"a": [{key: 1}]}))) == {"a": [{f"<{type(key).__name__}>": 1}]}


def test_other_keys_are_kept_as_their_text() -> None:
    """Numbers, paths and None are keys in configs."""
    assert plain({1: 0, 0.5: 0, None: 0, Path("a"): 0, "b": 0}).keys() == {"1", "0.5", "None", "a", "b"}
