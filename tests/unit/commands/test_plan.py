from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from rlkl.cli import main
from rlkl.commands.plan import Plan, make_plan
from rlkl.commands.plan_view import show
from rlkl.errors import InputError
from rlkl.recipe import placement
from rlkl.recipe.io import load_recipe
from rlkl.system.machine import Machine
from rlkl.updates.settings import GrpoSettings

PINNED = (
    "steps=100",
    "data.max_prompt_tokens=512",
    "rollout.prompts_per_step=32",
    "rollout.samples_per_prompt=8",
    "rollout.threads=null",
)
"""The quickstart's sizes as the expectations below have them, whatever it is tuned to."""
LAPTOP = Machine(cpus=4, memory_gib=16.0)
NODE = Machine(cpus=64, memory_gib=512.0, gpus=("H200", "H200"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def plan(*overrides: str, machine: Machine = LAPTOP) -> Plan:
    return make_plan(load_recipe("quickstart", *PINNED, *overrides), machine)


def test_batch_arithmetic() -> None:
    batch = plan(
        "rollout.prompts_per_step=30",
        "rollout.samples_per_prompt=8",
        "data.max_prompt_tokens=512",
        "rollout.max_new_tokens=256",
        "learner.minibatches=4",
        "learner.epochs=2",
        "learner.micro_batch_tokens=8192",
    ).batch
    assert batch.sequences == 240
    assert batch.tokens == 240 * 768
    assert batch.minibatch_sequences == 64  # groups go 8, 8, 7, 7
    assert batch.micro_batches == 7  # ten sequences of 768 tokens fit into 8192
    assert batch.optimizer_steps == 8


def test_sequence_longer_than_a_micro_batch_goes_alone() -> None:
    small = plan("learner.micro_batch_tokens=100", "rollout.prompts_per_step=3", "rollout.samples_per_prompt=2")
    assert small.batch.micro_batches == 6
    assert any("below the longest sequence (520 tokens)" in warning for warning in small.warnings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["update.kl_coef=0.1", "update.terms=[{term: kl}]"],
            "update.terms[0]: the term compares with the reference",
        ),
        (["update.terms=[{term: kl, coef: 0}]"], "update.terms[0]: coef = 0"),
        (["models={teacher: {path: m}}"], "models.teacher is named, but no term uses it"),
        (
            ["update={rule: papo, entropy_coef: 0.03, terms: [{term: entropy}]}"],
            "update.terms[0]: the rule itself changes the entropy by update.entropy_coef = 0.03",
        ),
        (["update.terms=[{term: kl}, {term: kl}]"], "update.terms[1] repeats update.terms[0]"),
    ],
)
def test_terms_that_repeat_something_or_do_nothing_are_a_warning(words: list[str], message: str) -> None:
    assert any(warning.startswith(message) for warning in plan(*words).warnings)


def test_terms_that_differ_are_no_warning() -> None:
    terms = "[{term: kl}, {term: kl, estimator: k3}, {term: entropy}]"
    assert not any("terms" in warning for warning in plan(f"update.terms={terms}").warnings)


def test_processes_take_gpus_where_there_are_some() -> None:
    assert (plan().cpus, plan().gpus) == (2, 0)
    on_node = plan("rollout.workers=3", "rollout.cpus_per_worker=4", machine=NODE)
    assert (on_node.cpus, on_node.gpus) == (13, 1.9999)  # the learner has one, the workers share the other
    assert on_node.warnings == ()
    greedy = plan("rollout.workers=3", "rollout.gpus_per_worker=1.0", machine=NODE)
    assert greedy.placement is None
    assert greedy.warnings[0].startswith(
        "the run cannot start on this machine: the actors of this run cannot be placed"
    )


def test_the_plan_counts_the_cpus_that_the_actors_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "LEARNER_CPUS", 3)
    reward = "rewards=[{function: task:arithmetic, mode: actor, workers: 2, cpus: 1.5}]"
    planned = plan("rollout.workers=3", "rollout.cpus_per_worker=4", reward, machine=NODE)
    assert planned.cpus == placement.reserved_cpus(planned.recipe) == 3 + 3 * 4 + 2 * 1.5


def test_more_actors_than_the_machine_can_start_are_a_warning() -> None:
    crowded = plan("rollout.workers=100")
    assert crowded.placement is None
    assert "starts 101 actors on this machine" in crowded.warnings[0]


