"""The package as a whole: light to import, light to carry."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import reward_models

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "transformers", "ray", "vllm", "math_verify", "sympy", "jsonschema", "httpx", "regex", "numpy")

EXAMPLES: dict[str, dict[str, Any]] = {
    "CodeExecution": {},
    "Ensemble": {
        "members": [
            {"function": "reward_models:ExactMatch"},
            {"function": "reward_models:FormatMatch"},
        ]
    },
    "ExactMatch": {"answer_column": "label"},
    "FormatMatch": {},
    "JsonSchema": {"schema_column": "schema"},
    "Judge": {"base_url": "http://127.0.0.1:1/v1", "model": "m"},
    "Length": {"limit": 3},
    "MathAnswer": {},
    "NumericMatch": {},
    "ReasoningGym": {},
    "Regex": {"pattern": "a"},
    "SentimentLexicon": {},
    "SequenceClassifier": {"path": "/models/reward"},
}
ARGUMENTS = {
    "CodeExecution": ["completion", "tests"],
    "Ensemble": ["completion", "answer"],
    "ExactMatch": ["completion", "label"],
    "FormatMatch": ["completion"],
    "JsonSchema": ["completion", "schema"],
    "Judge": ["prompt", "completion"],
    "Length": ["completion_ids"],
    "MathAnswer": ["completion", "answer"],
    "NumericMatch": ["completion", "answer"],
    "ReasoningGym": ["completion", "entry"],
    "Regex": ["completion"],
    "SentimentLexicon": ["completion"],
    "SequenceClassifier": ["completions", "prompts"],
}


def test_importing_it_loads_nothing_heavy():
    code = "import sys, reward_models; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert sorted(set(HEAVY) & set(answer.stdout.split())) == []


@pytest.mark.parametrize("name", reward_models.__all__)
def test_each_reward_names_its_arguments_and_can_be_sent_to_another_process(name):
    reward = getattr(reward_models, name)(**EXAMPLES[name])
    for one in (reward, pickle.loads(pickle.dumps(reward))):
        assert list(inspect.signature(one).parameters) == ARGUMENTS[name]
    with pytest.raises(TypeError):
        getattr(reward_models, name)("positional")
