"""Keep libraries from reporting their use to their makers.

Ray's reports are off in `rlkl.actors.cluster`, vLLM's in `rlkl.rollout.vllm_engine`.
"""

from __future__ import annotations

import os
import sys

HUB = "HF_HUB_DISABLE_TELEMETRY"
_VARIABLES = {HUB: "1", "DO_NOT_TRACK": "1"}


def silence_telemetry() -> None:
    """Switch off the reports of huggingface_hub, which TRL's trainers send, for this process and those that it starts.

    A variable that the user has set keeps its value.
    """
    chosen = HUB in os.environ
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    constants = sys.modules.get("huggingface_hub.constants")  # it has read the variables if it is loaded
    if constants is not None and not chosen:
        constants.HF_HUB_DISABLE_TELEMETRY = True  # pyright: ignore[reportAttributeAccessIssue]
