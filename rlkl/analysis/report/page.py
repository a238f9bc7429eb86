"""The HTML file: style, scripts, charts and data in one. Data is packed, and the scripts show texts as text only."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from importlib.resources import files
from typing import Any

from rlkl.analysis.report.bundle import vega_bundle

_ASSETS = files("rlkl.analysis.report") / "assets"


def render_page(title: str, content: dict[str, Any], samples: dict[str, Any], *, refresh_s: int | None = None) -> str:
    """Return the page. ``refresh_s``: seconds after which the browser loads it again.

    The content security policy names the two scripts by their hashes and allows nothing to be fetched.
    """
    vega = vega_bundle()
    script = f"(() => {{\n{_asset('report.js')}{_asset('samples.js')}}})();\n"  # Vega's own names are global
    refresh = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s}">'
    parts = {
        "{{policy}}": _policy(vega, script),
        "{{refresh}}": refresh,
        "{{title}}": html.escape(title),
        "{{style}}": _asset("report.css"),
        "{{content}}": packed(content),
        "{{samples}}": packed(samples),
        "{{vega}}": vega,
        "{{script}}": script,
    }
    page = _asset("page.html")
    for mark, text in parts.items():
        before, _, after = page.partition(mark)
        page = before + text + after
    return page


def packed(value: Any) -> str:
    """Return a value as JSON, compressed, in base64: no character of a text can end the script element around it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", errors="replace"), 6, mtime=0)).decode()


def _policy(*scripts: str) -> str:
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: file:; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
