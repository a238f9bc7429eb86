"""The term ``replay`` in the real learner, with states of the model that it starts from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkl.cli import main
from rlkl.errors import RecipeError
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.learner.ranks import Ranks
from rlkl.learner.replay_states import check_states, compute_states
from rlkl.models.language_model import LanguageModel
from rlkl.recipe.resolved_model import read_model
from rlkl.updates.sparsepo.mask_heads import MaskHeads
from rlkl.updates.terms.replay.states import TENSORS_FILE, StatesHeader, read_states, write_states
from tests.models import tiny_qwen3
from tests.ranks import join, run_processes
from tests.unit.learner.sharded_cases import pairs
from tests.unit.learner.test_learner import examples, recipe_for

SAMPLES = 24
LORA = {"rank": 4, "alpha": 8}


def samples() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(2, 14, (SAMPLES,), generator=generator).tolist()
    return [torch.randint(20, 60, (length,), generator=generator).tolist() for length in lengths]


def write(path: str, folder: Path, dtype: str = "float32") -> Path:
    model = LanguageModel(path, dtype=getattr(torch, dtype), device=torch.device("cpu"), packed=True)
    states = compute_states(model, samples(), micro_batch_tokens=40)
    header = StatesHeader(
        model="m",
        model_fingerprint="f",
        tokenizer_fingerprint="t",
        dtype=dtype,
        hidden_size=model.hidden_size,
        data="d",
        samples=states.samples,
        tokens=int(states.lengths_S.sum()),
    )
    write_states(folder, states, header)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    path = str(tiny_qwen3(folder / "model", tied=False, seed=0))
    for dtype in ("float32", "bfloat16"):
        write(path, folder / dtype, dtype)
    return folder


def learner_with(made: Path, ranks: Ranks | None = None, model: str = "", **settings: Any) -> Learner:
    """``learner``, ``model_section`` and ``rollout`` are sections of the recipe; other keys are the term's."""
    sections = {"learner": settings.pop("learner", {}), "model": settings.pop("model_section", {})}
    term = {
        "term": "replay",
        "states": str(made / sections["model"].get("dtype", "float32")),
        "sequences": 6,
        **settings,
    }
    path = model or str(made / "model")
    recipe = recipe_for(path, update={"rule": "grpo", "terms": [term]}, **sections)
    return Learner(LearnerSpec(recipe=recipe, model_path=path), ranks)


def train(learner: Learner, steps: int, *, start: int = 0) -> list[dict[str, float]]:
    return [learner.prepare(examples(step), step=step) | learner.step(step) for step in range(start, start + steps)]


@pytest.mark.parametrize(
    "section",
    [{}, {"dtype": "bfloat16"}, {"lora": LORA}, {"dtype": "bfloat16", "lora": LORA}],
    ids=["float32", "bfloat16", "LoRA", "LoRA in bfloat16"],
)
def test_before_training_the_margin_is_exactly_0_and_grows_with_it(made: Path, section: dict[str, Any]):
    learner = learner_with(made, model_section=section, learner={"micro_batch_tokens": 30, "lr": 3e-2})
    records = train(learner, 3)
    assert records[0]["term/replay_excess"] == records[0]["term/replay_violation_rate"] == 0.0
    assert records[0]["loss/replay"] == 0.0
    assert records[2]["term/replay_excess"] > 0
    assert 0 < records[2]["term/replay_violation_rate"] < 1
    assert records[2]["loss/replay"] > 0


def test_all_samples_have_a_margin_of_0_also_after_the_model_was_saved_and_loaded(made: Path, tmp_path: Path):
    learner_with(made).policy.save(tmp_path / "copy")
    learner = learner_with(made, model=str(tmp_path / "copy"), sequences=SAMPLES)
    assert train(learner, 1)[0]["term/replay_violation_rate"] == 0.0


def test_the_rule_trains_as_without_replay_before_the_margin_acts(made: Path):
    plain = Learner(
        LearnerSpec(recipe=recipe_for(str(made / "model"), update={"rule": "grpo"}), model_path=str(made / "model"))
    )
    wanted, found = train(plain, 1)[0], train(learner_with(made), 1)[0]
    for key in ("loss/policy", "optim/grad_norm", "entropy/policy", "kl/policy_to_reference", "rollout/mismatch_max"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-4, abs=1e-6)


def test_dead_mask_heads_are_found_by_the_tokens_of_the_rule_alone(made: Path, monkeypatch: pytest.MonkeyPatch):
    path, seen = str(made / "model"), []
    monkeypatch.setattr(MaskHeads, "redraw", lambda self, heads_NK: seen.append(len(heads_NK)))
    term = {"term": "replay", "states": str(made / "float32"), "sequences": 6, "loss": "cross_entropy"}
    recipe = recipe_for(path, update={"rule": "sparsepo", "mask": "sparse_common", "terms": [term]})
    learner = Learner(LearnerSpec(recipe=recipe, model_path=path))
    learner.prepare(pairs(0), step=0)
    assert sum(seen) == sum(len(one.rollout.completion.token_ids) for one in pairs(0))