def test_the_command_ends_with_2_if_the_run_cannot_start_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "quickstart", "rollout.workers=1000"]) == 2
    printed = capsys.readouterr()
    assert "64 prompts x 16 samples = 1024 sequences" in printed.out, "the plan is printed all the same"
    assert printed.err.startswith(
        "error: the run cannot start on this machine: rollout.workers = 1000: this run starts"
    )
    assert "rlkl plan quickstart --gpus 8 --gpu H100" in printed.err
    assert main(["plan", "quickstart"]) == 0


def test_memory_is_checked_for_a_model_that_is_only_known_by_name() -> None:
    large = plan("model.path=Qwen/Qwen2.5-7B", "learner.lr=1e-6")
    assert large.memory is not None
    assert large.memory.parameters == 7_615_616_512
    assert "this run needs at least" in large.warnings[0]
    assert "and this machine has 16.0" in large.warnings[0]


def test_gpus_that_stay_idle_and_uneven_shares_are_warned_about() -> None:
    eight = Machine(cpus=64, memory_gib=512.0, gpus=("H200",) * 8)
    (idle,) = plan("rollout.workers=5", machine=eight).warnings
    assert idle.startswith("2 of 8 GPUs stay idle: raise rollout.workers by 2")
    (uneven,) = plan("rollout.workers=8", machine=eight).warnings
    assert uneven.startswith("rollout.workers = 8 do not share 7 GPUs evenly: some hold 2, others 1")
    assert plan("rollout.workers=7", machine=eight).warnings == ()
    assert plan("rollout.workers=14", machine=eight).warnings == ()


def test_a_cluster_is_not_measured_by_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    remote = plan("rollout.workers=9", "rollout.threads=1")
    assert remote.cluster == "http://head:8265"
    assert remote.warnings == ()


def test_recipe_is_resolved() -> None:
    for overrides, clip_high in ((), 0.28), (("update.clip_high=0.5",), 0.5):
        settings = plan("update.variant=dapo", *overrides).recipe.update
        assert isinstance(settings, GrpoSettings)
        assert settings.clip_high == clip_high


def test_the_transport_of_weights_is_decided() -> None:
    assert plan().recipe.weights.transport == "host"
    assert plan("rollout.tensor_parallel=2").recipe.weights.transport == "group"


def test_memory_follows_the_shapes_in_the_checkpoint(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [1024, 1024], "data_offsets": [0, 0]},
            "b": {"dtype": "F32", "shape": [1048576], "data_offsets": [0, 0]},
        }
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    memory = plan(f"model.path={tmp_path}", "model.dtype=bfloat16").memory
    assert memory is not None
    assert memory.parameters == 2 * 2**20
    assert memory.learner_gib == 2 / 1024 * 18
    assert memory.reference_gib == memory.engine_gib == 2 / 1024 * 2
    assert memory.copy_gib == 0
    several = plan(f"model.path={tmp_path}", "learner.minibatches=2").memory
    assert several is not None
    assert several.copy_gib == 2 / 1024 * 12
    teacher = plan(
        f"model.path={tmp_path}", f"models={{teacher: {{path: {tmp_path}}}, other: {{path: a/hub-name}}}}"
    ).memory
    assert teacher is not None
    assert teacher.reference_gib == 2 / 1024 * 4 * 2, "the reference and the teacher"
    adapters = ("model.lora={rank: 8}", f"model.reference={tmp_path}")
    named = plan(f"model.path={tmp_path}", *adapters).memory
    assert named is not None
    assert named.reference_gib == 2 / 1024 * 4, "with adapters only a reference by path is a copy"
    without = plan(f"model.path={tmp_path}", "learner.track_reference_kl=false").memory
    assert without is not None
    assert without.reference_gib == 0
    critic = plan(f"model.path={tmp_path}", "update={rule: ppo, critic: model}", "learner.minibatches=2").memory
    assert critic is not None
    assert critic.learner_gib == 2 / 1024 * 16 * 2
    assert critic.copy_gib == 2 / 1024 * 12 * 2
    assert plan().memory is None


