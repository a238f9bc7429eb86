"""Plans for GPUs that this machine does not have."""

from __future__ import annotations

import io
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlkl.cli import main
from rlkl.commands.plan_cluster import ClusterPlan, plan_cluster
from rlkl.commands.plan_cluster_view import lines, show
from rlkl.costs.gpus import gpu_named
from rlkl.costs.memory import GIB, Part, learner_parts, peak_bytes
from rlkl.errors import EnvironmentProblem, InputError
from rlkl.recipe import Recipe
from tests.unit.costs.test_shapes import LLAMA

MODEL = {"path": "Qwen/Qwen2.5-7B", "dtype": "bfloat16", "gradient_checkpointing": True}
ROLLOUT = {"workers": 7, "prompts_per_step": 64, "samples_per_prompt": 8, "max_new_tokens": 2048}


def recipe(**sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": MODEL,
        "data": {"source": "d.jsonl", "max_prompt_tokens": 512},
        "rollout": ROLLOUT,
        "rewards": [{"function": "f.py:f"}],
        "learner": {"track_reference_kl": True},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section} if isinstance(values.get(name), dict) else section
    return Recipe.model_validate(values)


def plan(gpus: int = 8, gpu: str = "H100", **sections: Any) -> ClusterPlan:
    return plan_cluster(recipe(**sections), gpus=gpus, gpu=gpu_named(gpu))


def text(planned: ClusterPlan) -> str:
    return "\n".join(lines(planned))


def part(parts: tuple[Part, ...], name: str) -> float:
    return next((found.bytes for found in parts if found.name == name), 0.0)


def test_this_version_has_one_learner_process_and_workers_on_the_other_gpus():
    today = plan().today
    assert (today.ranks, today.engines, today.engine_gpus, today.used) == (1, 7, 7, 8)
    assert today.room == gpu_named("H100").bytes
    assert not today.shares_a_gpu


def test_the_sharded_split_makes_both_sides_take_equally_long():
    planned = plan(16)
    sharded = planned.sharded
    assert sharded is not None
    assert sharded.ranks + sharded.engine_gpus == 16
    seconds = sharded.seconds
    one_more = seconds.learner * sharded.ranks / (sharded.ranks + 1)
    one_less = seconds.learner * sharded.ranks / (sharded.ranks - 1)
    assert one_more < seconds.rollout * sharded.engine_gpus / (sharded.engine_gpus - 1)
    assert one_less > seconds.rollout * sharded.engine_gpus / (sharded.engine_gpus + 1)


def test_the_recipes_ranks_and_workers_are_the_first_layout():
    split = recipe(learner={"ranks": 4}, rollout={"workers": 4, "max_new_tokens": 8192})
    planned = plan_cluster(split, gpus=8, gpu=gpu_named("H100"))
    assert (planned.today.ranks, planned.today.engine_gpus, planned.refusals) == (4, 4, ())
    assert "The recipe runs the learner sharded over 4 GPUs and 4 rollout workers on 4 GPUs." in text(planned)


def test_workers_that_must_share_gpus_are_warned_about():
    split = recipe(learner={"ranks": 2}, rollout={"workers": 7, "max_new_tokens": 8192})
    planned = plan_cluster(split, gpus=8, gpu=gpu_named("H100"))
    assert any(
        "rollout.workers = 7 on 6 GPUs: 2 share one" in one and "rollout.workers=6" in one for one in planned.warnings
    )


def test_a_large_model_takes_engines_of_several_gpus():
    planned = plan(64, model={"path": "Qwen/Qwen2.5-72B"})
    assert planned.sharded is not None
    assert planned.sharded.tensor_parallel == 4
    ranks, engines = planned.sharded.ranks, planned.sharded.engines
    assert ranks + 4 * engines == planned.sharded.used == 64
    shown = " ".join(text(planned).split())
    assert f"over {ranks} GPUs and {engines} rollout workers of 4 GPUs each on {4 * engines} GPUs." in shown
    assert "A rollout worker may take 71.7 of 79.6 GiB, on each of its 4 GPUs: fits" in text(planned)


