"""Training runs that several ranks must repeat, and the processes that make them once for `test_sharded_learner`.

Four processes start once. Three of them are three ranks, then two of them are two ranks, then all are four ranks; the
fourth computes alone meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlkl.data.vision import load_picture_processor
from rlkl.functional import linear_scores as tiled
from rlkl.functional import logprobs
from rlkl.learner.export import ExportScores, compare_export
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.learner.optimizers import AdamW
from rlkl.learner.ranks import Ranks
from rlkl.learner.state import OLD_FILE, state_tensors
from rlkl.models.sharding import whole
from rlkl.recipe import Recipe
from rlkl.types import Example, Probe
from tests.models import random_model, tiny_qwen2_5_vl, tiny_qwen3
from tests.pictures import example, picture, prompt_with
from tests.ranks import join
from tests.unit.learner.test_learner import examples

STEPS = 5
PROBES = [Probe(token_ids=(3, 4, 5, 6, 7)), Probe(token_ids=(8, 2, 9))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run."""

    update: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    path: str = "tied"
    sizes: tuple[int, ...] = (2,)
    """Numbers of ranks that repeat it."""
    rows: int | None = None
    """Train on so many examples only."""
    tile: int = tiled.TILE_IDS
    """Token ids of a tile of the head."""


NEAR_AVERAGE = {"term": "kl", "to": "average", "coef": 0.1, "average_decay": 0.5}
NEAR_LAGGED = {"term": "kl", "to": "lagged", "coef": 0.1, "lag": 1}
SEES: dict[str, Any] = {"rule": "papo", "perception_coef": 0.1}

CASES: dict[str, Case] = {
    "grpo": Case(update={"kl_coef": 0.1}, sizes=(2, 3)),
    "ppo": Case(update={"rule": "ppo"}, learner={"epochs": 2, "minibatches": 2}, path="untied"),
    "critic": Case(update={"rule": "ppo", "critic": "model"}, path="untied", sizes=(3,)),
    "superhf": Case(update={"rule": "superhf"}, sizes=(3,)),
    "tiles": Case(update={"rule": "superhf"}, path="untied", tile=5),
    "tied tiles": Case(update={"kl_coef": 0.1}, sizes=(3,), tile=5),
    "sparsepo": Case(update={"rule": "sparsepo", "mask": "sparse_common", "l1_kl": 0.01}, path="untied", sizes=(2, 3)),
    "listwise": Case(update={"rule": "listwise", "beta": 1.0}, path="untied", sizes=(2, 3)),
    "distill": Case(
        update={
            "rule": "distill",
            "kept_mass": 0.4,
            "gate_tokens": 3,
            "terms": [{"term": "span", "to": "teacher"}, {"term": "kl", "to": "teacher"}],
        },
        path="untied",
        sizes=(2, 3),
    ),
    "lora": Case(
        model={"lora": {"rank": 2}, "gradient_checkpointing": True},
        update={"terms": [{"term": "kl", "coef": 0.1}]},
        path="untied",
    ),
    "average": Case(update={"terms": [NEAR_AVERAGE]}, path="untied"),
    "average, bfloat16": Case(
        update={"terms": [NEAR_AVERAGE]},
        learner={"lr": 1e-4},
        model={"dtype": "bfloat16"},
    ),
    "average adapters": Case(
        model={"lora": {"rank": 2}, "gradient_checkpointing": True},
        update={"terms": [NEAR_AVERAGE]},
        path="untied",
    ),
    "lagged": Case(update={"terms": [NEAR_LAGGED]}, path="untied"),
    "lagged, bfloat16": Case(update={"terms": [NEAR_LAGGED]}, learner={"lr": 1e-4}, model={"dtype": "bfloat16"}),
    "lagged adapters": Case(model={"lora": {"rank": 2}}, update={"terms": [NEAR_LAGGED]}, path="untied"),
    "experts": Case(update={"kl_coef": 0.1}, path="experts", sizes=(3,)),
    "one row": Case(update={"kl_coef": 0.1}, rows=1, sizes=(3,)),
    "papo": Case(update=SEES, path="seeing", sizes=(2,)),
    "recomputed": Case(
        update={"rule": "papo", "recompute": True, "corruption": {"kind": "saliency"}}, path="seeing", sizes=(3,)
    ),
    "halves": Case(update={"kl_coef": 0.1}, learner={"max_grad_norm": 1e6}, path="untied"),
    "bfloat16": Case(update={"kl_coef": 0.1}, model={"dtype": "bfloat16"}, learner={"lr": 1e-4}),
    "adapters": Case(
        update={"kl_coef": 0.1}, model={"dtype": "bfloat16", "lora": {"rank": 2}}, learner={"lr": 1e-4}, path="untied"
    ),
    "eight bits": Case(
        update={"rule": "ppo"}, learner={"optimizer": "adamw_8bit", "offload": "optimizer"}, path="wide", sizes=(2, 3)
    ),
    "no picture": Case(update={"rule": "papo"}, path="seeing", rows=-2),
    "seeing adapters": Case(update=SEES, model={"lora": {"rank": 2}}, path="seeing", sizes=(2, 3)),
    "tower adapters": Case(  # the text model of a rank without pictures trains nothing
        update={"kl_coef": 0.1}, model={"lora": {"rank": 2, "target_modules": ["qkv", "proj"]}}, path="seeing"
    ),
    "text adapters": Case(update=SEES, model={"lora": {"rank": 2}, "freeze_vision": True}, path="seeing"),
    "recomputed adapters": Case(
        update=SEES, model={"lora": {"rank": 2}, "gradient_checkpointing": True}, path="seeing", sizes=(3,)
    ),
    "seeing adapters, bfloat16": Case(
        update=SEES, model={"dtype": "bfloat16", "lora": {"rank": 2}}, learner={"lr": 1e-4}, path="seeing"
    ),
    "no picture, adapters": Case(update=SEES, model={"lora": {"rank": 2}}, path="seeing", rows=-2, sizes=(3,)),
}


