"""`rlkl dashboard`: make or update the W&B dashboard of a project."""

from __future__ import annotations

from argparse import Namespace

from rich.console import Console

from rlkl.errors import InputError


def run(options: Namespace) -> int:
    """Save the view, print its address, and return 0; with ``--print`` print the view instead, without network."""
    entity, slash, project = options.project.partition("/")
    if not (entity and slash and project) or "/" in project:
        raise InputError(
            f"'{options.project}' names no W&B project; expected ENTITY/PROJECT, such as my-team/rlkl "
            "(tracking.entity and tracking.project of the runs)"
        )
    if options.print and options.update:
        raise InputError("--print shows a new view and --update changes a saved one; give one of them")
    from rlkl.tracking.wandb import dashboard

    if options.print:
        shown = dashboard.as_json(dashboard.workspace(entity, project, group=options.group))
    elif options.update:
        shown = dashboard.update(options.update, entity, project, group=options.group)
    else:
        shown = dashboard.save(dashboard.workspace(entity, project, group=options.group))
    Console(markup=False, highlight=False, emoji=False, soft_wrap=True).print(shown)
    return 0
