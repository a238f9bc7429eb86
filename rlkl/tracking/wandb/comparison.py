"""A comparison as a W&B report: its tables as text, and panels of the project's runs by arm."""

from __future__ import annotations

from typing import Any

from rlkl.errors import InputError

_PANELS = ("reward/mean", "kl/policy_to_reference", "rollout/length_mean", "entropy/policy")


def save_report(title: str, figures: tuple[str, str], markdown: str, project: str) -> str:
    """Save a draft report in ``ENTITY/PROJECT`` and return its address.

    Args:
        title: The title, at most 128 characters.
        figures: The compared figure and the KL, for panels.
        markdown: The tables.
        project: ``ENTITY/PROJECT``.

    Raises:
        InputError: the project is not named so or does not exist, or there is no W&B key.
    """
    import wandb.errors

    report = build_report(title, figures, markdown, project)
    try:
        report.save(draft=True)
    except ValueError as error:
        raise InputError(f"--wandb {project}: {error}") from error
    except wandb.errors.UsageError as error:
        raise InputError(f"--wandb {project}: {error}. Log in with: wandb login") from error
    return report.url


def build_report(title: str, figures: tuple[str, str], markdown: str, project: str) -> Any:
    """Return the report without saving it."""
    import wandb_workspaces.reports.v2 as reports

    wr: Any = reports
    entity, _, name = project.partition("/")
    if not entity or not name or "/" in name:
        raise InputError(f"--wandb {project}: expected ENTITY/PROJECT, such as my-team/rlkl")
    panels = [
        wr.LinePlot(x="step", y=[key], groupby=wr.Config("arm"), groupby_aggfunc="mean", groupby_rangefunc="stddev")
        for key in dict.fromkeys((*figures, *_PANELS))
    ]
    grid = wr.PanelGrid(runsets=[wr.Runset(entity=entity, project=name, name="runs")], panels=panels)
    heading, _, body = markdown.partition("\n")
    blocks = [wr.H1(text=heading.lstrip("# ")), wr.MarkdownBlock(text=body.strip()), grid]
    return wr.Report(entity=entity, project=name, title=title[:128], blocks=blocks)
