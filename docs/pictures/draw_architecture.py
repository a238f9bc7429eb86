"""Draw docs/pictures/architecture.svg from docs/pictures/architecture.yaml.

python docs/pictures/draw_architecture.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
SOURCE, TARGET = FOLDER / "architecture.yaml", FOLDER / "architecture.svg"
HEAD = """<svg xmlns="http://www.w3.org/2000/svg"
 viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">
<defs><marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">
<path d="M0,0 L9,4 L0,8 z" fill="#444"/></marker></defs>
<rect width="{width}" height="{height}" fill="white"/>"""


def render(source: dict[str, Any]) -> str:
    """Return the picture as SVG text."""
    parts = [HEAD.format(width=source["width"], height=source["height"])]
    for box in source["boxes"].values():
        x, y, width, height = box["at"]
        parts.append(_rectangle(box["at"], fill=box.get("colour", "#eeeeee")))
        middle, top = x + width / 2, y + (height - 18 * len(box["lines"])) / 2
        parts.append(_text(middle, top + 2, box["title"], "middle", 'font-weight="bold" font-size="15"'))
        parts += [_text(middle, top + 22 + 18 * row, line) for row, line in enumerate(box["lines"])]
    for arrow in source["arrows"]:
        points = " ".join(f"{x},{y}" for x, y in arrow["points"])
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="#444" stroke-width="1.6" marker-end="url(#tip)"/>'
        )
        parts.append(_text(*arrow["label"], arrow["text"], "middle", 'font-style="italic" font-size="12"'))
    parts += [_text(*note["at"], note["text"], "start", 'fill="#666" font-size="12"') for note in source["notes"]]
    return "\n".join([*parts, "</svg>", ""])


def _rectangle(at: list[int], *, fill: str) -> str:
    x, y, width, height = at
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="#555"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", style: str = 'fill="#222"') -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {style}>{escape(text)}</text>'


if __name__ == "__main__":
    TARGET.write_text(render(yaml.safe_load(SOURCE.read_text())))
    print(TARGET)
