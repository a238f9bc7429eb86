"""Write the definitions of metrics into the documentation: ``docs/metrics.md`` and the table on each rule's page.

python -m rlkl.tracking.metrics.pages
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlkl.tracking.metrics.registry import METRICS, RULE_METRICS
from rlkl.types import MetricDefinition

ROOT = Path(__file__).resolve().parents[3]
BEGIN, END = "<!-- metrics: written by python -m rlkl.tracking.metrics.pages -->\n", "<!-- end of metrics -->"
_HEADER = "| key | unit | formula | a bad value |\n|---|---|---|---|\n"


def render_docs() -> str:
    """Return ``docs/metrics.md``."""
    parts = [
        "# Metrics\n\n"
        "Written by `python -m rlkl.tracking.metrics.pages`; edit `rlkl/tracking/metrics/` and the `metrics.py` of\n"
        "the rules instead.\n\n"
        "The same keys are in `metrics.jsonl` (one JSON object per training step) and in W&B. `step` counts finished\n"
        "training steps from 1. Those of an evaluation (`eval/...`, `time/eval_s`) are in `eval.jsonl` and W&B. There\n"
        "`step` 0 is before training ([evaluation.md](evaluation.md)). Metrics marked with a clock differ between two\n"
        "otherwise identical runs. If only some rules log a metric, their names come first.\n"
    ]
    by_section: dict[str, list[MetricDefinition]] = {}
    for definition in METRICS:
        by_section.setdefault(definition.key.split("/")[0], []).append(definition)
    for section, definitions in sorted(by_section.items()):
        parts.append(f"\n## {section}\n\n{_HEADER}{_rows(definitions, with_rules=True)}")
    return "".join(parts)


def render_rule_page(rule: str, page: str) -> str:
    """Return a rule's page with the table of its metrics renewed; ValueError if the page lacks the two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page of {rule} has no table of metrics: add the lines {BEGIN.strip()} and {END}")
    return f"{before}{BEGIN}{_HEADER}{_rows(RULE_METRICS[rule], with_rules=False)}{END}{after}"


def rule_page(rule: str) -> Path:
    """Return the file of a rule's page."""
    return ROOT / "rlkl" / "updates" / rule / "README.md"


def _rows(definitions: Iterable[MetricDefinition], *, with_rules: bool) -> str:
    return "".join(_row(definition, with_rules=with_rules) for definition in definitions)


def _row(definition: MetricDefinition, *, with_rules: bool) -> str:
    rules = [name for name, metrics in RULE_METRICS.items() if definition in metrics] if with_rules else []
    unit = f"{definition.unit} (clock)" if definition.timing else definition.unit
    formula = f"{', '.join(rules)}: {definition.formula}" if rules else definition.formula
    return f"| `{definition.key}` | {unit} | {_cell(formula)} | {_cell(definition.bad)} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    (ROOT / "docs" / "metrics.md").write_text(render_docs())
    for name in RULE_METRICS:
        rule_page(name).write_text(render_rule_page(name, rule_page(name).read_text()))
