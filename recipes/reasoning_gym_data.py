"""Write questions of reasoning-gym (arXiv 2505.24760) as a data source for `rlkl train`.

python recipes/reasoning_gym_data.py TARGET.jsonl [--tasks gcd,lcm,...] [--rows N] [--seed S]

A row has the columns id, prompt, task, and entry: the entry of reasoning-gym as JSON text, from which
reward_models:ReasoningGym scores a completion. Needs: pip install 'rlkl[reasoning-gym]'.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TASKS = ("fraction_simplification", "gcd", "lcm")
"""The tasks of the authors' run on arithmetic (training/configs/intra_generalisation/arithmetic_qwen_3b.yaml)."""
ROWS = 20_000
"""Size of the data set in that run."""


def rows(tasks: Sequence[str], number: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield ``number`` rows, the tasks in turn.

    Raises `ValueError` for a task that does not exist, or whose verifier needs more than JSON can hold.
    """
    from reasoning_gym import create_dataset, get_score_answer_fn

    each = -(-number // len(tasks))
    sets = {task: create_dataset(task, size=each, seed=seed) for task in tasks}
    for task, data in sets.items():
        entry = data[0]
        again = json.loads(json.dumps(entry))
        score = get_score_answer_fn(task)
        if score(answer=entry["answer"], entry=again) != data.score_answer(answer=entry["answer"], entry=entry):
            raise ValueError(
                f"the entries of {task} change when they are written as JSON, so its answers could not be checked"
            )
    for row in range(number):
        task = tasks[row % len(tasks)]
        entry = sets[task][row // len(tasks)]
        yield {
            "id": f"{task}-{row // len(tasks)}",
            "prompt": entry["question"],
            "task": task,
            "entry": json.dumps(entry, ensure_ascii=False),
        }


def main() -> int:
    """Write the file; return 2 for bad input."""
    parser = argparse.ArgumentParser(description="Write questions of reasoning-gym as a data source.")
    parser.add_argument("target", type=Path, metavar="TARGET.jsonl")
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, with commas between them")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        lines = [
            json.dumps(row, ensure_ascii=False) for row in rows(options.tasks.split(","), options.rows, options.seed)
        ]
    except (ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.target.parent.mkdir(parents=True, exist_ok=True)
    options.target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} rows in {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
