"""Report how the prose of the code reads: words per 1,000 words of docstrings and comments, by folder.

`python docs/prose.py [FOLDER ...]`. A guide, not a gate: "where" for "if" and pronouns without a noun make
sentences that can only be read together with the line above. Seven model projects have at most 2 "where", 20 pronouns
and at least 5 "if" or "when".
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

TREE = Path(__file__).parents[1]
FOLDERS = ("root_dash", "server", "frontend")
PATTERNS = {
    "where": r"where",
    "pronouns": r"it|that|those|ones?",
    "if/when": r"if|when",
    "what/which/whose": r"what|which|whose|who",
    "return/compute": r"returns?|computes?",
}


def prose(path: Path) -> Iterator[str]:
    """Yield the docstrings and the comments of a Python file."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("# ")


def rates(paths: list[Path]) -> tuple[int, dict[str, float]]:
    """Count the words of files, and each pattern per 1,000 of the words."""
    text = " ".join(part for path in paths for part in prose(path))
    words = len(re.findall(r"[A-Za-z']+", text))
    found = {name: len(re.findall(rf"\b(?:{p})\b", text, re.IGNORECASE)) for name, p in PATTERNS.items()}
    return words, {name: 1000 * count / max(words, 1) for name, count in found.items()}


def files(folder: str) -> list[Path]:
    """List the Python files of a folder; a link to another folder is not followed."""
    return sorted(path for path in (TREE / folder).rglob("*.py") if not any(p.is_symlink() for p in path.parents))


def main() -> None:
    """Print a line for each folder below the product's, and one for all."""
    given = sys.argv[1:]
    if not given:
        below = [p for p in (TREE / "root_dash").iterdir() if p.is_dir() and not p.is_symlink() and p.name[0] != "_"]
        given = [*(str(p.relative_to(TREE)) for p in sorted(below)), "server", "frontend"]
    print(f"{'folder':28}{'words':>8}" + "".join(f"{name:>18}" for name in PATTERNS))
    groups = {folder: files(folder) for folder in given}
    groups["root_dash, server, frontend"] = [path for folder in FOLDERS for path in files(folder)]
    for folder, paths in groups.items():
        words, found = rates(paths)
        print(f"{folder:28}{words:8,}" + "".join(f"{rate:18.1f}" for rate in found.values()))


if __name__ == "__main__":
    main()