def test_a_learner_that_does_not_fit_is_refused_with_changes_that_make_it_fit():
    (refusal,) = plan().refusals
    assert refusal.startswith("the learner needs 157 of 80 GiB. Each of these makes it fit: ")
    assert "model.lora='{rank: 64}'; --gpu B200; learner.ranks=3." in refusal
    assert plan(learner={"ranks": 3}, rollout={"workers": 5}).refusals == ()
    assert plan(model={"lora": {"rank": 64}}).refusals == ()
    assert plan(gpu="B200").refusals == ()


SMALL = {"path": "Qwen/Qwen3-1.7B"}


@pytest.mark.parametrize(
    ("section", "key", "value", "before", "tokens"),
    [
        ("model", "gradient_checkpointing", True, False, 32_768),
        ("model", "dtype", "bfloat16", "float32", 120_000),
        ("learner", "micro_batch_tokens", 2560, 300_000, 300_000),
    ],
)
def test_a_proposed_change_makes_the_learner_fit(section: str, key: str, value: Any, before: Any, tokens: int):
    def planned(value: Any) -> ClusterPlan:
        sections: dict[str, dict[str, Any]] = {"model": dict(SMALL), "learner": {"micro_batch_tokens": tokens}}
        sections[section] |= {key: value}
        return plan(model=sections["model"], learner=sections["learner"])

    (refusal,) = planned(before).refusals
    assert f"{section}.{key}={str(value).lower()}" in refusal
    assert planned(value).refusals == ()


def test_the_largest_models_need_more_gpus():
    planned = plan(model={"path": "Qwen/Qwen2.5-72B"})
    (number,) = re.findall(
        r"Each of these makes it fit: learner.ranks=(\d+) with --gpus \d+ or more\.$", planned.refusals[0]
    )
    fitting = plan(int(number) + 8, model={"path": "Qwen/Qwen2.5-72B"}, learner={"ranks": int(number)})
    assert not any("the learner needs" in refusal for refusal in fitting.refusals)
    ranks = int(number) - 1
    assert "the learner needs" in plan(64, model={"path": "Qwen/Qwen2.5-72B"}, learner={"ranks": ranks}).refusals[0]


@pytest.mark.parametrize(("dtype", "gpu"), [("float32", "B200"), ("bfloat16", "L40S")])
def test_a_model_that_fits_nowhere_is_refused_without_a_proposal(dtype: str, gpu: str):
    huge = plan(model={"path": "Qwen/Qwen2.5-72B", "dtype": dtype}, gpu=gpu)
    assert huge.refusals[0].endswith("No single change of the recipe, and no GPU of the table, makes it fit.")


def test_changes_are_tried_on_the_ranks_of_the_recipe():
    sharded = plan(gpu="L40S", learner={"ranks": 4}, rollout={"workers": 4})
    (refusal,) = sharded.refusals
    assert "learner.offload=optimizer" in refusal
    offloaded = {"ranks": 4, "offload": "optimizer"}
    assert plan(gpu="L40S", learner=offloaded, rollout={"workers": 4}).refusals == ()


def test_a_largest_model_needs_engines_of_several_gpus():
    planned = plan(model={"path": "Qwen/Qwen2.5-72B"})
    assert planned.refusals[1].startswith("A rollout worker needs 139 of 72 GiB (rollout.vllm.memory_fraction)")
    sampling = next(line for line in lines(planned) if line.startswith("  sampling"))
    assert sampling.split() == ["sampling", "-"]


def test_one_gpu_is_shared():
    planned = plan(1, "H200", rollout={"workers": 1}, model={"path": "Qwen/Qwen3-8B"})
    assert planned.today.shares_a_gpu
    assert planned.today.room == pytest.approx(0.55 * gpu_named("H200").bytes)
    assert "beside the rollout workers on its GPU" in planned.refusals[0]
    assert planned.sharded is None
    assert "one learner process and 1 rollout worker on 1 GPU, in turns." in text(planned)


def test_workers_on_one_gpu_share_its_speed():
    one, two = (plan(2, rollout={"workers": workers}, model={"path": "Qwen/Qwen3-0.6B"}).today for workers in (1, 2))
    assert two.per_gpu == 2
    assert two.engine is not None
    assert one.engine is not None
    assert two.engine.cache < one.engine.cache / 2
    assert two.seconds.rollout > 0.9 * one.seconds.rollout


