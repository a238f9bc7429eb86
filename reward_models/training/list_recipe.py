"""The keys by which ``rlkl reward-model`` learns from lists of scored answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlkl.schema import Section


class ListColumns(Section):
    """The columns of rows with one answer each. Rows of one prompt form a list."""

    score_column: str | None = Field(
        default=None, description="Column with a teacher's score of the answer; each row is then one answer."
    )
    scored_column: str = Field(default="completion", description="Column with the answer, with data.score_column.")
    list_size: int = Field(
        default=8, ge=2, description="Most answers of a list; more of one prompt make several lists."
    )


class ListLosses(Section):
    """Losses of a list of answers with scores (`rlkl.functional.listwise`)."""

    loss: Literal["bradley_terry", "ranknet", "plackett_luce"] = Field(
        default="bradley_terry", description="bradley_terry: of pairs. The others: of lists, with data.score_column."
    )
    soft_labels: bool = Field(
        default=True, description="ranknet: labels are the logistic function of score differences; false: 1, 1/2 or 0."
    )
    tau: float = Field(default=1.0, gt=0, description="plackett_luce: weights of places are softmax(score / tau).")
    kl_weight: float = Field(
        default=0.0, ge=0, le=1, description="Weight of the KL to the teacher's softmax; the loss has the rest."
    )
    temperature: float = Field(default=2.0, gt=0, description="T of that KL: T^2 KL(softmax(t / T), softmax(s / T)).")


def check_losses(data: ListColumns, losses: ListLosses, pair_labels: str | None) -> None:
    """Raise ValueError if the loss and the data do not fit. ``pair_labels``: a key with labels of pairs that is set."""
    if data.score_column is None:
        if losses.loss != "bradley_terry" or losses.kl_weight > 0:
            key = "loss" if losses.loss != "bradley_terry" else "kl_weight"
            raise ValueError(
                f"learner.{key} = {getattr(losses, key)} compares the answers of a list by their scores; name their "
                "column in data.score_column, or take learner.loss = bradley_terry with kl_weight = 0 for pairs"
            )
        return
    if pair_labels is not None:
        raise ValueError(f"data.score_column and {pair_labels} exclude each other: rows are answers, or pairs")
    if losses.loss == "bradley_terry" and losses.kl_weight < 1:
        raise ValueError(
            "learner.loss = bradley_terry is the loss of pairs, but with data.score_column rows are answers; take "
            "ranknet (with soft_labels = false it is Bradley and Terry's on all pairs of a list), plackett_luce, or "
            "kl_weight = 1"
        )