def test_what_follows_the_policy_is_in_the_memory(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1024, 1024], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    path, term = f"model.path={tmp_path}", "update.terms=[{term: kl, to: average}]"

    def gibs(*words: str) -> tuple[float, float, float]:
        memory = plan(path, "learner.track_reference_kl=false", "learner.epochs=2", *words).memory
        assert memory is not None
        return memory.reference_gib * 1024, memory.copy_gib * 1024, memory.learner_gib * 1024

    assert gibs() == (0, 12, 16)
    assert gibs(term) == (4, 16, 16), "one model in float32, and its copy to undo a step"
    assert gibs(term, "model.dtype=bfloat16") == (2 + 4, 16, 18), "the averages are float32, the model is not"
    lagged = "update.terms=[{term: kl, to: lagged}]"
    assert gibs(lagged) == (8, 20, 16), "two snapshots in float32, and their copies to undo a step"
    assert gibs(lagged, "model.dtype=bfloat16") == (4, 16, 18), "both in the policy's precision"
    assert gibs(lagged, "model.lora={rank: 8}") == gibs("model.lora={rank: 8}")
    assert gibs(term, "model.lora={rank: 8}") == gibs("model.lora={rank: 8}"), "adapters are counted nowhere here"


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["learner.track_reference_kl=false"], "update.kl_coef = 0 and learner.track_reference_kl = false"),
        (
            ["learner.track_reference_kl=false", "models={t: {path: m}}", "update.terms=[{term: kl, to: t}]"],
            "update.kl_coef = 0 and learner.track_reference_kl = false",
        ),
        (["rollout.samples_per_prompt=1"], "rollout.samples_per_prompt = 1: "),
        (["rollout.samples_per_prompt=2"], "rollout.samples_per_prompt = 2 with update.advantage = group_std"),
        (["update.variant=dapo"], "update.drop_uniform_groups with rollout.max_rounds = 1"),
        (["rollout.schedule=stream", "rollout.max_rounds=3"], "rollout.max_rounds = 3 has no effect"),
        (["rollout.schedule=one_step_off", "rollout.max_staleness=4"], "rollout.max_staleness = 4 has no effect"),
        (["update.clip_low=0.1"], "update.clip_low and clip_high: with one optimizer step"),
        (["update.variant=rloo", "learner.epochs=2"], "update.variant = rloo with 2 optimizer steps per batch"),
        (["update.variant=cispo", "learner.minibatches=4"], "update.variant = cispo with 4 optimizer steps per batch"),
        (
            ["update.rule=papo", "update.corrupted_entropy_coef=0.05"],
            "update.corrupted_entropy_coef without update.recompute",
        ),
        (["update.rule=papo", "update.kl_coef=0"], "update.perception_coef = 0.02 with neither update.kl_coef nor"),
        (["update.rule=ppo", "update.critic=none"], "update.critic = none with update.gae_lambda = 0.95"),
        (
            ["update.rule=ppo", "update.critic=none", "update.gae_lambda=1", "update.whiten=false"],
            "update.critic = none with update.whiten = false",
        ),
        (["update.filter.keep=top_k"], "update.filter keeps one completion of a prompt"),
        (["update.rule=superhf", "update.filter=null"], "update.filter keeps every completion of a prompt (8)"),
        (
            ["update.rule=superhf", "rollout.samples_per_prompt=1"],
            "update.filter keeps every completion of a prompt (1)",
        ),
        (
            ["update.rule=superhf", "update.filter={keep: top_fraction, value: 0.1}", "update.compat=true"],
            "update.compat sums the KL over up to 32 sequences of an optimizer step: update.kl_coef = 0.35 acts as ",
        ),
        (["rollout.workers=300", "rollout.threads=1", "cluster.address=c"], "rollout.workers = 300 exceeds"),
        (["rollout.workers=4", "rollout.threads=1"], "5 CPUs are asked for and this machine has 4"),
        (["rollout.temperature=0.7"], "rollout.temperature = 0.7: "),
        (["model.dtype=bfloat16"], "model.dtype = bfloat16 without a GPU"),
        (["model.path=a/model"], "learner.lr = 0.0005 is large for all weights"),
        (["model.path=x", "model.lora={}", "learner.lr=0.01"], "learner.lr = 0.01 is large for adapters"),
        (["learner.lr=0"], "learner.lr = 0: "),
        (
            ["update.terms=[{term: kl, average_decay: 0.9}]"],
            "update.terms[0]: average_decay = 0.9 has no effect with to = reference",
        ),
        (
            ["update.terms=[{term: kl, to: average, average_decay: 0}]"],
            "update.terms[0]: average_decay = 0: the average is the policy after",
        ),
        (
            ["update.terms=[{term: kl, lag: 3}]"],
            "update.terms[0]: lag = 3 has no effect with to = reference",
        ),
        (
            ["update.terms=[{term: kl, to: average, lag: 3}]"],
            "update.terms[0]: lag = 3 has no effect with to = average",
        ),
        (["learner.warmup_steps=100"], "learner.warmup_steps = 100 is not shorter than the run (100 optimizer steps)"),
        (["rewards=[]"], "rewards is empty"),
        (["steps=20"], "checkpoint.every = 50 exceeds steps = 20"),
    ],
)
def test_each_warning_comes_alone_and_for_its_reason(overrides: list[str], start: str) -> None:
    assert plan().warnings == ()
    (warning,) = plan(*overrides).warnings
    assert warning.startswith(start)


