"""What a reward's hash covers besides its source and settings: a checkpoint notices when it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkl.recipe import RewardSection
from rlkl.rewards import load_rewards


def fingerprint(function: str, **settings: object) -> str:
    return load_rewards([RewardSection(function=function, settings=settings, name="it")]).fingerprints["it"]


def test_a_class_may_add_what_its_scores_hang_on(tmp_path: Path):
    notes, file = tmp_path / "notes.txt", tmp_path / "mine.py"
    file.write_text(
        "from pathlib import Path\n"
        "class Mine:\n"
        "    def __call__(self, completion): return 1.0\n"
        f"    def fingerprint(self): return Path({str(notes)!r}).read_text()\n"
    )
    prints = []
    for text in ("one", "one", "two"):
        notes.write_text(text)
        prints.append(fingerprint(f"{file}:Mine"))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("changed", ["model.safetensors", "tokenizer.json"])
def test_another_model_in_the_same_folder_is_another_reward(tmp_path: Path, changed: str):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "tokenizer.json").write_text("words")
    before = fingerprint("reward_models:SequenceClassifier", path=str(tmp_path))
    assert fingerprint("reward_models:SequenceClassifier", path=str(tmp_path)) == before
    (tmp_path / changed).write_bytes(b"others")
    assert fingerprint("reward_models:SequenceClassifier", path=str(tmp_path)) != before


def test_a_schema_counts_by_what_its_file_holds(tmp_path: Path):
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object"}')
    before = fingerprint("reward_models:JsonSchema", schema=str(file))
    file.write_text('{"type": "array"}')
    assert fingerprint("reward_models:JsonSchema", schema=str(file)) != before


def test_an_ensemble_changes_with_its_members(tmp_path: Path):
    file = tmp_path / "member.py"
    members = [{"function": f"{file}:a"}, {"function": "reward_models:SentimentLexicon"}]
    prints = []
    for value in ("1.0", "1.0", "-100.0"):
        file.write_text(f"def a(completion): return {value}\n")
        prints.append(fingerprint("reward_models:Ensemble", members=members))
    assert prints[0] == prints[1] != prints[2]
