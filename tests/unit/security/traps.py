"""Files that leave a mark if anything runs the code in them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Trap:
    """An object whose unpickling makes the folder ``mark``, without any module of a test."""

    def __init__(self, mark: Path) -> None:
        self._mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (self._mark,)


def add_code(folder: Path, mark: Path) -> None:
    """Give a model folder code of its own for model, tokenizer and processor, as ``auto_map`` names it."""
    classes = "".join(f"class {name}:\n    pass\n" for name in ("Config", "Model", "Tokenizer", "Processor"))
    (folder / "own_code.py").write_text(f"import os\nos.makedirs({str(mark)!r})\n{classes}")
    changes: dict[str, dict[str, Any]] = {
        "config.json": {
            "model_type": "own",
            "auto_map": {
                "AutoConfig": "own_code.Config",
                "AutoModelForCausalLM": "own_code.Model",
                "AutoModelForSequenceClassification": "own_code.Model",
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "OwnTokenizer",
            "auto_map": {"AutoTokenizer": ["own_code.Tokenizer", None]},
        },
        "preprocessor_config.json": {
            "processor_class": "OwnProcessor",
            "auto_map": {"AutoProcessor": "own_code.Processor"},
        },
    }
    for name, change in changes.items():
        file = folder / name
        values = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(values | change))
