"""The learner: one policy, one rule, one optimizer. It never names a rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from rlkl.batch import Batch, LossOutput
from rlkl.data.packing import minibatches
from rlkl.data.vision import load_picture_processor
from rlkl.errors import LearnerError, MissingSignalError
from rlkl.learner.device import learner_device
from rlkl.learner.followers import Followers, build_frozen
from rlkl.learner.live import live_signals
from rlkl.learner.manifest import SavedFile, list_files
from rlkl.learner.placing import build_heads, place, place_backbones
from rlkl.learner.preparation import Prepared, Preparer, StartSignals
from rlkl.learner.ranks import Ranks
from rlkl.learner.schedule import learning_rate, schedule_position
from rlkl.learner.signals import (
    Models,
    Scorer,
    SignalSettings,
    check_heads,
    check_supplied,
    frozen_token_signals,
)
from rlkl.learner.state import LearnerState
from rlkl.learner.stepping import Optimization, trained_parameters
from rlkl.learner.views import Pictures, ViewMaker
from rlkl.models.policy import Policy
from rlkl.models.rounding import rounded_otherwise
from rlkl.models.saliency import received_attention
from rlkl.models.sharding import reshard, unshard
from rlkl.recipe import Recipe
from rlkl.signals import REFERENCE, Signal, Signals, frozen_models
from rlkl.system.machine import keep_freed_memory
from rlkl.types import Completion, Example, Probe, Prompt, Rollout
from rlkl.updates import build_update
from rlkl.updates.base import HeadInput, Heads, ModelShape, PolicyUpdate


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """A recipe with its models resolved: paths are folders or Hugging Face names."""

    recipe: Recipe
    model_path: str
    reference_path: str | None = None
    """The reference's weights; None: the policy as it was before training."""
    frozen_paths: Mapping[str, str] = field(default_factory=dict)
    """The weights of the recipe's other frozen models, by name."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion; the saved policy names them in its generation settings. Empty: the model's own."""


