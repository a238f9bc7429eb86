"""Print the training reports as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from reward_models.training.judging import Agreement, Judgement
from reward_models.training.reward_model import RewardModelResult
from reward_models.training.sft import SftResult


def show_reward_models(result: RewardModelResult, console: Console | None = None) -> None:
    """Print how well the models rank held-out pairs, their confidence, agreement and files."""
    console = console or Console(markup=False, highlight=False)
    report = result.report
    for name, judgement in report.held_out.items():
        trained = report.trained_on[name]
        console.print(f"\n{name}: trained on {trained} pairs, judged by {judgement.pairs} of other prompts")
        console.print(
            f"  accuracy {judgement.accuracy:.3f}   loss {judgement.log_loss:.3f}   "
            f"calibration error {judgement.calibration_error:.3f}   "
            f"scores {judgement.score_mean:.2f} +- {judgement.score_std:.2f}"
        )
        console.print(calibration_table(judgement))
    if report.agreement is not None:
        console.print(f"\n{agreement_line(report.agreement)}")
    console.print(f"\n  models and report.json   {result.run_dir}", soft_wrap=True)


def calibration_table(judgement: Judgement) -> Table:
    """Return the accuracy by confidence; empty bins are left out."""
    table = Table("  sure", "pairs", "mean confidence", "right", box=None, pad_edge=False)
    for found in judgement.calibration:
        if found.confidence is not None and found.accuracy is not None:
            sure = f"  {found.low:.2f}-{found.high:.2f}"
            table.add_row(sure, str(found.pairs), f"{found.confidence:.3f}", f"{found.accuracy:.3f}")
    return table


def agreement_line(found: Agreement) -> str:
    """Return one line about how two models agree."""
    pearson, spearman = ("none" if value is None else f"{value:.3f}" for value in (found.pearson, found.spearman))
    return (
        f"the two models rank {found.ranked_alike:.1%} of {found.pairs} held-out pairs alike; correlation of their "
        f"scores {pearson} (Pearson), {spearman} (Spearman)"
    )


def show_sft(result: SftResult, console: Console | None = None) -> None:
    """Print the loss of held-out answers before and after training."""
    console = console or Console(markup=False, highlight=False)
    report = result.report
    console.print(f"\n{report.trained_on} rows to learn from; on {report.held_out} rows of other prompts:")
    for name, loss in (("before", report.before), ("after", report.after)):
        console.print(
            f"  {name:<7} {loss.nats_per_token:.3f} nats per token, {loss.token_accuracy:.1%} of tokens right"
        )
    console.print(f"\n  policy and report.json   {result.run_dir}", soft_wrap=True)
