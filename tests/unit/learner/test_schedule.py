import pytest

from rlkl.learner.schedule import learning_rate
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