def make_models(folder: Path) -> None:
    """Write the models of all cases."""
    tiny_qwen3(folder / "tied", tied=True, seed=0)
    tiny_qwen3(folder / "untied", tied=False, seed=0)
    tiny_qwen2_5_vl(folder / "seeing", seed=0)
    random_model("qwen3_moe", folder / "experts", seed=0)
    random_model("qwen3", folder / "wide", seed=0, hidden_size=256, intermediate_size=512, num_hidden_layers=1)


def build(case: Case, folder: Path, ranks: Ranks) -> Learner:
    """Build the learner of a case on this rank."""
    tiled.TILE_IDS = logprobs.TILE_IDS = case.tile
    path = str(folder / case.path)
    learner = {"device": "cpu", "threads": 1, "lr": 1e-3, "micro_batch_tokens": 40, "track_reference_kl": True}
    teachers = {"teacher": str(folder / "tied")} if case.update.get("rule") == "distill" else {}
    learner["adam_eps"] = 1e-5  # with 1e-8, the rounding of a gradient near 0 decides how far a weight moves
    recipe = Recipe.model_validate(
        {
            "model": {"path": path, **case.model},
            "models": {name: {"path": teacher} for name, teacher in teachers.items()},
            "data": {"source": "unused.jsonl"},
            "rollout": {"workers": 1},
            "update": case.update,
            "learner": learner | case.learner,
        }
    )
    return Learner(LearnerSpec(recipe=recipe, model_path=path, frozen_paths=teachers), ranks)


def batch(case: Case, folder: Path, step: int) -> Sequence[Example]:
    """Return the examples of a step."""
    if case.path == "seeing":
        pictures = load_picture_processor(str(folder / case.path))
        assert pictures is not None
        seen = [(picture(56, 56, step),), (), (picture(56, 56, 9 + step),), ()]
        prompts = [prompt_with(pictures, images, name=f"row-{n}") for n, images in enumerate(seen)]
        found = [
            example(prompt, group=group, sample=sample, length=2 + group + sample, draw=step)
            for group, prompt in enumerate(prompts)
            for sample in range(2)
        ]
    elif case.update.get("rule") == "sparsepo":
        found = pairs(step)
    elif case.update.get("rule") == "listwise":
        found = [replace(one, list=one.group, rank=one.rollout.sample_index) for one in examples(step)]
    else:
        found = examples(step)
    return found if case.rows is None else found[: case.rows] if case.rows > 0 else found[case.rows :]


def pairs(step: int) -> list[Example]:
    """Return four pairs: the first two examples of each prompt."""
    return [
        replace(one, list=one.group, rank=one.rollout.sample_index)
        for one in examples(step)
        if one.rollout.sample_index < 2
    ]


def run(case: Case, folder: Path, ranks: Ranks) -> tuple[Learner, dict[str, Any]]:
    """Train and return the learner, with the records of all steps, the weights and the probes at the end."""
    if case is CASES["halves"]:
        case = in_two_cuts(case, folder)
    learner = build(case, folder, ranks)
    records = [learner.prepare(batch(case, folder, step), step=step) | learner.step(step) for step in range(STEPS)]
    records = [{name: x for name, x in one.items() if not name.startswith("time/")} for one in records]
    return learner, {"records": records, "weights": weights(learner), "probes": learner.probe(PROBES)}


def in_two_cuts(case: Case, folder: Path) -> Case:
    """Return the case with micro-batches of so many tokens that each of its batches is cut into two of like size."""
    learner = build(case, folder, Ranks())
    batches = [learner.preparer.pack(batch(case, folder, step)) for step in range(STEPS)]
    tokens = next(
        tokens
        for tokens in range(1, 200)
        if all(len(replace(learner._signals, micro_batch_tokens=tokens).cuts(one)) == 2 for one in batches)
    )
    return replace(case, learner={**case.learner, "micro_batch_tokens": tokens})


def weights(learner: Learner) -> dict[str, Tensor]:
    """Return the whole published weights."""
    return {name: tensor.clone() for name, tensor in learner.policy.published()}


def whole_state(learner: Learner) -> dict[str, Tensor]:
    """Return trained parameters and optimizer state, gathered."""
    return {name: whole(tensor.detach()).clone() for name, tensor in state_tensors(learner._optimization).items()}