class Learner:
    """Holds the policy and turns batches into optimizer steps. Per step: `prepare`, then `step`."""

    def __init__(self, spec: LearnerSpec, ranks: Ranks | None = None) -> None:
        """Load the models. With several ``ranks`` their weights are divided, and every rank must make every call."""
        self.ranks = ranks or Ranks()
        recipe = spec.recipe
        self._recipe = recipe
        self._section = recipe.learner
        keep_freed_memory()
        torch.set_num_threads(self._section.threads or torch.get_num_threads())
        self._device = learner_device(self._section.device)
        self._update: PolicyUpdate = build_update(recipe.decided_update, seed=recipe.seed)
        check_supplied(self._update, spec.frozen_paths)
        mesh = self.ranks.mesh
        loading = self._device if mesh is None else torch.device("cpu")
        self.policy = Policy(spec.model_path, recipe.model, device=loading, seed=recipe.seed, mesh=mesh)
        self.policy.stop_at(spec.stop_token_ids)
        place(self.policy, mesh, self._device)
        heads = build_heads(self._update, _shape(self.policy, spec), mesh)
        check_heads(self._update, heads)
        backbones = place_backbones(heads, mesh)
        sharded = [] if mesh is None else [self.policy, *backbones]
        self._models = Models(policy=self.policy, frozen=self._frozen_models(spec, heads, loading), heads=heads)
        followers = Followers(self._models.frozen, recipe.update)
        self._optimization = Optimization(
            trained_parameters(self.policy, heads), self._section, heads, self.ranks, sharded, followers
        )
        self._state = LearnerState(optimization=self._optimization, update=self._update)
        self._signals = SignalSettings(
            temperature=recipe.rollout.temperature,
            chunk_tokens=self._section.logits_chunk_tokens,
            micro_batch_tokens=self._section.micro_batch_tokens,
            packed=self._packs(),
            ranks=self.ranks,
        )
        self._per_step = self._section.epochs * self._section.minibatches
        self._pictures = load_picture_processor(spec.model_path, recipe.data.pixels)
        self.preparer = Preparer(
            recipe=recipe,
            update=self._update,
            models=self._models,
            settings=self._signals,
            device=self._device,
            pictures=self._pictures,
            views=self._build_view_maker(),
        )
        self._prepared: Prepared | None = None
        """The batch that the next `step` trains on."""
        self._last: Prepared | None = None
        """The last prepared batch, also after its `step`."""
        self.moved = False
        """Whether an optimizer step should have changed the weights since this was last set to False."""

    def prepare(self, examples: Sequence[Example], left_out: Sequence[Example] = (), *, step: int) -> dict[str, float]:
        """Pack the examples, fill the frozen signals, let the rule credit them; return the metrics known so far.

        ``left_out`` are the rollouts that the rule does not train on: they count in the KL to the reference, which is
        of the policy, not of the best of its samples. No example at all leaves nothing to train on; `step` then does
        nothing. If the training pass gives the log-probs of the step's start, `step` returns the metrics of them.
        """
        self._prepared = self._last = None
        if not examples:
            return {}
        first = self._optimization.steps == 0
        self._prepared = self._last = self.preparer.prepare(examples, left_out, step=step, first=first)
        return dict(self._last.metrics)

    def _packs(self) -> bool:
        """Return whether all passes cost real tokens alone: the frozen models' too, and no head reads padded rows."""
        heads, frozen = self._models.heads, self._models.frozen.values()
        reads_rows = heads is not None and heads.reads in (HeadInput.TOKENS, HeadInput.REFERENCE_LAYERS)
        return self.policy.packs and not reads_rows and all(getattr(model, "packs", True) for model in frozen)

    def _frozen_models(self, spec: LearnerSpec, heads: Heads | None, loading: torch.device) -> dict[str, Scorer]:
        """Load the frozen models that the rule's signals, its heads or the KL metrics need, at first on ``loading``."""
        needed = set(frozen_models(self._update.needs))
        if self._section.track_reference_kl or (heads is not None and heads.reads is HeadInput.REFERENCE_LAYERS):
            needed.add(REFERENCE)
        paths = {REFERENCE: spec.reference_path, **spec.frozen_paths}
        own = {name: paths.get(name) for name in sorted(needed)}
        return build_frozen(own, self.policy, spec.model_path, self.ranks.mesh, loading=loading, device=self._device)

    def _build_view_maker(self) -> ViewMaker | None:
        """Build what changes pictures, if the rule has views. The attention is the policy's at the time of use."""
        if not self._update.views:
            return None
        if self._pictures is None:
            raise MissingSignalError(
                self._update.rule,
                Signal("logprobs", view=min(self._update.views), moment="step_start").name,
                "The model has no vision tower: take a vision-language model, or update.rule = grpo",
            )
        pictures = self._pictures

        def attention(picture: Any) -> Any:
            unshard(self.policy)
            patches_PD, grid_3 = pictures.process(picture)
            tower = self.policy.model.base_model.visual
            return received_attention(tower, patches_PD.to(self._device), grid_3.to(self._device))

        return ViewMaker(rule=self._update, pictures=pictures, attention=attention)

    def changed_pictures(self) -> dict[str, Pictures]:
        """Return the pictures of the prepared batch that the rule changed, by view and group."""
        return self._last.pictures if self._last is not None else {}

    def token_columns(self) -> dict[str, list[tuple[float, ...]]]:
        """Return the per-token columns of the batch: a tuple an example, a number a response token.

        Call it after `step`. Responses that the rule took out of the training (``mask_truncated``) are included.
        """
        if self._last is None:
            return {}
        masks_BT = self._last.sampled_BT[: self._last.given]
        return {
            name: [tuple(row[mask].tolist()) for row, mask in zip(x_BT, masks_BT, strict=True)]
            for name, x_BT in self._last.token_columns().items()
        }

    @property
    def finished_steps(self) -> int:
        """Training steps that are in the weights, those included that had nothing to train on."""
        return self._state.finished_steps

    def step(self, step: int) -> dict[str, float]:
        """Run all epochs, minibatches and micro-batches over the prepared batch; return means over optimizer steps.

        An error leaves the weights, the optimizer and the rule as the step before left them, so that they can be
        saved; `NumericalFault` if a loss or a gradient is not finite.
        """
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            metrics = {"optim/skipped": 1.0, "optim/lr": 0.0, "optim/grad_norm": 0.0}
        else:
            metrics = self._train(prepared, step)
        self._state.finished_steps = step + 1
        return metrics

    def _train(self, prepared: Prepared, step: int) -> dict[str, float]:
        batch, seed = prepared.batch, self._recipe.seed
        parts = [
            rows_B
            for epoch in range(self._section.epochs)
            for rows_B in minibatches(batch, self._section.minibatches, seed=seed, step=step, epoch=epoch)
        ]
        total = self._recipe.steps * self._per_step
        records: list[dict[str, float]] = []
        rule_before = self._update.state()
        try:
            with self._optimization.undone_on_error(several=len(parts) > 1):
                for made, rows_B in enumerate(parts):
                    position = schedule_position(step, made, len(parts), per_step=self._per_step)
                    lr = learning_rate(self._section, position, total)
                    start = prepared.start if prepared.pending else None
                    records.append({**self._gradient(batch.rows(rows_B).recounted(), start), "optim/lr": lr})
                    prepared.finish_start()
                    if made == len(parts) - 1:  # before the weights move: the rule may raise
                        self._update.observe({**prepared.metrics, **_means(records)})
                    self._optimization.apply(lr)
        except BaseException:
            self._update.load_state(rule_before)
            raise
        self.moved = self.moved or any(r["optim/lr"] > 0 and r["optim/grad_norm"] > 0 for r in records)
        return {**prepared.metrics, **_means(records), "optim/lr": records[-1]["optim/lr"], "optim/skipped": 0.0}

    def try_rows(self, rows_B: Tensor) -> dict[str, float]:
        """Return the losses and the gradient's norm of some rows of the prepared batch alone; nothing is learned.

        Raises `NumericalFault` if one of them is not finite.
        """
        assert self._last is not None, "prepare comes first"
        batch = self._last.batch.rows(rows_B).recounted()
        return self._gradient(batch, StartSignals.zeros(batch) if self._last.pending else None)

    def _gradient(self, batch: Batch, start: StartSignals | None) -> dict[str, float]:
        """Accumulate the clipped gradient of one optimizer step; return its losses and metrics.

        ``start``: to fill with the log-probs and entropies of this pass, which is the step's first.
        """
        self._optimization.zero_gradients()
        rows_B = _trained_rows(batch)
        part = batch.rows(rows_B)
        found = None if start is None else start.zeros(batch)
        totals: dict[str, Tensor] = {}
        for share in self._signals.shares(part):
            micro = part.rows(share.rows_B).to(self._device)
            live = live_signals(self._models, micro, self._signals, self._update, start=start is not None)
            output = self._loss(micro, live.signals)
            if not share.counts:
                (0.0 * output.loss).backward()
                continue
            if found is not None:
                found.fill(rows_B[share.rows_B], micro.response_BT.cpu(), live.logprobs_BT.cpu(), live.entropy_BT.cpu())
            output.loss.backward()
            for name, value in _log_keys(output):
                totals[name] = totals[name] + value if name in totals else value
        if start is not None and found is not None:
            found.sum_(self.ranks)
            start.fill(torch.arange(batch.size), batch.response_BT, found.logprobs_BT, found.entropy_BT)
        self._optimization.finish_gradients(without="visual" if batch.images is None else None)
        metrics = {name: float(value) for name, value in self.ranks.sum_named(totals).items()}
        return {**metrics, "optim/grad_norm": self._optimization.clip_gradients(metrics)}

    def _loss(self, micro: Batch, live: Signals) -> LossOutput:
        batch = micro if self._update.sees_all_roles else micro.only("main")
        return self._update.loss(batch, micro.signals.merged(live))

    @torch.no_grad()
    def probe(self, probes: Sequence[Probe], model: Scorer | None = None) -> list[tuple[float, ...]]:
        """Compute log-probs at temperature 1 of each token after the first, to compare with `Engine.score`.

        They are the policy's, computed by all ranks, or those of another ``model``, which this rank holds whole.
        """
        if not probes:
            return []
        batch = self.preparer.pack(_probe_examples(probes))
        settings = replace(self._signals, temperature=1.0, ranks=self.ranks if model is None else Ranks())
        device = self._device if model is None else getattr(model, "device", self._device)
        logprobs_BT, _ = frozen_token_signals(model or self.policy, batch, settings, device=device, entropy=False)
        rows = logprobs_BT[:, 1:].tolist()
        return [tuple(row[: len(probe.token_ids) - 1]) for row, probe in zip(rows, probes, strict=True)]

    @property
    def keeps_reference(self) -> bool:
        """Whether a reference is loaded."""
        return self._models.reference is not None

    @torch.no_grad()
    def reference_gaps(self, examples: Sequence[Example]) -> list[float]:
        """Return the sum over each response of log policy - log reference, both at temperature 1 (nats)."""
        assert self._models.reference is not None
        batch = self.preparer.pack(examples)
        settings = replace(self._signals, temperature=1.0)
        policy_BT, reference_BT = (
            frozen_token_signals(model, batch, settings, device=self._device, entropy=False)[0]
            for model in (self._models.policy, self._models.reference)
        )
        return torch.where(batch.response_BT, policy_BT - reference_BT, 0.0).double().sum(dim=1).tolist()

    def probe_rounded(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]:
        """Compute what `probe` does, with one more rounding after each layer. See `rounded_otherwise`."""
        with rounded_otherwise(self.policy.model, self.policy.model.config):
            return self.probe(probes)

    def rest(self) -> None:
        """Free the GPU memory that only a step needs: gradients, gathered weights, and what torch keeps for reuse.

        Moments stay, unless ``learner.offload`` keeps them in host memory. Other processes can use the memory until the
        next step.
        """
        self._optimization.zero_gradients()
        reshard(self.policy)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def release(self) -> None:
        """Free the memory of everything but the policy. No step can follow."""
        self._optimization.release()
        self._models = replace(self._models, frozen={})

    def move(self, device: torch.device) -> None:
        """Compute log-probs on another device from now on. The optimizer stays where it is: no step can follow."""
        self._device = self.policy.device = device
        self.policy.to(device)

    def save(self, folder: Path) -> dict[str, SavedFile]:
        """Write the policy as a Hugging Face folder, and beside it what only a resume needs; return what was written.

        The files are on disk when this returns. Raises `LearnerError` if an optimizer step broke off half-way. Every
        rank writes its own shards, and rank 0 also the policy; it returns the files of all.
        """
        self._state.save(folder)
        problem: Exception | None = None
        try:
            self.policy.save(folder / "policy", writes=self.ranks.rank == 0)
        except (OSError, SafetensorError) as error:  # on rank 0 alone: the others must not wait for it
            problem = error
        failed = self.ranks.sum_(torch.tensor(float(problem is not None)))
        if problem is not None:
            raise problem
        if failed:
            raise LearnerError("rank 0 could not write the policy; its own error says why")
        return list_files(folder) if self.ranks.rank == 0 else {}

    def restore(self, folder: Path) -> None:
        """Take up the state that `save` wrote; raises `CheckpointError` if it is of another model."""
        self._state.restore(folder)


