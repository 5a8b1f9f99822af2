"""The documentation names files that exist, links that resolve, and a figure that its script draws."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
PAGES = sorted([*TREE.glob("*.md"), *(TREE / "docs").glob("*.md")])


def test_every_noun_has_its_file() -> None:
    """The table of nouns has at least 40 rows, and each names a file of the tree."""
    text = (TREE / "docs" / "architecture.md").read_text().partition("## Where is what")[2]
    rows = re.findall(r"^\| (.+?) \| `(.+?)` \|$", text, re.MULTILINE)
    assert len(rows) >= 40
    assert [file for _, file in rows if not (TREE / file).is_file()] == []
    assert len({noun for noun, _ in rows}) == len(rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    """Every relative link of a page leads to a file or folder of the tree."""
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_figure_of_the_flow_is_drawn_by_its_script() -> None:
    """`docs/flow.svg` is what `docs/flow.py` draws, and each file in it exists."""
    spec = importlib.util.spec_from_file_location("flow", TREE / "docs" / "flow.py")
    assert spec is not None
    assert spec.loader is not None
    flow = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(flow)
    assert (TREE / "docs" / "flow.svg").read_text() == flow.svg()
    named = [file for _, texts in flow.ROWS for _, file in texts]
    folders = (TREE / "root_dash", TREE)
    assert [file for file in named if not any((folder / file).exists() for folder in folders)] == []
