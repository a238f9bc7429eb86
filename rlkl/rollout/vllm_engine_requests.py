"""The requests that one vLLM works on: it steps them together, whoever they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlkl.rollout.stopping import StopWatch

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput


@dataclass(slots=True, kw_only=True)
class Ended:
    """A finished request: its number among those of its caller, vLLM's output, and how it was sampled."""

    number: int
    output: RequestOutput
    end: int | None
    """Number of tokens, if a stop text ended the completion before vLLM did."""
    versions: tuple[tuple[int, int], ...]
    """Versions of the weights that sampled it, each with the number of its first token."""


@dataclass(slots=True, kw_only=True)
class _Running:
    identifier: str
    """vLLM's own name of it; outputs bear the part before the dash."""
    number: int
    ended: list[Ended]
    """The list that it is added to when it has finished."""
    watch: StopWatch | None
    versions: list[tuple[int, int]]
    begun: list[int]
    """Tokens of the completion that were there before the request."""
    watched: int = 0
    """Tokens, with ``begun``, that ``watch`` has seen."""


@dataclass(slots=True, kw_only=True)
class RunningRequests:
    """Puts requests into a vLLM and sorts what comes out. Several callers may have requests there at one time."""

    llm: LLM
    version: int = 0
    _running: dict[str, _Running] = field(default_factory=dict)

    def add(
        self,
        requests: Sequence[tuple[int, Any, Any]],
        ended: list[Ended],
        *,
        adapter: Any = None,
        watch: StopWatch | None = None,
        priority: int | None = None,
        begun: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        """Put in requests, each with a number, vLLM's input and sampling parameters; they go to ``ended`` at their end.

        ``watch`` ends a completion early; ``begun``: tokens that are before the sampled ones in it, by number. For a
        ``priority``, vLLM must schedule by priority.
        """
        inputs, parameters = [one[1] for one in requests], [one[2] for one in requests]
        identifiers = self.llm.enqueue(inputs, parameters, lora_request=adapter, priority=priority, use_tqdm=False)
        if watch is not None:
            _report_every_token(self.llm.llm_engine, identifiers)
        for (number, _, _), identifier in zip(requests, identifiers, strict=True):
            before = list((begun or {}).get(number, ()))
            self._running[identifier.partition("-")[0]] = _Running(
                identifier=identifier,
                number=number,
                ended=ended,
                watch=watch,
                versions=[(self.version, 0)],
                begun=before,
                watched=len(before),
            )

    def step(self) -> None:
        """Let vLLM make one step: each running request gets at most one token, or its prompt is read."""
        engine: Any = self.llm.llm_engine
        for output in engine.step():
            name = output.request_id
            running = self._running[name]
            end = None
            if running.watch is not None:
                tokens = [*running.begun, *output.outputs[0].token_ids]
                end = running.watch.end(tokens, running.watched)
                end = None if end is None else end - len(running.begun)
                running.watched = len(tokens)
            if end is not None and not output.finished:
                engine.abort_request([name])
            if end is not None or output.finished:
                del self._running[name]
                versions = tuple(running.versions)
                running.ended.append(Ended(number=running.number, output=output, end=end, versions=versions))

    def begin_version(self, version: int) -> None:
        """Finish the steps that vLLM has begun, and count tokens from then on as sampled by ``version``."""
        self._finish_begun_steps()
        self.version = version
        states = self.llm.llm_engine.output_processor.request_states
        for running in self._running.values():
            detokenizer = states[running.identifier].detokenizer
            assert detokenizer is not None  # only pooling models have none
            sampled = detokenizer.num_output_tokens()
            kept = [span for span in running.versions if span[1] < sampled]
            running.versions = [*kept, (version, sampled)]

    def _finish_begun_steps(self) -> None:
        """End, with the old weights, the next step that vLLM begins before it returns (asynchronous scheduling)."""
        core: Any = self.llm.llm_engine.engine_core.engine_core  # pyright: ignore[reportAttributeAccessIssue]
        if not core.batch_queue:
            return
        core.pause_scheduler("keep", clear_cache=False)
        while core.batch_queue:
            self.step()
        core.resume_scheduler()


def _report_every_token(engine: Any, identifiers: Sequence[str]) -> None:
    """Make vLLM report these requests after each token; ``enqueue`` asks for finished ones only."""
    from vllm.sampling_params import RequestOutputKind

    for identifier in identifiers:
        engine.output_processor.request_states[identifier].output_kind = RequestOutputKind.CUMULATIVE