def _shape(policy: Policy, spec: LearnerSpec) -> ModelShape:
    return ModelShape(
        path=spec.model_path,
        hidden_size=policy.hidden_size,
        layers=policy.layer_count,
        seed=spec.recipe.seed,
        dtype=policy.dtype,
    )


def _means(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(record[name] for record in records) / len(records) for name in records[0]}


def _log_keys(output: LossOutput) -> Iterator[tuple[str, Tensor]]:
    yield "loss/total", output.loss.detach()
    for name, value in output.terms.items():
        yield f"loss/{name}", value
    yield from output.metrics.items()


def _trained_rows(batch: Batch) -> Tensor:
    """Return the rows with a token to train on: without truncated ones that the rule masks out, for example."""
    rows_B = batch.response_BT.any(dim=1).nonzero()[:, 0]
    has_lists = bool((batch.list_B >= 0).any())
    return torch.arange(batch.size) if has_lists or not len(rows_B) else rows_B


def _probe_examples(probes: Sequence[Probe]) -> list[Example]:
    return [
        Example(
            prompt=Prompt(id="probe", text="", token_ids=probe.token_ids[:1], images=probe.images),
            rollout=Rollout(
                sample_index=0,
                completion=Completion(token_ids=probe.token_ids[1:], logprobs=None, finish_reason="stop"),
                reward=0.0,
                components={},
                weights_version=0,
            ),
            group=number,
        )
        for number, probe in enumerate(probes)
    ]