def test_what_the_rule_needs_is_in_the_memory_and_in_the_time():
    plain = plan(learner={"track_reference_kl": False})
    reference = plan()
    assert part(plain.today.parts, "frozen models") == 0
    assert part(reference.today.parts, "frozen models") == 2 * reference.shape.parameters
    teacher = plan(
        models={"teacher": {"path": "Qwen/Qwen2.5-14B"}},
        update={"rule": "grpo", "terms": [{"term": "kl", "to": "teacher"}]},
    )
    held = 2 * reference.shape.parameters + 2 * 14_770_033_664
    assert part(teacher.today.parts, "frozen models") == held
    assert plain.work.learner < reference.work.learner < teacher.work.learner
    average = plan(
        learner={"track_reference_kl": False}, update={"rule": "grpo", "terms": [{"term": "kl", "to": "average"}]}
    )
    assert part(average.today.parts, "frozen models") == (2 + 4) * average.shape.parameters, "the model and averages"
    assert average.work.learner == reference.work.learner
    adapters = plan(
        model={"lora": {"rank": 8}},
        learner={"track_reference_kl": False},
        update={"rule": "grpo", "terms": [{"term": "kl", "to": "average"}]},
    )
    assert part(adapters.today.parts, "frozen models") == 0
    critic = plan(update={"rule": "ppo", "critic": "model"})
    assert part(critic.today.parts, "AdamW moments") == 2 * part(reference.today.parts, "AdamW moments")
    assert critic.work.learner > 1.5 * reference.work.learner


def test_operations_of_a_step_by_hand():
    planned = plan(learner={"track_reference_kl": False, "epochs": 2})
    tokens, shape = 512 * (256 + 1024), planned.shape
    squares = 512 * (256 + 1024) ** 2
    units = 2 * (2 + 4 + 2) + 2  # two epochs of forward, backward and recomputation, and the log-probs at the start
    single = plan(learner={"track_reference_kl": False})
    assert single.work.learner == (2 + 4 + 2) * planned.work.learner / units, "the training pass gives the log-probs"
    assert planned.work.learner == units * (shape.parameters * tokens + 28 * 3584 * squares)


def test_a_rule_that_keeps_the_best_trains_on_less():
    superhf = plan(update={"rule": "superhf"})
    assert (superhf.work.sequences, superhf.work.trained) == (512, 64)
    pairs = plan(update={"rule": "sparsepo"})
    assert pairs.work.trained == 128


def test_stored_pairs_need_no_engine():
    planned = plan(
        data={"chosen_column": "a", "rejected_column": "b"},
        rollout={"workers": 0},
        rewards=[],
        update={"rule": "sparsepo"},
        model={"lora": {}},
    )
    assert planned.today.engine is None
    assert planned.today.seconds.rollout == planned.today.seconds.publish == 0
    assert planned.work.sequences == 128
    assert "one learner process on 1 GPU, and no rollout worker." in text(planned)


def test_gpus_of_rewards_are_neither_idle_nor_given_to_others():
    reward = {"function": "f.py:f", "mode": "actor", "gpus": 1}
    planned = plan(8, rollout={"workers": 6}, rewards=[reward], model={"lora": {}})
    assert (planned.today.rewards, planned.today.used) == (1, 8)
    assert planned.warnings == plan(7, rollout={"workers": 6}, model={"lora": {}}).warnings
    assert planned.sharded is not None
    assert planned.sharded.ranks + planned.sharded.engine_gpus == 7
    assert "on 6 GPUs, rewards on 1 GPU." in " ".join(text(planned).split())


def test_adapters_in_bfloat16_are_all_that_is_published():
    planned = plan(model={"lora": {"rank": 16}})
    assert planned.work.published == planned.shape.adapter_parameters(16)
    whole = plan(model={"path": "Qwen/Qwen3-0.6B", "dtype": "float32", "lora": {"rank": 16}})
    assert whole.work.published == whole.shape.parameters
    assert whole.sharded is None


def test_mean_lengths_can_be_given():
    run, gpu = recipe(), gpu_named("H100")
    assert plan_cluster(run, gpus=8, gpu=gpu, lengths=(100, 300)).work.length == 400
    with pytest.raises(InputError, match=r"--completion-tokens 2049: .* limit of the recipe, 2048"):
        plan_cluster(run, gpus=8, gpu=gpu, lengths=(None, 2049))


