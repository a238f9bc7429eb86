import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlkl.errors import RecipeError
from rlkl.rollout.engine import EngineSettings, Request, engine_class
from rlkl.types import Probe
from tests.models import tiny_qwen3

STOP = 1


def settings(path: Path, temperature: float = 1.0) -> EngineSettings:
    return EngineSettings(
        model_path=str(path),
        dtype="float32",
        max_prompt_tokens=8,
        max_new_tokens=6,
        temperature=temperature,
        stop_token_ids=(STOP,),
        memory_fraction=0.5,
        kv_cache_gib=1,
    )


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model") / "untied", tied=False, seed=0)


def requests(count: int) -> list[Request]:
    return [Request(prompt_token_ids=(4, 5, 6)[: 1 + n % 3], seed=n) for n in range(count)]


def test_tokens_depend_on_the_seed_and_not_on_the_batch(model_path: Path):
    from rlkl.rollout.hf_engine import HfEngine

    engine = HfEngine(settings(model_path))
    together = engine.generate(requests(12))

    alone = [engine.generate([request])[0] for request in requests(12)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert len({c.token_ids for c in together}) > 6


def test_completions_stream_with_the_numbers_of_their_requests(model_path: Path):
    from rlkl.rollout.hf_engine import HfEngine

    engine = HfEngine(settings(model_path))
    whole = list(enumerate(engine.generate(requests(80))))
    assert list(engine.stream(requests(80))) == whole


class NoStream:
    """An engine of an earlier version."""

    def generate(self, requests):
        return []


def test_an_engine_without_stream_is_refused_with_what_to_add():
    with pytest.raises(RecipeError, match=r"has no method stream; add it: .*enumerate\(self\.generate\(requests\)\)"):
        engine_class(f"{__name__}:NoStream")


def test_log_probs_are_those_of_the_scored_sequence(model_path: Path):
    from rlkl.rollout.hf_engine import HfEngine

    engine = HfEngine(settings(model_path))
    for request, completion in zip(requests(6), engine.generate(requests(6)), strict=True):
        scores = engine.score([Probe(token_ids=request.prompt_token_ids + completion.token_ids)])[0]
        assert completion.logprobs == pytest.approx(scores[len(request.prompt_token_ids) - 1 :], abs=1e-4)


def test_log_probs_are_bit_for_bit_those_of_the_logits_that_generate_would_keep(model_path: Path):
    from transformers import GenerationConfig

    from rlkl.rollout.hf_engine import GumbelNoise, HfEngine

    engine = HfEngine(settings(model_path, temperature=1.3))
    prompts, seeds = [(4, 5, 6)] * 8, range(8)
    kept = engine._model.generate(
        torch.tensor(prompts),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=6,
            eos_token_id=[STOP],
            pad_token_id=STOP,
            output_logits=True,
            return_dict_in_generate=True,
        ),
        logits_processor=[GumbelNoise(list(seeds), 1.3)],
    )
    logprobs_BTV = (torch.stack(kept.logits, dim=1).float() / 1.3).log_softmax(-1)
    wanted_BT = logprobs_BTV.gather(-1, kept.sequences[:, 3:, None])[..., 0]

    drawn = engine.generate([Request(prompt_token_ids=p, seed=s) for p, s in zip(prompts, seeds, strict=True)])

    for completion, tokens, wanted in zip(drawn, kept.sequences[:, 3:].tolist(), wanted_BT.tolist(), strict=True):
        length = len(completion.token_ids)
        assert completion.token_ids == tuple(tokens[:length])
        assert completion.logprobs == tuple(wanted[:length])


def test_memory_does_not_grow_by_a_vocabulary_for_each_token(tmp_path: Path):
    """24 more tokens of 8 rows are 73 MiB of logits at this vocabulary, held three times if all are kept."""
    from rlkl.rollout.hf_engine import HfEngine

    path = tiny_qwen3(tmp_path / "wide", tied=True, seed=0, vocabulary=100_000)
    peaks = []
    for tokens in (2, 26):
        engine = HfEngine(replace(settings(path), max_new_tokens=tokens))
        before = _memory_mib()
        assert sum(len(c.token_ids) for c in engine.generate(requests(8))) > 7 * tokens
        peaks.append(_peak_mib() - before)
    assert peaks[1] < peaks[0] + 40, peaks