def test_the_cross_entropy_is_that_of_the_replayed_samples(made: Path):
    learner = learner_with(made, loss="cross_entropy", coef=0.5)
    record = train(learner, 1)[0]
    found = learner._update.terms["replay"]._samples.values()  # pyright: ignore[reportAttributeAccessIssue]
    model = AutoModelForCausalLM.from_pretrained(made / "model")
    total = tokens = 0.0
    for sample in found:
        ids_T = torch.tensor(samples()[sample])
        with torch.no_grad():
            logprobs_TV = model(ids_T[None]).logits[0, :-1].log_softmax(-1)
        total -= float(logprobs_TV.gather(1, ids_T[1:, None]).sum())
        tokens += len(ids_T) - 1
    assert record["term/replay_cross_entropy"] == pytest.approx(total / tokens, rel=1e-4)
    assert record["loss/replay"] == pytest.approx(0.5 * total / tokens, rel=1e-4)


def test_the_kl_is_to_the_reference_on_the_samples(made: Path):
    records = train(learner_with(made, loss="kl", coef=2.0, learner={"track_reference_kl": False}), 3)
    assert records[0]["term/replay_nats"] == pytest.approx(0.0, abs=1e-6)
    assert records[2]["loss/replay"] == pytest.approx(2 * records[2]["term/replay_nats"], rel=1e-5)
    assert records[2]["term/replay_nats"] > 1e-5


@pytest.mark.parametrize("settings", [{}, {"weight": "dynamic"}, {"loss": "kl"}], ids=["fixed", "dynamic", "kl"])
def test_the_cut_into_micro_batches_does_not_matter(made: Path, settings: dict[str, Any]):
    whole, cut = (
        train(learner_with(made, coef=0.1, learner={"micro_batch_tokens": tokens}, **settings), 3)[-1]
        for tokens in (4096, 20)
    )
    assert whole == pytest.approx(cut, rel=1e-2, abs=1e-5)  # the share of violations is a count


@pytest.mark.parametrize("settings", [{}, {"weight": "dynamic", "cross_entropy_coef": 0.1}], ids=["fixed", "dynamic"])
def test_a_resumed_run_is_the_same_bit_for_bit(made: Path, tmp_path: Path, settings: dict[str, Any]):
    learner, resumed = (learner_with(made, learner={"minibatches": 2}, **settings) for _ in range(2))
    train(learner, 3)
    learner.save(tmp_path)
    resumed.restore(tmp_path)
    assert train(learner, 2, start=3) == train(resumed, 2, start=3)
    for (name, x), (_, y) in zip(learner.policy.published(), resumed.policy.published(), strict=True):
        assert torch.equal(x, y), name


def test_the_sample_files_get_columns_of_the_rollouts_alone(made: Path):
    learner = learner_with(made)
    train(learner, 1)
    for name, rows in learner.token_columns().items():
        assert [len(row) for row in rows] == [len(e.rollout.completion.token_ids) for e in examples(0)], name


def test_a_step_of_nothing_replays_nothing(made: Path):
    learner = learner_with(made)
    assert learner.prepare([], step=0) | learner.step(0) == {
        "optim/skipped": 1.0,
        "optim/lr": 0.0,
        "optim/grad_norm": 0.0,
    }


@pytest.mark.parametrize("settings", [{"coef": 100.0}, {"weight": "dynamic"}], ids=["fixed", "dynamic"])
def test_general_texts_are_forgotten_less(made: Path, settings: dict[str, Any]):
    """Cross-entropy on texts that the rule never sees, after the same ten steps."""
    own = {"learner": {"lr": 5e-3}, "sequences": SAMPLES}
    without = train(learner_with(made, coef=0.0, **own), 10)
    with_margin = train(learner_with(made, **settings, **own), 10)
    assert without[0]["term/replay_cross_entropy"] == with_margin[0]["term/replay_cross_entropy"]
    lost, kept = (
        records[-1]["term/replay_cross_entropy"] - records[0]["term/replay_cross_entropy"]
        for records in (without, with_margin)
    )
    assert lost > 0.05
    assert kept < 0.6 * lost
    assert with_margin[-1]["term/replay_violation_rate"] < without[-1]["term/replay_violation_rate"]


def as_rank(number: int, folder: Path) -> None:
    ranks = join(folder, "two", number, 2)
    records = train(learner_with(folder, ranks, weight="dynamic", learner={"micro_batch_tokens": 40}), 3)
    torch.save(records, folder / f"rank-{number}.pt")
    ranks.leave()


