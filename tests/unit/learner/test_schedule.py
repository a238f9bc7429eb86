import pytest

from rlkl.learner.schedule import learning_rate, schedule_position
from rlkl.recipe import LearnerSection


def rates(section: LearnerSection, total: int) -> list[float]:
    return [learning_rate(section, step, total) for step in range(total)]


def test_constant_after_a_linear_rise_that_moves_from_the_first_step():
    assert rates(LearnerSection(lr=1.0, warmup_steps=4), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_falls_to_its_final_share_at_the_last_step():
    section = LearnerSection(lr=2.0, schedule="linear", final_lr_fraction=0.5)

    assert rates(section, 5) == [2.0, 1.75, 1.5, 1.25, 1.0]


def test_cosine_is_halfway_in_the_middle():
    section = LearnerSection(lr=1.0, schedule="cosine", warmup_steps=1)

    assert rates(section, 6) == pytest.approx([1.0, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627, 0.0])


def test_steps_beyond_the_planned_total_keep_the_final_rate():
    assert learning_rate(LearnerSection(lr=1.0, schedule="linear"), 50, 10) == 0.0


@pytest.mark.parametrize("made", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_schedule_ends_with_the_run_however_many_optimizer_steps_the_groups_allow(schedule: str, made: int):
    section = LearnerSection.model_validate({"lr": 1.0, "schedule": schedule, "warmup_steps": 4})
    positions = [schedule_position(step, n, made, per_step=4) for step in range(10) for n in range(made)]
    rates = [learning_rate(section, position, 40) for position in positions]

    assert rates[made - 1] == 1.0, "the warm-up is over after the first training step"
    assert rates[made:] == sorted(rates[made:], reverse=True)
    assert rates[-1] == 0.0
    assert max(rates) == 1.0


def test_without_dropped_groups_a_position_is_the_number_of_the_optimizer_step():
    assert [schedule_position(step, n, 3, per_step=3) for step in range(4) for n in range(3)] == list(range(12))