def test_idle_gpus_and_a_small_cache_are_warned_about():
    few = plan(16, rollout={"workers": 3})
    assert few.warnings[0] == "12 of 16 GPUs stay idle: rollout.workers = 3. Set rollout.workers=15"
    small = plan(2, "A100", model={"path": "Qwen/Qwen2.5-32B", "lora": {}}, rollout={"workers": 1})
    assert any("holds only 13 sequences of 2560 tokens" in warning for warning in small.warnings)


def test_micro_batches_that_wait_for_the_network_are_warned_about():
    def waits(planned: ClusterPlan) -> bool:
        return any("learner.micro_batch_tokens" in warning for warning in planned.warnings)

    def planned(gpus: int, ranks: int, micro_batch: int) -> ClusterPlan:
        run = recipe(learner={"micro_batch_tokens": micro_batch, "ranks": ranks}, rollout={"workers": gpus - ranks})
        return plan_cluster(run, gpus=gpus, gpu=gpu_named("H100"))

    assert waits(planned(32, 24, 4096))
    assert not waits(planned(32, 24, 16_384))
    assert not waits(planned(8, 6, 4096)), "within a machine the link is fast enough"


@pytest.mark.parametrize(
    ("sections", "options", "message"),
    [
        ({}, {"gpus": 0}, "--gpus 0: expected 1 or more"),
        ({"model": {"path": "task:reviews"}}, {"gpus": 8}, "is a built-in model of less than a million parameters"),
        ({"learner": {"device": "cpu"}}, {"gpus": 8}, "has no GPU"),
        ({"model": {"path": "somebody/model"}}, {"gpus": 8}, "'somebody/model' is not known"),
        ({"rollout": {"gpus_per_worker": 2}}, {"gpus": 2}, "the actors of this run cannot be placed"),
    ],
)
def test_input_that_makes_no_sense_is_refused(sections: dict[str, Any], options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        plan_cluster(recipe(**sections), gpu=gpu_named("H100"), **options)


@pytest.mark.parametrize(
    "planned",
    [
        lambda: plan(),
        lambda: plan(64, model={"path": "Qwen/Qwen2.5-72B"}),
        lambda: plan(1, rollout={"workers": 1}),
        lambda: plan(16, "L40S", model={"path": "Qwen/Qwen3-8B"}),
    ],
)
def test_no_line_is_wider_than_a_hundred_columns(planned: Any):
    assert [line for line in lines(planned()) if len(line) > 100] == []


def test_the_bars_add_up_to_the_memory_that_is_needed():
    planned = plan(model={"lora": {"rank": 16}})
    rows = [line for line in lines(planned) if line.rstrip().endswith(("CUDA", "fixed")) or " GiB  " in line]
    learner = rows[: len(planned.today.parts)]
    shown = [float(line.split(" GiB")[0].split()[-1]) for line in learner]
    assert sum(shown) == pytest.approx(peak_bytes(planned.today.parts) / GIB, abs=0.5)
    for before, after in pairwise(learner):
        assert after.index("#") >= before.rindex("#")


def test_a_bar_shows_where_the_memory_ends():
    over = next(line for line in lines(plan()) if line.startswith("  gradients"))
    assert "|" in over
    fits = next(line for line in lines(plan(gpu="B200")) if line.startswith("  gradients"))
    assert "|" not in fits


def test_the_view_tells_what_runs_today_from_what_does_not():
    shown = text(plan())
    assert "The recipe runs one learner process on 1 GPU and 7 rollout workers on 7 GPUs." in shown
    assert "Balanced (learner.ranks=6 rollout.workers=2) would be the learner sharded over 6 GPUs" in shown
    stream = io.StringIO()
    show(plan(), Console(file=stream, markup=False, width=80))
    assert stream.getvalue().rstrip("\n") == shown


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(recipe(run={"name": "seven"}).model_dump()))
    return path


def test_the_command_prints_the_plan_and_ends_with_2_if_it_does_not_fit(file: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(file), "--gpus", "8"]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("seven on 8 x H100 (79.6 GiB, 989 TFLOP/s in bfloat16, 3.35 TB/s)\n")
    assert printed.err.startswith("error: does not fit: the learner needs 157 of 80 GiB. ")


def test_overrides_may_follow_the_options(file: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(file), "--gpus", "8", "--gpu", "b200", "rollout.max_new_tokens=1024"]) == 0
    assert "512 sequences of 256 + 512 tokens on average" in capsys.readouterr().out