SAVED = {
    "grpo": 3,
    "critic": 3,
    "lora": 2,
    "eight bits": 3,
    "average": 2,
    "average adapters": 2,
    "lagged": 2,
    "lagged adapters": 2,
}
"""Cases that are saved, and by how many ranks."""

EXPORTED = {"lora": 2, "bfloat16": 2, "adapters": 2, "seeing adapters": 3}
"""Cases whose saved policy is compared with the learner."""

OLD = "critic"
"""The case that one rank saves as earlier versions did."""

TWICE = "ppo"
"""The case that two ranks run twice."""


def process(number: int, folder: Path) -> None:
    """Be one of the four processes."""
    if number == 3:
        run_cases(Ranks(), folder)
    else:
        with_ranks(folder, "three", number, 3, run_cases)
    if number < 2:
        with_ranks(folder, "two", number, 2, run_cases)
    with_ranks(folder, "four", number, 4, resume)
    if number < 2:
        with_ranks(folder, "two again", number, 2, resume)
    if number == 3:
        resume(Ranks(), folder)


def with_ranks(folder: Path, name: str, number: int, size: int, work: Callable[[Ranks, Path], None]) -> None:
    """Join the ranks, work, and leave them."""
    ranks = join(folder, name, number, size)
    work(ranks, folder)
    ranks.barrier()
    ranks.leave()


def run_cases(ranks: Ranks, folder: Path) -> None:
    """Run the cases of this number of ranks; leave the results of each rank in ``folder``."""
    for name, case in CASES.items():
        if ranks.size not in (1, *case.sizes):
            continue
        learner, found = run(case, folder, ranks)
        found["whole gathers"] = gathers_whole(learner)
        found["held"] = sum(part.numel() for part in learner._optimization.trained.values())
        if SAVED.get(name) == ranks.size:
            (folder / f"saved {name}").mkdir(exist_ok=True)
            found["files"] = sorted(learner.save(folder / f"saved {name}"))
            found["state"] = whole_state(learner)
        if name == OLD and ranks.size == 1:
            save_as_before(learner, folder)
            found["state"] = whole_state(learner)
        if name == TWICE and ranks.size > 1:
            found["again"] = run(case, folder, ranks)[1]
        if EXPORTED.get(name) == ranks.size:
            found["damaged"], found["export"] = exports(learner, folder / f"export {name}", ranks)
        torch.save(found, folder / f"{name} {ranks.size} {ranks.rank}.pt")


def exports(learner: Learner, saved: Path, ranks: Ranks) -> tuple[ExportScores, ExportScores]:
    """Compare the learner with a policy that lost a tensor's first value, and with the policy that it wrote."""
    if ranks.rank == 0:
        saved.mkdir()
    ranks.barrier()
    learner.save(saved)
    file = saved / "policy" / "model.safetensors"
    whole_file = file.read_bytes()
    ranks.barrier()
    if ranks.rank == 0:
        tensors = load_file(file)
        next(iter(tensors.values())).view(-1)[0] += 1.0
        save_file(tensors, file, metadata={"format": "pt"})
    damaged = compare_export(learner, saved / "policy", PROBES)
    if ranks.rank == 0:
        file.write_bytes(whole_file)
    return damaged, compare_export(learner, saved / "policy", PROBES)


def save_as_before(learner: Learner, folder: Path) -> None:
    """Write the state as earlier versions did: one file with whole tensors."""
    optimization = learner._optimization
    assert isinstance(optimization.optimizer, AdamW)
    state = {
        "trained": {name: p.detach().cpu() for name, p in optimization.trained.items()},
        "optimizer": optimization.optimizer.state_dict(),
        "optimizer_steps": optimization.steps,
        "finished_steps": learner.finished_steps,
        "update": {"kl_coef": 0.25, "kl_error": 0.5},
    }
    (folder / "old").mkdir()
    torch.save(state, folder / "old" / OLD_FILE)


def gathers_whole(learner: Learner) -> bool:
    """Whether a publish right after a pass without gradient has whole float32 tensors, and not those of the pass."""
    learner.probe(PROBES)
    return all(type(tensor) is Tensor for _, tensor in learner.policy.published())


def resume(ranks: Ranks, folder: Path) -> None:
    """Resume the saved cases; leave the state that was read, and the record of one more step."""
    for name in SAVED:
        learner = build(CASES[name], folder, ranks)
        learner.probe(PROBES)  # leaves weights gathered, which the state then replaces
        learner.restore(folder / f"saved {name}")
        found = {"state": whole_state(learner), "weights": weights(learner), "probes": learner.probe(PROBES)}
        found["next"] = learner.prepare(batch(CASES[name], folder, 9), step=9) | learner.step(9)
        torch.save(found, folder / f"resumed {name} {ranks.size} {ranks.rank}.pt")
    learner = build(CASES[OLD], folder, ranks)
    learner.restore(folder / "old")
    numbers = {"steps": learner._optimization.steps, "finished": learner.finished_steps, **learner._update.state()}
    torch.save({"state": whole_state(learner), "numbers": numbers}, folder / f"old {ranks.size} {ranks.rank}.pt")
