"""The matrix of models: every architecture, precision, adapters or none, rule and engine; run it, and write its table.

``python -m tests.realistic.matrix`` runs all cells and writes the table into ``docs/models.md``. Words after it choose
cells: ``python -m tests.realistic.matrix qwen3 vllm`` runs those whose names hold both. Verdicts are kept in
``runs/realistic``; cells that are not run keep theirs.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from rlkl.system.machine import this_machine
from tests.realistic.cells import Cell, Verdict
from tests.realistic.models import ARCHITECTURES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "runs" / "realistic"
PAGE = ROOT / "docs" / "models.md"
START, END = "<!-- matrix: start -->", "<!-- matrix: end -->"
TIMEOUT_S = 1800
PRECISIONS = tuple((dtype, lora) for dtype in ("float32", "bfloat16") for lora in (False, True))
RULES = ("grpo", "ppo", "superhf", "sparsepo", "papo", "listwise", "distill")

_MODEL_FOLDER = re.compile(r"/\S*/[a-z0-9_]+-\d+-\d+-[^'\s]*")
"""The folder of a built model within a message."""

logger = logging.getLogger(__name__)


def all_cells() -> list[Cell]:
    """Every architecture and precision with each rule on the hf engine, and with grpo on vLLM."""
    return [
        Cell(architecture=architecture, dtype=dtype, lora=lora, rule=rule, engine=engine)
        for architecture in ARCHITECTURES
        for engine, rules in (("hf", RULES), ("vllm", RULES[:1]))
        for dtype, lora in PRECISIONS
        for rule in rules
    ]


def run_all(cells: Sequence[Cell], *, jobs: int) -> None:
    """Run the cells in processes, ``jobs`` at a time, and add their verdicts to those that are kept."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    together = [list(group) for _, group in groupby(cells, key=lambda cell: (cell.architecture, cell.engine))]
    parts = [part for group in together for part in ([group] if group[0].engine == "hf" else [[c] for c in group])]
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(_run_part, number, part) for number, part in enumerate(parts)]
        for done in as_completed(running):
            with (FOLDER / "verdicts.jsonl").open("a") as file:
                file.writelines(json.dumps(asdict(verdict)) + "\n" for verdict in done.result())


def _run_part(number: int, cells: Sequence[Cell]) -> list[Verdict]:
    """Run cells in one process of their own; a cell without an answer is wrong."""
    file = FOLDER / f"part-{os.getpid()}-{number}.json"
    file.write_text(json.dumps([asdict(cell) for cell in cells]))
    command = [sys.executable, "-m", "tests.realistic.cells", str(FOLDER), str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    deadline = f"{TIMEOUT_S * len(cells)}"
    done = subprocess.run(
        ["timeout", "-k", "10", deadline, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    file.unlink()
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"cell":')]
    found = {answer["cell"]: Verdict(**answer) for answer in answers}
    tail = " ".join(done.stderr.split())[-400:]
    lost = f"the process ended with exit code {done.returncode} and without a verdict: {tail}"
    verdicts = [found.get(cell.name) or Verdict(cell=cell.name, status="wrong", reason=lost) for cell in cells]
    for verdict in verdicts:
        logger.info("%-45s %-8s %s %s", verdict.cell, verdict.status, _figure(verdict), verdict.reason[:200])
    return verdicts


def kept_verdicts() -> dict[str, Verdict]:
    """The newest verdict of each cell."""
    file = FOLDER / "verdicts.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return {verdict.cell: verdict for verdict in (Verdict(**json.loads(line)) for line in lines)}


def tables(verdicts: dict[str, Verdict]) -> str:
    """The tables of ``docs/models.md`` in Markdown."""
    parts = [
        "**Engines, with `grpo`.** The figure is the largest difference of a sampled token's log-prob between engine",
        "and learner over three steps, in nats (`rollout/mismatch_max`).",
        "",
        *_precision_table(verdicts),
        "",
        "**Rules, on the hf engine.** f32 is float32, bf16 is bfloat16, +L is with LoRA.",
        "",
        *_rule_table(verdicts),
        "",
        *_reasons(verdicts),
    ]
    return "\n".join(parts)


def _precision_table(verdicts: dict[str, Verdict]) -> Iterator[str]:
    titles = [f"{dtype}{', LoRA' if lora else ''}" for dtype, lora in PRECISIONS]
    yield f"| architecture | engine | {' | '.join(titles)} |"
    yield f"|---|---|{'---|' * len(titles)}"
    for architecture in ARCHITECTURES:
        for engine in ("hf", "vllm"):
            named = [
                Cell(architecture=architecture, dtype=dtype, lora=lora, rule="grpo", engine=engine).name
                for dtype, lora in PRECISIONS
            ]
            yield f"| {architecture} | {engine} | {' | '.join(_entry(verdicts.get(name)) for name in named)} |"


def _rule_table(verdicts: dict[str, Verdict]) -> Iterator[str]:
    yield f"| architecture | {' | '.join(RULES)} |"
    yield f"|---|{'---|' * len(RULES)}"
    for architecture in ARCHITECTURES:
        entries = [_rule_entry(architecture, rule, verdicts) for rule in RULES]
        yield f"| {architecture} | {' | '.join(entries)} |"


def _rule_entry(architecture: str, rule: str, verdicts: dict[str, Verdict]) -> str:
    """Name the precisions by what came of them: ``works: f32, f32+L; refused: bf16+L``."""
    by_status: dict[str, list[str]] = {}
    for dtype, lora in PRECISIONS:
        name = Cell(architecture=architecture, dtype=dtype, lora=lora, rule=rule).name
        if name in verdicts:
            short = {"float32": "f32", "bfloat16": "bf16"}[dtype] + ("+L" if lora else "")
            by_status.setdefault(verdicts[name].status, []).append(short)
    return "; ".join(f"{status}: {', '.join(names)}" for status, names in by_status.items()) or "not run"


def _reasons(verdicts: dict[str, Verdict]) -> Iterator[str]:
    """Each reason once, with the cells that it holds for."""
    for status, title in (("refused", "Refused, before training starts:"), ("wrong", "Wrong:")):
        reasons: dict[str, list[str]] = {}
        for verdict in verdicts.values():
            if verdict.status == status:
                reason = _MODEL_FOLDER.sub("MODEL", verdict.reason)
                reasons.setdefault(reason, []).append(verdict.cell)
        if reasons:
            yield title
            yield ""
            for reason, cells in reasons.items():
                yield f"- {', '.join(cells)}: {reason}"
            yield ""


def _entry(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not run"
    return f"{verdict.status} {_figure(verdict)}".strip()


def _figure(verdict: Verdict) -> str:
    return "" if verdict.mismatch_max is None else f"{verdict.mismatch_max:.1e}"


def write_page(verdicts: dict[str, Verdict]) -> None:
    """Replace the tables in ``docs/models.md``."""
    text = PAGE.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n\n{tables(verdicts).strip()}\n\n{END}{after}")


def main(words: Sequence[str]) -> int:
    """Run the cells whose names hold all words, and write the page; 1 if a cell is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    chosen = [cell for cell in all_cells() if all(word in cell.name.split() for word in words)]
    run_all(chosen, jobs=int(this_machine().cpus))
    verdicts = kept_verdicts()
    write_page(verdicts)
    return int(any(verdict.status == "wrong" for verdict in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