def test_a_config_can_be_given(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    assert main(["plan", str(file), "--gpus", "2", "--shape", str(config), "model.path=my/model"]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"my/model: \d,\d\d\d parameters, by {re.escape(str(config))}", printed)
    assert " 0.0 GiB" not in printed
    assert re.search(r"weights .* [1-9]\d*\.\d KiB", printed)


def test_memory_of_one_process_is_what_the_plan_shows():
    planned = plan()
    assert planned.today.parts == learner_parts(planned.shape, _training(planned))


def _training(planned: ClusterPlan) -> Any:
    from rlkl.commands.plan_work import training_of

    return training_of(planned.recipe, planned.shape)


def test_fewer_gpus_than_ranks_are_answered_with_the_balanced_split():
    eight = recipe(learner={"ranks": 6}, rollout={"workers": 2})
    with pytest.raises(
        EnvironmentProblem, match=r"6 and rollout.workers = 2 need at least 7 GPUs.*--gpus is 4: (.*)"
    ) as found:
        plan_cluster(eight, gpus=4, gpu=gpu_named("H100"))
    assert re.search(r"learner.ranks=\d rollout.workers=\d is the balanced split of 4", str(found.value))


def test_the_host_memory_of_an_offloaded_optimizer_is_told():
    offloaded = recipe(learner={"ranks": 6, "offload": "optimizer"}, rollout={"workers": 2})
    planned = plan_cluster(offloaded, gpus=8, gpu=gpu_named("H100"))
    assert any("AdamW's moments take 57 GiB of host memory" in one for one in planned.warnings)


def test_engines_of_several_gpus_by_the_recipe():
    planned = plan(8, rollout={"workers": 3, "tensor_parallel": 2}, learner={"ranks": 2}, model={"lora": {}})
    assert (planned.today.engines, planned.today.engine_gpus, planned.today.tensor_parallel) == (3, 6, 2)
    assert planned.today.used == 8
    assert "3 rollout workers of 2 GPUs each on 6 GPUs." in " ".join(text(planned).split())


def test_the_way_of_the_weights_decides_their_seconds():
    host, group, auto = (
        plan(model={"path": "Qwen/Qwen3-1.7B"}, weights={"transport": transport}).today
        for transport in ("host", "group", "auto")
    )
    assert host.seconds.publish == pytest.approx(group.seconds.publish * 8 / 3)
    assert (auto.seconds, auto.transport) == (group.seconds, "group")
    shared = plan(1, rollout={"workers": 1}, model={"path": "Qwen/Qwen3-1.7B"}).today
    assert shared.transport == "host"


def test_engines_that_take_turns_have_one_schedule_and_the_way_through_host_memory():
    planned = plan(8, "H200", rollout={"workers": 8, "placement": "colocated"}, learner={"ranks": 8})
    assert planned.today.transport == "host"
    assert [one.schedule for one in planned.forecasts[0].schedules] == ["alternate"]
    assert planned.sharded is not None
    assert re.search(r"learner.ranks=\d rollout.workers=\d rollout.placement=separate", text(planned))


def test_engines_without_ranks_to_take_turns_with_are_refused():
    with pytest.raises(EnvironmentProblem, match=r"rollout.workers = 8 engines .* Set learner.ranks=8"):
        plan(8, rollout={"workers": 8, "placement": "colocated"}, learner={"ranks": 4})


def test_batches_smaller_than_a_micro_batch_need_less():
    tokens = {"micro_batch_tokens": 1_000_000}
    large, small = (
        part(plan(learner=tokens, rollout={"prompts_per_step": prompts}).today.parts, "activations")
        for prompts in (64, 8)
    )
    assert large == pytest.approx(8 * small * 1_000_000 / (64 * 8 * 2560), rel=1e-6)
    minibatches = plan(learner={**tokens, "minibatches": 8}).today.parts
    assert part(minibatches, "activations") == small
    superhf = plan(learner=tokens, update={"rule": "superhf"}).today.parts
    assert part(superhf, "activations") == small, "one completion of each prompt is trained on"


def test_a_kl_of_the_likeliest_tokens_needs_whole_logits():
    tiled, whole = (
        part(plan(update={"rule": "superhf", "kl_top_k": top_k}).today.parts, "logits") for top_k in (None, 64)
    )
    assert whole == 14 * 1024 * 152_064
    assert tiled < whole / 4
