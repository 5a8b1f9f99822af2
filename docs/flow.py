"""Draw the flow from a gradient to a pixel: `python docs/flow.py` writes `docs/flow.svg`.

The figure is made of the rows below, so that a change of the code changes one line here. Each row is a thread or a
process; each box names the file that does the work.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

ROWS = [
    (
        "training thread",
        [
            ("optimizer.step()", "optim/root.py"),
            ("shows M, ε, B, X", "optim/observation.py"),
            ("which kinds are due", "monitor/limits/pace.py"),
            ("measures on the device", "monitor/quantities/"),
            ("one asynchronous copy", "monitor/writing/transfer.py"),
        ],
    ),
    (
        "writer thread",
        [
            ("bounded queue", "monitor/writing/writer.py"),
            ("merges ranks", "monitor/ranks/merge.py"),
            ("statistics, frame", "monitor/frames.py"),
            ("one transaction", "store/write/recording.py"),
            ("pyramid", "store/pyramid/fold.py"),
        ],
    ),
    (
        "database",
        [("SQLite in WAL mode, or PostgreSQL: the id of a frame is the cursor", "store/tables/schema.py")],
    ),
    (
        "server",
        [
            ("token, host, origin", "server/guard.py"),
            ("notices, not data", "server/stream.py"),
            ("read verbs", "store/store.py"),
            ("records as JSON", "server/json_records.py"),
        ],
    ),
    (
        "dashboard",
        [
            ("cursor store", "frontend/assets/stream.js"),
            ("callbacks", "frontend/callbacks.py"),
            ("one file a panel", "frontend/panels/"),
            ("records to figures", "frontend/figures/"),
        ],
    ),
]

WIDTH, LEFT, TOP, HEIGHT, ROW, GAP = 1180, 130, 20, 56, 96, 26
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1d2430 }
  .file { font: 11px ui-monospace, monospace; fill: #5b6675 }
  .row { font-weight: 600; fill: #5b6675 }
  rect { fill: #ffffff; stroke: #9aa5b4 }
  path { fill: none; stroke: #5b6675; stroke-width: 1.4; marker-end: url(#head) }
"""


def boxes(row: int, texts: list[tuple[str, str]]) -> list[tuple[float, float, float, str, str]]:
    """Place the boxes of a row: left edge, top edge, width, sentence and file of each."""
    width = (WIDTH - LEFT - GAP * len(texts)) / len(texts)
    return [(LEFT + i * (width + GAP), TOP + row * ROW, width, *text) for i, text in enumerate(texts)]


def svg() -> str:
    """Return the figure as an SVG document."""
    parts: list[str] = []
    placed = [boxes(index, texts) for index, (_, texts) in enumerate(ROWS)]
    for index, (name, _) in enumerate(ROWS):
        parts.append(f'<text class="row" x="12" y="{TOP + index * ROW + HEIGHT / 2 + 4}">{escape(name)}</text>')
        for number, (x, y, width, sentence, file) in enumerate(placed[index]):
            middle = x + width / 2
            parts += [
                f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{HEIGHT}" rx="4"/>',
                f'<text x="{middle:.0f}" y="{y + 23}" text-anchor="middle">{escape(sentence)}</text>',
                f'<text class="file" x="{middle:.0f}" y="{y + 42}" text-anchor="middle">{escape(file)}</text>',
            ]
            if number + 1 < len(placed[index]):
                parts.append(f'<path d="M{x + width:.0f},{y + HEIGHT / 2} h{GAP - 4}"/>')
    for above, below in zip(placed, placed[1:], strict=False):
        x_above, y_above, width_above, *_ = above[-1]
        x_below, y_below, width_below, *_ = below[0]
        start, end = x_above + width_above / 2, x_below + width_below / 2
        turn = y_above + HEIGHT + (y_below - y_above - HEIGHT) / 2
        parts.append(f'<path d="M{start:.0f},{y_above + HEIGHT} V{turn} H{end:.0f} V{y_below - 4}"/>')
    height = TOP + len(ROWS) * ROW
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8" style="marker-end:none"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="The flow from a gradient to a pixel">\n<style>{STYLE}</style>\n<defs>{head}</defs>\n'
        f'<rect width="{WIDTH}" height="{height}" style="fill:#f7f8fa;stroke:none"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("flow.svg").write_text(svg())
