"""What all tests share: their order, and an environment without the user's settings."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then those that start processes, then the browser: a mistake shows early."""
    items.sort(key=lambda item: ("browser" in item.keywords, "heavy" in item.keywords))


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ROOT_DASH_")]:
        monkeypatch.delenv(name)