def _memory_mib() -> float:
    """Return the memory of this process, and count its peak from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS")


def _peak_mib() -> float:
    return _status_mib("VmHWM")


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def test_the_models_own_penalties_do_not_change_the_draws(model_path: Path, tmp_path: Path):
    from rlkl.rollout.hf_engine import HfEngine

    penalised = shutil.copytree(model_path, tmp_path / "penalised")
    own = {"repetition_penalty": 3.0, "min_new_tokens": 5, "suppress_tokens": [3, 4, 5], "eos_token_id": 1}
    (penalised / "generation_config.json").write_text(json.dumps(own))

    answers = [HfEngine(settings(path)).generate(requests(16)) for path in (model_path, penalised)]

    assert answers[0] == answers[1]


def test_a_completion_ends_at_its_first_stop_token_or_at_the_limit(model_path: Path):
    from rlkl.rollout.hf_engine import HfEngine

    for completion in HfEngine(settings(model_path)).generate(requests(64)):
        if completion.finish_reason == "stop":
            assert completion.token_ids.index(STOP) == len(completion.token_ids) - 1
        else:
            assert STOP not in completion.token_ids
            assert len(completion.token_ids) == 6


def test_draws_follow_the_softmax_at_the_temperature(model_path: Path):
    from rlkl.rollout.hf_engine import HfEngine

    engine = HfEngine(settings(model_path, temperature=2.0))
    draws = engine.generate([Request(prompt_token_ids=(4, 5), seed=seed) for seed in range(3000)])

    first = torch.tensor([completion.token_ids[0] for completion in draws])
    by_token = {c.token_ids[0]: c.logprobs[0] for c in draws if c.logprobs}
    for token, logprob in by_token.items():
        share = float((first == token).float().mean())
        wanted = float(torch.tensor(logprob).exp())
        assert abs(share - wanted) < 5 * (wanted / 3000) ** 0.5  # five standard errors


def test_new_weights_are_taken_in_and_what_none_reached_is_told(model_path: Path):
    from rlkl.rollout.hf_engine import HfEngine

    engine = HfEngine(settings(model_path))
    before = engine.score([Probe(token_ids=(4, 5, 6))])
    tensors = [(name, tensor * 1.5) for name, tensor in engine.readable_weights()]

    assert engine.load_weights(tensors[1:]) == {tensors[0][0]}
    assert engine.load_weights(tensors) == frozenset()
    assert engine.score([Probe(token_ids=(4, 5, 6))]) != before


def test_an_unknown_engine_lists_what_there_is():
    with pytest.raises(RecipeError, match=r"rollout\.engine = 'vlm' is unknown; expected one of vllm, hf"):
        engine_class("vlm")
    with pytest.raises(RecipeError, match="cannot be imported"):
        engine_class("rlkl.rollout.hf_engine:Missing")


def test_a_request_may_have_its_own_temperature(model_path: Path):
    """Greedy tokens are the most probable ones, with log-probs at temperature 1; others are not touched by it."""
    from rlkl.rollout.hf_engine import HfEngine

    engine = HfEngine(settings(model_path, temperature=0.5))
    usual = requests(4)
    mixed = [*usual, *(replace(request, temperature=0.0) for request in usual), replace(usual[0], temperature=2.0)]

    found = engine.generate(mixed)

    assert found[:4] == engine.generate(usual)
    assert found[8] == HfEngine(settings(model_path, temperature=2.0)).generate(usual[:1])[0]
    for request, completion in zip(usual, found[4:8], strict=True):
        whole = request.prompt_token_ids + completion.token_ids
        (scores,) = engine.score([Probe(token_ids=whole)])
        assert completion.logprobs == pytest.approx(scores[len(request.prompt_token_ids) - 1 :], abs=1e-5)
        for length in range(len(request.prompt_token_ids), len(whole)):
            others = [Probe(token_ids=(*whole[:length], token)) for token in range(3, 12)]
            assert max(row[-1] for row in engine.score(others)) <= scores[length - 1] + 1e-6


def test_a_completion_that_has_begun_goes_on_up_to_its_own_limit(model_path: Path):
    """Limits of its own neighbours do not matter, and the limit of the settings is never exceeded."""
    from rlkl.rollout.hf_engine import HfEngine

    engine = HfEngine(settings(model_path))
    usual = requests(12)
    limited = [replace(request, max_new_tokens=1 + n % 8) for n, request in enumerate(usual)]
    whole = engine.generate(usual)
    for number, (full, cut) in enumerate(zip(whole, engine.generate(limited), strict=True)):
        limit = min(1 + number % 8, 6)
        assert cut.token_ids == full.token_ids[:limit]
        assert full.logprobs is not None
        assert cut.logprobs == full.logprobs[:limit]
        assert cut.finish_reason == ("stop" if cut.token_ids[-1] == STOP else "length")
    begun = Request(prompt_token_ids=(4, 5, 6, 7, 8), begun=2, seed=3)
    assert begun.begun_ids == (7, 8)
    assert usual[0].begun_ids == ()
    assert engine.generate([begun]) == engine.generate([replace(begun, begun=0)])


def test_a_stop_text_may_begin_in_the_tokens_that_are_there(model_path: Path):
    from rlkl.rollout.hf_engine import HfEngine
    from rlkl.tasks.characters import character_tokenizer

    plain = HfEngine(settings(model_path))
    begun = Request(prompt_token_ids=(4, 5, 6, 7), begun=2, seed=3)
    (free,) = plain.generate([begun])
    texts = replace(settings(model_path), stop=(str(character_tokenizer().decode([7, free.token_ids[0]])),))
    ended, other = HfEngine(texts).generate([begun, replace(begun, begun=0)])
    assert (ended.token_ids, ended.finish_reason) == (free.token_ids[:1], "stop")
    assert other.token_ids == free.token_ids  # the same tokens of a prompt end nothing
