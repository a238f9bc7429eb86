"""Weights that arrive while vLLM samples: each token is of the version that it is labelled with, to the last digits."""

import json
from pathlib import Path

import pytest

from tests.integration.runs import run_script
from tests.models import tiny_qwen3


@pytest.mark.parametrize("stop", ["", "7"])
@pytest.mark.parametrize("tied", [True, False])
def test_tokens_have_the_log_probs_of_the_version_that_sampled_them(tied: bool, stop: str, tmp_path: Path):
    answers = tmp_path / "answers.json"
    folder = tiny_qwen3(tmp_path / "model", tied=tied, seed=0)
    run_script("tests.integration.update_while_sampling", str(folder), stop, str(answers))
    report = json.loads(answers.read_text())

    assert max(report["gaps"]) < 5e-5
    spans = [completion["versions"] for completion in report["completions"]]
    assert any(len(versions) > 1 for versions in spans)
    assert {version for versions in spans for version, _ in versions} == {0, 1, 2, 3}
    assert max(report["waited"]) <= 2
    for completion in report["completions"]:
        starts = [*(start for _, start in completion["versions"]), len(completion["tokens"])]
        for (version, start), end in zip(completion["versions"], starts[1:], strict=True):
            assert end > start
            right = completion["learners"][version][start:end]
            assert completion["logprobs"][start:end] == pytest.approx(right, abs=5e-5)
            for other in set(range(4)) - {version}:
                assert completion["learners"][other][start:end] != pytest.approx(right, abs=5e-4)
    assert any(c["finish_reason"] == "stop" for c in report["completions"]) or not stop
    assert report["again"] != [completion["tokens"] for completion in report["completions"]]
