"""Errors of calls to a process that ended: what they say, and what they leave to the log."""

from __future__ import annotations

import logging

import pytest
from ray.exceptions import RayActorError

from rlkl.actors.calls import short

KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: RolloutWorker
\tactor_id: 4d0e
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed
by the OOM killer due to high memory usage, (2) ray stop --force was called. If it was the OOM killer, consider enabling
resource isolation via --enable-resource-isolation to prevent node deaths."""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (KILLED, "its process ended unexpectedly (killed, crashed or out of memory)"),
        (
            "Memory on the node was 15.2GB / 16.0GB (0.95), which exceeds the memory usage threshold of 0.95.",
            "Ray killed its process, because the memory of its machine was nearly full",
        ),
        ("The actor died because its node has died. Node Id: 7.", "its machine does not answer"),
        ("The actor has left.", "The actor has left."),
    ],
)
def test_the_cause_of_an_end_is_short_and_the_rest_is_in_the_log(
    text: str, cause: str, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.DEBUG, logger="rlkl.actors.calls"):
        told = short(RayActorError(error_msg=text))
    assert told.partition(" (Ray's logs")[0] == cause
    assert " ".join(text.split()) in caplog.text
