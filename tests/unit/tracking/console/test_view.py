from __future__ import annotations

import io
import logging
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from rlkl.recipe import Recipe
from rlkl.tracking.console import console as console_module
from rlkl.tracking.console import view as view_module
from rlkl.tracking.console.console import LiveConsole, PlainConsole, plain_line, print_summary
from rlkl.tracking.console.view import RunState, RunView, duration, number, one_line, sparkline
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup


@pytest.fixture(autouse=True)
def _a_test_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine it takes longer than a plain line, or the samples, stand."""
    monkeypatch.setattr(console_module, "PLAIN_INTERVAL_S", 3600.0)
    monkeypatch.setattr(view_module, "SAMPLES_REFRESH_S", 3600.0)


def _recipe(steps: int = 50) -> Recipe:
    return Recipe.model_validate(
        {"steps": steps, "model": {"path": "task:arithmetic"}, "data": {"source": "task:arithmetic"}}
    )


def _record(step: int) -> dict[str, float]:
    return {
        "step": step,
        "reward/mean": 0.5 + 0.01 * step,
        "kl/policy_to_reference": 0.02 * step,
        "kl/policy_to_reference_per_token": 0.01 * step,
        "entropy/policy": 0.7,
        "optim/grad_norm": 1.25,
        "optim/lr": 5e-4,
        "rollout/mismatch_max": 4.8e-7,
        "rollout/mismatch_kl": 1e-9,
        "rollout/tokens_per_s": 4321.0,
        "rollout/length_mean": 3.0,
        "rollout/truncated_fraction": 0.25,
        "rollout/empty_fraction": 0.0,
        "weights/verified": 1,
        "weights/version": step,
        "time/rollout_s": 0.5,
        "time/reward_s": 0.05,
        "time/learner_s": 0.3,
        "time/publish_s": 0.05,
        "time/step_s": 1.0,
    }


def _group(prompt: str, completion: str, reward: float) -> RolloutGroup:
    rollout = Rollout(
        sample_index=0,
        completion=Completion(token_ids=(5, 1), logprobs=(-0.5, -0.1), finish_reason="stop", text=completion),
        reward=reward,
        components={},
        weights_version=0,
    )
    return RolloutGroup(prompt=Prompt(id="p", text=prompt, token_ids=(3,)), rollouts=(rollout,))


def _state(steps: int = 20, groups: int = 30) -> RunState:
    state = RunState(recipe=_recipe())
    for step in range(1, steps + 1):
        long = "Why? " * 30
        state.update(_record(step), [_group(f"<|user|>{long}", "Because 日本語\n" * 20, 1.0)] * groups)
    return state


def _draw(state: RunState, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(RunView(state))
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (100, 30), (52, 18), (30, 16)])
def test_the_view_fits_the_terminal(width: int, height: int):
    lines = _draw(_state(), width, height)
    assert len(lines) < height, "the last line belongs to the cursor, or the terminal scrolls"
    assert max(cell_len(line) for line in lines) <= width


def test_the_view_at_80_by_24_shows_the_numbers():
    text = "\n".join(_draw(_state(), 80, 24))
    for part in ("20/50", "0.700", "first 0.510", "best 0.700", "0.400", "4.8e-07", "verified", "4,321", "25.0%"):
        assert part in text
    for part in ("generation 50%", "reward 5%", "learner 30%", "publish 5%", "other 10%", "-> Because 日本語"):
        assert part in text


def test_a_large_terminal_shows_prompt_and_completion_on_lines_of_their_own():
    lines = _draw(_state(), 120, 40)
    first = lines.index("samples of step 1") + 1
    assert lines[first].startswith("  1.00  …")
    assert lines[first].rstrip().endswith("Why?")
    assert lines[first + 1].startswith("        -> Because 日本語⏎")


def test_wrong_weights_stand_out():
    state = RunState(recipe=_recipe())
    state.update({**_record(1), "weights/verified": 0}, [])
    assert any(line.split()[:2] == ["weights", "WRONG"] for line in _draw(state, 80, 24))


def test_the_view_before_the_first_step_shows_the_note():
    state = RunState(recipe=_recipe(), note="starting rollout workers")
    lines = _draw(state, 80, 24)
    assert lines[0].rstrip().endswith("starting rollout workers")
    assert " 0/50" in lines[1]


def test_shares_of_the_time_are_over_recent_steps_and_add_up():
    state = RunState(recipe=_recipe(), records=[{"step": 1, "time/step_s": 1000.0, "time/rollout_s": 1000.0}])
    for step in range(2, 22):
        state.update(_record(step), [])
    assert [(name, round(share, 6)) for name, share, _ in state.time_shares()] == [
        ("generation", 0.5),
        ("reward", 0.05),
        ("learner", 0.3),
        ("publish", 0.05),
        ("other", 0.1),
    ]


def test_sparkline_scales_to_its_own_range_and_averages_what_does_not_fit():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 2, 7, 7], 2) == "▁█"
    assert sparkline([0, 1], 8, ascii_only=True) == "_#"
    assert sparkline([3, 3, 3], 8) == "▁▁▁"
    assert sparkline([], 8) == ""


def test_numbers_and_durations():
    assert [number(x) for x in (0.0, 0.12345, -2.5, 4321.4, 4.77e-7, 1e8)] == [
        "0.000",
        "0.123",
        "-2.500",
        "4,321",
        "4.8e-07",
        "1.0e+08",
    ]
    assert duration(3725.9) == "1:02:05"


def test_a_completion_cannot_send_control_codes_to_the_terminal():
    assert one_line("a\x1b[31mb\r\nc\ud83d") == "a [31mb ⏎c"


def test_plain_lines_are_thinned_but_first_and_last_come(capsys: pytest.CaptureFixture[str]):
    state = RunState(recipe=_recipe(steps=30))
    console = PlainConsole(state, Console())
    for step in range(1, 31):
        state.update(_record(step), [_group("1+1=", "2", 1.0)])
        console.step(with_samples=step in (1, 30))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step  1/30  reward 0.510  KL 0.020  entropy 0.700  grad 1.250")
    assert lines[1] == "  1.00  1+1= -> 2"
    assert lines[-2].startswith("step 30/30  reward 0.800")
    assert len(lines) == 4


def test_a_plain_line_leaves_out_what_is_not_logged():
    state = RunState(recipe=_recipe())
    state.update({"step": 7, "reward/mean": 0.25}, [])
    assert plain_line(state) == "step  7/50  reward 0.250"


def test_logging_goes_above_the_live_view_and_back_afterwards(monkeypatch: pytest.MonkeyPatch):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    handler = logging.StreamHandler()
    logger = logging.getLogger("rlkl")
    logger.addHandler(handler)
    screen = io.StringIO()
    live = LiveConsole(_state(), Console(file=screen, width=80, height=24, force_terminal=True))
    try:
        logger.warning("reward slow")
    finally:
        live.close()
        logger.removeHandler(handler)
    assert "reward slow" in screen.getvalue()
    assert stderr.getvalue() == ""
    assert handler.stream is stderr
    assert sys.stderr is stderr


EVALUATION = {
    "eval/mean": 0.75,
    "eval/mean_se": 0.012,
    "eval/right": 0.75,
    "eval/right_se": 0.012,
    "eval/gold": 0.5,
    "eval/pass@1": 0.75,
    "eval/pass@2": 0.9,
    "eval/length_mean": 3.0,
    "time/eval_s": 2.0,
}


def test_an_evaluation_is_one_line_that_says_nothing_twice(capsys: pytest.CaptureFixture[str]):
    state = _state()
    state.evaluations.append({"step": 20, **EVALUATION})
    PlainConsole(state, Console()).evaluated()

    wanted = "evaluation after step 20: mean 0.750 +- 0.012  gold 0.500  pass@2 0.900  2.0 s"
    assert capsys.readouterr().out.strip() == wanted


def test_the_view_and_the_summary_show_evaluations_from_start_to_end(capsys: pytest.CaptureFixture[str]):
    state = _state()
    for step, mean in ((0, 0.25), (10, 0.75), (20, 0.5)):
        state.evaluations.append({"step": step, **EVALUATION, "eval/mean": mean})

    (row,) = [line for line in _draw(state, 80, 24) if line.startswith("held-out")]
    assert row.split()[1:4] == ["0.500", "+-", "0.012"]
    print_summary("finished", {}, state)
    assert "held-out         0.250 -> 0.500   (best 0.750 at step 10)" in capsys.readouterr().out


def test_without_trained_rewards_the_first_monitor_stands_for_the_evaluations():
    state = _state()
    state.evaluations.append({"step": 0, "eval/gold": 0.5, "eval/gold_se": 0.1, "time/eval_s": 1.0})

    assert (state.held_out_key, state.held_out()) == ("eval/gold", [0.5])