def test_a_term_to_the_reference_holds_the_policy_near_it() -> None:
    assert plan("learner.track_reference_kl=false", "update.terms=[{term: kl}]").warnings == ()


def test_run_dir_that_holds_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("")
    with pytest.raises(InputError, match="already holds files"):
        plan(f"run.dir={tmp_path}")


def test_view_shows_processes_arithmetic_and_warnings() -> None:
    stream = io.StringIO()
    show(plan("steps=20"), Console(file=stream, markup=False, width=120))
    text = stream.getvalue()
    assert "Processes: 2 CPUs and 0 GPUs, on a local Ray; this machine has 4 CPUs and 0 GPUs" in text
    assert "32 prompts x 8 samples = 256 sequences" in text
    assert "1 optimizer steps x 20 training steps = 20 in total" in text
    assert text.startswith("Warnings: 1, listed at the end\n")
    assert "Warnings: 1\n  - checkpoint.every = 50 exceeds steps = 20" in text


def test_view_without_warnings_says_none_once_and_at_the_top() -> None:
    stream = io.StringIO()
    show(plan(), Console(file=stream, markup=False, width=120))
    text = stream.getvalue()
    assert text.startswith("Warnings: none\n")
    assert text.count("Warnings") == 1


def test_view_shows_which_actor_gets_which_gpu() -> None:
    stream = io.StringIO()
    show(plan("rollout.workers=4", machine=NODE), Console(file=stream, markup=False, width=140))
    text = stream.getvalue()
    assert "Processes: 5 CPUs and 2 GPUs" in text
    assert "  GPU 0: learner (1) " in text
    assert "  GPU 1: rollout workers 0, 1, 2, 3 (0.25, vLLM memory 0.225 each) " in text


def test_view_on_a_cluster_leaves_its_gpus_open() -> None:
    stream = io.StringIO()
    show(plan("cluster.address=head:6379"), Console(file=stream, markup=False, width=140))
    text = stream.getvalue()
    assert "on the Ray cluster at head:6379, whose GPUs are counted when the run starts" in text
    assert re.search(r"learner +1 +1 +\? ", text)


PAIRS = ("data.chosen_column=a", "data.rejected_column=b", "rollout.workers=0", "rewards=[]", "update={rule: sparsepo}")


def test_stored_pairs_need_no_worker_and_count_two_a_prompt() -> None:
    paired = plan(*PAIRS)
    assert [process.role for process in paired.processes] == ["driver", "learner"]
    assert paired.batch.sequences == 64
    assert paired.warnings == ()


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["update.min_gap=1"], "update.min_gap = 1: stored pairs"),
        (["rewards=[{function: task:arithmetic}]"], "rewards are named, but nothing is sampled"),
        (["update.mask=mapo", "update.l1_kl=0.1"], "update.l1_reward and l1_kl: with update.mask = mapo"),
        (["update.mask_init=paper"], "update.mask_init = paper: masks start near 0.02"),
    ],
)
def test_warnings_on_pairs(overrides: list[str], start: str) -> None:
    (warning,) = plan(*PAIRS, *overrides).warnings
    assert warning.startswith(start)


BEST_OF_PAIRS = (*PAIRS[:-1], "update={rule: superhf}")


def test_superhf_learns_the_chosen_answers_of_stored_pairs() -> None:
    assert plan(*BEST_OF_PAIRS).warnings == ()
    for given in ("filter=null", "filter={value: 2}", "filter={keep: threshold, value: 0}"):
        (warning,) = plan(*BEST_OF_PAIRS, f"update.{given}").warnings
        assert warning.startswith("update.filter keeps the rejected answers too")
    (warning,) = plan(*BEST_OF_PAIRS, "update.filter={keep: threshold, value: 1.5}").warnings
    assert warning.startswith("update.filter.value = 1.5 keeps no answer")
    (warning,) = plan(*BEST_OF_PAIRS, "rewards=[{function: task:arithmetic}]").warnings
    assert warning.startswith("rewards are named, but nothing is sampled")


def test_one_sample_makes_no_pair() -> None:
    (warning,) = plan("update={rule: sparsepo}", "rollout.samples_per_prompt=1").warnings
    assert warning.startswith("rollout.samples_per_prompt = 1: a pair is")
