"""One cell of the matrix: a model, a precision, adapters or none, a rule and an engine, trained and checked for real.

``python -m tests.realistic.cells FOLDER CELL.json`` runs the cells of a file in this process, one JSON verdict a line.
A process can start vLLM once, so a cell on vLLM needs one of its own.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as pil
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from rlkl.data.images import encode_image
from rlkl.data.vision import PictureProcessor, load_picture_processor
from rlkl.errors import EnvironmentProblem, InputError
from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.recipe import Recipe
from rlkl.rollout.collect import Draw, build_requests
from rlkl.rollout.engine import Engine, EngineSettings, engine_class
from rlkl.types import Completion, Example, Probe, Prompt, Rollout, RolloutGroup
from rlkl.updates import build_update
from rlkl.updates.filters import filter_groups
from tests.realistic.models import ModelChoice, build

STEPS = 3
PROMPT_LENGTHS = (1, 3, 17, 64)
"""From one token to the limit."""
SAMPLES = 4
NEW_TOKENS = 32
PROBES = 8
LEARNING_RATE = {"float32": 5e-6, "bfloat16": 1e-5, "adapters": 1e-4}
"""By what trains. Large enough for three steps to move log-probs far beyond rounding."""

ROUNDING = {"float32": 3e-4, "bfloat16": 0.5}
"""Most nats (root mean square over the probes) between engine and learner before anything was trained."""
GROWTH = 3.0
"""Rounding may grow by this factor as the policy trains."""
SEEN = 2.0
"""Training must move the log-probs by this many times the rounding."""
FLOOR = {"float32": 5e-5, "bfloat16": 0.3}
"""Differences below this many nats are rounding whatever they were before training."""

LOST = 0.1
"""Largest part of the learner's movement that may be lost, or come on top, on the way to engine and export."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """``Cell(architecture="qwen3", dtype="bfloat16", lora=True, rule="grpo", engine="vllm")``."""

    architecture: str
    dtype: str
    lora: bool
    rule: str
    engine: str = "hf"
    model: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ModelChoice` that differ from the matrix's own."""

    @property
    def name(self) -> str:
        adapters = "+lora" if self.lora else ""
        return f"{self.architecture} {self.dtype}{adapters} {self.rule} {self.engine}"

    @property
    def choice(self) -> ModelChoice:
        window = 16 if self.architecture in ("mistral", "gemma2", "gemma3") else None
        values = {"vocabulary": 2048, "dtype": self.dtype, "sliding_window": window, **self.model}
        return ModelChoice(architecture=self.architecture, **values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``status``: works, refused (``reason`` is the message), or wrong (``reason`` lists what disagrees)."""

    cell: str
    status: str
    reason: str = ""
    mismatch_max: float | None = None
    """Largest difference of a sampled token's log-prob between engine and learner, over all steps (nats)."""
    moved: float | None = None
    """How far training moved the probes' log-probs; this and the rest are root mean squares in nats."""
    rounding: float | None = None
    """Engine against learner before training."""
    published: float | None = None
    """Engine against learner after training."""
    loaded: float | None = None
    """The model, loaded in transformers with the precision of the export, against the learner before training."""
    exported: float | None = None
    """The saved policy, loaded in transformers, against the learner."""
    arrived: float | None = None
    """Share of the learner's way that the engine went."""
    resumed: bool | None = None
    """Whether a learner restored from the checkpoint before the last step made the same last step, bit for bit."""


def run(cell: Cell, folder: Path) -> Verdict:
    """Train the cell's model for `STEPS` steps and compare everybody who holds its policy."""
    model = build(cell.choice, folder)
    work = Path(tempfile.mkdtemp(dir=folder, prefix="cell-"))
    try:
        return _run(cell, model, work)
    except (InputError, EnvironmentProblem) as error:  # only raised before training starts
        return Verdict(cell=cell.name, status="refused", reason=" ".join(str(error).split()))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__} in {Path(where.filename).name}: {' '.join(str(error).split())[:300]}"
        return Verdict(cell=cell.name, status="wrong", reason=reason)
    finally:
        shutil.rmtree(work)


def _run(cell: Cell, model: Path, work: Path) -> Verdict:
    teachers = {"teacher": str(build(replace(cell.choice, seed=1), work))} if cell.rule == "distill" else {}
    recipe = _recipe(cell, model, teachers)
    spec = LearnerSpec(recipe=recipe, model_path=str(model), frozen_paths=teachers)
    tokenizer = AutoTokenizer.from_pretrained(model)
    check: Any = getattr(build_update(recipe.update), "check_model", None)
    if check is not None:
        check(is_multimodal=cell.choice.is_multimodal)
    pictures = load_picture_processor(str(model))
    prompts = _prompts(cell, pictures, tokenizer)
    learner = Learner(spec)
    engine: Engine = engine_class(cell.engine)(_engine_settings(recipe, model, prompts))
    unreached = engine.load_weights(learner.policy.published())
    if unreached:
        return Verdict(cell=cell.name, status="wrong", reason=f"no tensor reached {sorted(unreached)[:3]}")

    probes: list[Probe] = []
    mismatch, before, same = 0.0, (np.empty(0), np.empty(0)), False
    for step in range(STEPS):
        groups = _sample(engine, recipe, prompts, step)
        if step == 0:
            probes = _probes(groups)
            before = _flat(learner.probe(probes)), _flat(engine.score(probes))
        if step == STEPS - 1:
            learner.save(work / "checkpoint")
        examples = build_update(recipe.update).select(filter_groups(groups, recipe.update.filter))
        metrics = learner.prepare(examples, step=step) | learner.step(step)
        mismatch = max(mismatch, metrics["rollout/mismatch_max"])
        if step == STEPS - 1:
            same = _resumes(spec, work / "checkpoint", examples, learner)
        engine.load_weights(learner.policy.published())

    learner.save(work / "final")
    exported = work / "final" / "policy"
    precision = json.loads((exported / "config.json").read_text())["dtype"]
    start = _Scores(
        learner=before[0], engine=before[1], transformers=_flat(score_export(model, pictures, probes, precision))
    )
    end = _Scores(
        learner=_flat(learner.probe(probes)),
        engine=_flat(engine.score(probes)),
        transformers=_flat(score_export(exported, pictures, probes)),
    )
    return _judge(cell, start, end, mismatch=mismatch, resumed=same)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scores:
    """Log-probs of the probes' tokens by everybody who holds the policy."""

    learner: np.ndarray
    engine: np.ndarray
    transformers: np.ndarray
    """The model in its folder, or the exported policy."""


def _judge(cell: Cell, start: _Scores, end: _Scores, *, mismatch: float, resumed: bool) -> Verdict:
    moved = _rms(end.learner - start.learner)
    gaps = {
        name: (_rms(getattr(start, name) - start.learner), _rms(getattr(end, name) - end.learner))
        for name in ("engine", "transformers")
    }
    problems = []
    for name, (before, after) in gaps.items():
        if before > ROUNDING[cell.dtype]:
            problems.append(f"{name} and learner differ by {before:.2g} nats before training")
        if after > max(GROWTH * before, FLOOR[cell.dtype]):
            problems.append(f"{name} and learner differ by {after:.2g} nats after training, {before:.2g} before")
        # The learner's own rounding is a part of its movement that nobody else makes.
        share = _share(start, end, name) / (1 - (before / moved) ** 2 if moved > before else 1.0)
        if not 1 - LOST <= share <= 1 + LOST:
            problems.append(f"{name} went {share:.0%} of the learner's way")
        if moved < SEEN * before:
            problems.append(f"training moved the policy by {moved:.2g} nats, too little beside {name}'s {before:.2g}")
    if not resumed:
        problems.append("a resumed learner makes another last step")
    return Verdict(
        cell=cell.name,
        status="wrong" if problems else "works",
        reason="; ".join(problems),
        mismatch_max=mismatch,
        moved=moved,
        rounding=gaps["engine"][0],
        published=gaps["engine"][1],
        loaded=gaps["transformers"][0],
        exported=gaps["transformers"][1],
        arrived=_share(start, end, "engine"),
        resumed=resumed,
    )


@torch.no_grad()
def score_export(
    folder: Path, pictures: PictureProcessor | None, probes: Sequence[Probe], dtype: str = "auto"
) -> list[tuple[float, ...]]:
    """Load a saved policy as any user of transformers does, in its own precision, and score the probes with it."""
    loader = AutoModelForCausalLM if pictures is None else AutoModelForImageTextToText
    # Plain attention: torch's fused one leaves out the soft-capping of Gemma 2's scores.
    model: Any = loader.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    scores = []
    for probe in probes:
        ids_1T = torch.tensor([probe.token_ids])
        seen: dict[str, Any] = {}
        if pictures is not None and probe.images:
            patches_PD, grid_3 = pictures.patches(probe.images[0])
            places_1T = (ids_1T == pictures.image_token_id).int()
            seen = {"pixel_values": patches_PD, "image_grid_thw": grid_3[None], "mm_token_type_ids": places_1T}
        logprobs_TV = model(input_ids=ids_1T, **seen).logits[0, :-1].float().log_softmax(-1)
        scores.append(tuple(logprobs_TV.gather(-1, ids_1T[0, 1:, None])[:, 0].tolist()))
    return scores


def _resumes(spec: LearnerSpec, checkpoint: Path, examples: Sequence[Example], learner: Learner) -> bool:
    """Whether a new learner from the checkpoint comes to the same weights by the last step."""
    other = Learner(spec)
    other.restore(checkpoint)
    other.prepare(examples, step=STEPS - 1)
    other.step(STEPS - 1)
    pairs = zip(learner.policy.published(), other.policy.published(), strict=True)
    return all(left[0] == right[0] and torch.equal(left[1], right[1]) for left, right in pairs)


def _recipe(cell: Cell, model: Path, teachers: Mapping[str, str]) -> Recipe:
    update: dict[str, Any] = {"rule": cell.rule}
    learning_rate = LEARNING_RATE["adapters" if cell.lora else cell.dtype]
    if cell.rule == "grpo":
        update["kl_coef"] = 0.01
    if cell.rule == "superhf":
        update["filter"] = None  # by default it drops truncated completions, and here most are
    return Recipe.model_validate(
        {
            "steps": STEPS,
            "model": {
                "path": str(model),
                "dtype": cell.dtype,
                "lora": {"rank": 8} if cell.lora else None,
                "gradient_checkpointing": cell.lora == (cell.dtype == "float32"),
            },
            "models": {name: {"path": path} for name, path in teachers.items()},
            "data": {"source": "prompts.jsonl", "max_prompt_tokens": 2 * max(PROMPT_LENGTHS)},
            "rollout": {
                "engine": cell.engine,
                "prompts_per_step": len(PROMPT_LENGTHS),
                "samples_per_prompt": SAMPLES,
                "max_new_tokens": NEW_TOKENS,
                "threads": 1,
            },
            "rewards": [{"function": "tests.integration.runs:digits"}],
            "learner": {
                "lr": learning_rate,
                "micro_batch_tokens": 1024,
                "threads": 1,
            },
            "update": update,
        }
    )


def _engine_settings(recipe: Recipe, model: Path, prompts: Sequence[Prompt]) -> EngineSettings:
    stops: Any = GenerationConfig.from_pretrained(model).eos_token_id
    settings = EngineSettings(
        model_path=str(model),
        dtype=recipe.model.dtype,
        max_prompt_tokens=recipe.data.max_prompt_tokens,
        max_new_tokens=NEW_TOKENS,
        temperature=1.0,
        stop_token_ids=(stops,) if isinstance(stops, int) else tuple(stops),
        memory_fraction=0.5,
        kv_cache_gib=1,
        images_per_prompt=max(len(prompt.images) for prompt in prompts),
        image_token_id=_image_token(model),
    )
    if getattr(recipe.model, "publishes_adapters", False):
        settings = replace(settings, adapter=recipe.model.lora)
    return settings


def _image_token(model: Path) -> int | None:
    return json.loads((model / "config.json").read_text()).get("image_token_id")


def _prompts(cell: Cell, pictures: PictureProcessor | None, tokenizer: Any) -> list[Prompt]:
    """Prompts of words, the first of one token; the last one has a picture if the model sees."""
    generator = torch.Generator().manual_seed(0)
    prompts = []
    for number, length in enumerate(PROMPT_LENGTHS):
        ids = torch.randint(256, cell.choice.vocabulary - 64, (length,), generator=generator).tolist()
        prompts.append(Prompt(id=str(number), text=tokenizer.decode(ids), token_ids=tuple(ids)))
    if pictures is not None:
        values = np.random.default_rng(0).integers(1, 256, (56, 84, 3), dtype=np.uint8)
        image = encode_image(pil.fromarray(values))
        mark = ["<|vision_start|>", *["<|image_pad|>"] * pictures.token_count(image), "<|vision_end|>"]
        seen = tuple(tokenizer.convert_tokens_to_ids(mark))
        prompts[1:] = [replace(p, token_ids=seen + p.token_ids, images=(image,)) for p in prompts[1:]]
    return prompts


def _sample(engine: Engine, recipe: Recipe, prompts: Sequence[Prompt], step: int) -> list[RolloutGroup]:
    """Groups of completions; the reward is the share of odd token ids, so samples of a prompt differ in it."""
    draws = [Draw(prompt=prompt, position=step * len(prompts) + n) for n, prompt in enumerate(prompts)]
    completions = engine.generate(build_requests(draws, samples=SAMPLES, seed=recipe.seed))
    return [
        RolloutGroup(
            prompt=draw.prompt,
            rollouts=tuple(
                Rollout(
                    sample_index=index,
                    completion=completion,
                    reward=_odd(completion),
                    components={},
                    weights_version=step,
                    draw=draw.position,
                )
                for index, completion in enumerate(completions[n * SAMPLES : (n + 1) * SAMPLES])
            ),
        )
        for n, draw in enumerate(draws)
    ]


def _odd(completion: Completion) -> float:
    return sum(token % 2 for token in completion.token_ids) / len(completion.token_ids)


def _probes(groups: Sequence[RolloutGroup]) -> list[Probe]:
    return [
        Probe(token_ids=group.prompt.token_ids + rollout.completion.token_ids, images=group.prompt.images)
        for group in groups
        for rollout in group.rollouts[: PROBES // len(groups)]
    ]


def _flat(scores: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array([score for row in scores for score in row])


def _share(start: _Scores, end: _Scores, name: str) -> float:
    """How much of the learner's movement somebody else made too: 1 is all, 0 is none. Rounding cancels out."""
    way = end.learner - start.learner
    return float((getattr(end, name) - getattr(start, name)) @ way / (way @ way))


def _rms(gaps: np.ndarray) -> float:
    return float(np.sqrt(np.mean(gaps**2)))


if __name__ == "__main__":
    for values in json.loads(Path(sys.argv[2]).read_text()):
        sys.stdout.write(json.dumps(asdict(run(Cell(**values), Path(sys.argv[1])))) + "\n")
        sys.stdout.flush()