def test_two_ranks_replay_what_one_does(made: Path):
    run_processes(as_rank, 2, made)
    alone = train(learner_with(made, weight="dynamic", learner={"micro_batch_tokens": 40}), 3)
    for number in range(2):
        for step, (found, wanted) in enumerate(zip(torch.load(made / f"rank-{number}.pt"), alone, strict=True)):
            assert found == pytest.approx(wanted, rel=2e-3, abs=1e-5), f"rank {number}, step {step}"


# ---------------------------------------------------------------------------------------------- the folder's model


@pytest.fixture(scope="module")
def written(made: Path) -> Path:
    rows = made / "texts.jsonl"
    rows.write_text('{"text": "once upon a time"}\n{"text": "x"}\n{"text": "2+2=4, as ever"}\n{"other": 1}\n')
    folder = made / "by-command"
    words = ["replay-states", str(made / "model"), str(rows), "--output", str(folder), "--tokens", "8"]
    assert main(words) == 0
    return folder


def recipe_with(folder: Path, model: Path, *, sequences: int = 2, **section: Any) -> Any:
    term = {"term": "replay", "states": str(folder), "sequences": sequences}
    return recipe_for(str(model), update={"rule": "grpo", "terms": [term]}, model=section)


def test_the_command_writes_cut_samples_that_the_model_fits(made: Path, written: Path):
    states, tokenizer = read_states(written, "key"), AutoTokenizer.from_pretrained(made / "model")
    assert sorted(tokenizer.decode(states.token_ids(sample)) for sample in range(states.samples)) == [
        "2+2=4, a",
        "once upo",
    ]
    check_states(recipe_with(written, made / "model"), read_model(str(made / "model")), tokenizer)


def test_states_of_another_model_tokenizer_or_precision_are_refused(made: Path, written: Path):
    other = tiny_qwen3(made / "other", tied=False, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    with pytest.raises(
        RecipeError, match=r"terms\[0\]\.states = .* holds states of another model.* rlkl replay-states"
    ):
        check_states(recipe_with(written, other), read_model(str(other)), tokenizer)
    with pytest.raises(RecipeError, match=r"holds states in float32, and model\.dtype is bfloat16"):
        check_states(recipe_with(written, made / "model", dtype="bfloat16"), read_model(str(made / "model")), tokenizer)
    tokenizer.add_tokens(["new"])
    with pytest.raises(RecipeError, match=r"holds token ids of another tokenizer"):
        check_states(recipe_with(written, made / "model"), read_model(str(made / "model")), tokenizer)


def test_each_of_these_messages_names_a_command_that_runs(
    made: Path, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The command, with DATA filled in, writes a folder that the run takes."""
    shutil.copytree(written, tmp_path / "states")
    other = tiny_qwen3(tmp_path / "other", tied=False, seed=1)
    tokenizer, recipe = AutoTokenizer.from_pretrained(other), recipe_with(tmp_path / "states", other)
    with pytest.raises(RecipeError) as caught:
        check_states(recipe, read_model(str(other)), tokenizer)
    command = str(caught.value).rpartition(": rlkl ")[2].replace("DATA", str(made / "texts.jsonl"))
    assert main(command.split()) == 0
    check_states(recipe, read_model(str(other)), tokenizer)


def test_a_damaged_file_of_states_is_refused_before_the_run_starts(made: Path, written: Path, tmp_path: Path):
    shutil.copytree(written, tmp_path / "states")
    content = (tmp_path / "states" / TENSORS_FILE).read_bytes()
    (tmp_path / "states" / TENSORS_FILE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    wanted = (
        rf"^update\.terms\[0\]\.states: {tmp_path}/states/states\.safetensors is not the file .*"
        rf"rlkl replay-states MODEL DATA --output {tmp_path}/states"
    )
    with pytest.raises(RecipeError, match=wanted):
        check_states(recipe_with(tmp_path / "states", made / "model"), read_model(str(made / "model")), tokenizer)


def test_more_sequences_than_samples_are_refused_before_the_run_starts(made: Path, written: Path):
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    with pytest.raises(RecipeError, match=r"^update\.terms\[0\]\.sequences = 3, but .* holds 2 samples\. Lower seq"):
        check_states(recipe_with(written, made / "model", sequences=3), read_model(str(made / "model")), tokenizer)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "0"], "--samples 0: expected a whole number of at least 1"),
        (["--tokens", "1"], "--tokens 1: expected a whole number of at least 2"),
        (["--column", "txt"], "has no column 'txt'; it has other, text"),
        (["--column", "other"], "has no text of two tokens or more in the column 'other'"),
    ],
)
def test_bad_input_of_the_command(
    made: Path, written: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    given = ["replay-states", str(made / "model"), str(made / "texts.jsonl"), "--output", str(made / "never"), *words]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not (made / "never").exists()
