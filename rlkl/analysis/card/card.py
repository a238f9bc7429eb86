"""Write the model card of a run: metadata for the hub, numbers, warnings, setting, and how to load the policy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from rlkl import __version__
from rlkl.analysis.card.origin import read_origin
from rlkl.analysis.card.scrub import is_local, scrub
from rlkl.analysis.runs import Record, RunFolder
from rlkl.recipe.core_yaml import write_yaml
from rlkl.tracking.alarms import WATCH_WARNINGS, Alarms
from rlkl.tracking.console.view import number

CARD_FILE = "README.md"
SHOWN_SECTIONS = (
    "seed",
    "steps",
    "model",
    "models",
    "data",
    "rollout",
    "rewards",
    "scoring",
    "update",
    "learner",
    "eval",
)
"""Sections of the recipe that a card shows. The others choose machines and records."""


def write_card(
    run: RunFolder, repo: str | None = None, *, pictures: Sequence[str] = (), is_adapter: bool = False
) -> str:
    """Return the card of a run's policy. It holds no secret and no local path.

    ``repo``: the name on the hub, for the commands that load the policy. ``pictures``: files beside the card.
    ``is_adapter``: the card is for the adapters alone, without the weights of the base model.
    """
    name = repo or scrub(run.name)
    parts = [
        f"---\n{metadata(run, name, is_adapter=is_adapter)}\n---",
        f"# {name.rpartition('/')[2]}",
        _what(run),
        "\n".join(_table(run)),
        "\n".join(f"![{Path(file).stem}]({file})" for file in pictures),
        _warnings(run),
        _loading_adapter(run, repo or "policy/adapter") if is_adapter else _loading(repo or "policy"),
        _setting(run),
        _software(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def metadata(run: RunFolder, name: str, *, is_adapter: bool = False) -> str:
    """Return the YAML at the head of the card.

    The license is the base model's, if its card is on this machine; it is left out otherwise.
    """
    base, data, update = run.recipe["model"]["path"], run.recipe["data"]["source"], run.recipe["update"]
    rule, variant = rule_names(update)
    licensed: dict[str, Any] = _license(base)
    card = ModelCardData(
        model_name=name.rpartition("/")[2],
        base_model=base if is_on_hub(base) else None,
        datasets=[data] if is_on_hub(data) else None,
        library_name="peft" if is_adapter else "transformers",
        tags=list(dict.fromkeys(tag for tag in ("rlkl", "rl", rule, variant) if tag)),
        eval_results=list(_results(run)) or None,
        **licensed,
    )
    return card.to_yaml()


def rule_names(update: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return rule and variant. A custom rule is named by its file, without the folders."""
    return str(scrub(update["rule"])), update.get("variant")


def is_on_hub(name: str) -> bool:
    """Return whether a model or a data set is named as huggingface.co names them, and is not a file here."""
    looks_so = re.fullmatch(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", name) is not None
    return looks_so and not is_local(name) and not Path(name).exists()


def _results(run: RunFolder) -> Iterator[EvalResult]:
    """Yield the values of the last evaluation, but not their standard errors."""
    source = _eval_source(run)
    for key, value in sorted((run.evaluations[-1] if run.evaluations else {}).items()):
        if key.startswith("eval/") and not key.endswith("_se"):
            yield EvalResult(
                task_type="text-generation",
                dataset_type=source,
                dataset_name=source,
                metric_type=key.removeprefix("eval/"),
                metric_name=key,
                metric_value=round(float(value), 6),
            )


def _eval_source(run: RunFolder) -> str:
    section = run.recipe.get("eval") or {}
    data = section.get("data") or run.recipe["data"]
    return str(scrub(data.get("source") or run.recipe["data"]["source"]))


def _license(base: str) -> dict[str, str]:
    """Return the license keys of the base model's card, if that is in a local folder or in the hub's cache."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    if (folder := Path(base)).is_dir():
        file: Any = folder / CARD_FILE
    else:
        file = try_to_load_from_cache(base, CARD_FILE) if is_on_hub(base) else None
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return {}
    found = ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    return {key: str(found[key]) for key in ("license", "license_name", "license_link") if key in found}


def _what(run: RunFolder) -> str:
    rule, variant = rule_names(run.recipe["update"])
    named = rule if variant in (None, rule) else f"{rule} ({variant})"
    built_in = re.fullmatch(r"[a-z0-9_]+", rule) is not None
    page = f" (objective and settings: `rlkl/updates/{rule}/README.md`)" if built_in else ""
    base, data = scrub(run.recipe["model"]["path"]), scrub(run.recipe["data"]["source"])
    steps = int(run.metrics[-1]["step"]) if run.metrics else 0
    version = read_origin(run.path).get("rlkl", __version__)
    return f"`{base}` after {steps} steps of {named}{page} on `{data}`, seed {run.seed}. Trained with rlkl {version}."


def _table(run: RunFolder) -> Iterator[str]:
    """Yield the lines of the table: each reward, monitor and evaluation, and the KL, at the start and at the end."""
    rows = [(_label(key), *_ends(run.metrics, key)) for key in _shown(run.metrics)]
    rows += [(f"held-out {_label(key)}", *_ends(run.evaluations, key)) for key in _shown(run.evaluations)]
    if not rows:
        return
    yield "| | start | end |\n|---|---|---|"
    for label, before, after in rows:
        yield f"| {label} | {before} | {after} |"
    yield ""
    yield "KL is KL(policy ‖ reference) in nats per sequence. Rows without `held-out` are of training prompts: of the"
    yield "first step and of the last one."


def _shown(records: Sequence[Record]) -> list[str]:
    keys = dict.fromkeys(key for record in records for key in record)
    exact = [key for key in ("reward/mean", "kl/policy_to_reference", "rollout/length_mean") if key in keys]
    named = [key for key in keys if re.fullmatch(r"(reward|monitor)/[^/]+", key) and not _is_count(key)]
    held_out = [key for key in keys if key.startswith("eval/") and not key.endswith("_se")]
    return list(dict.fromkeys([*exact[:1], *named, *exact[1:], *held_out]))


def _is_count(key: str) -> bool:
    return key in ("reward/std", "reward/failed", "reward/dropped")


def _label(key: str) -> str:
    known = {
        "reward/mean": "reward (weighted sum)",
        "kl/policy_to_reference": "KL",
        "rollout/length_mean": "tokens of a completion",
        "eval/mean": "score",
        "eval/kl": "KL",
    }
    family, _, name = key.partition("/")
    return known.get(key, name.replace("_", " ") if family == "eval" else f"{family} `{name}`")


def _ends(records: Sequence[Record], key: str) -> tuple[str, str]:
    """Return the first and the last value of a metric, with the standard error if there is one."""
    found = [record for record in records if key in record]
    return tuple(_value(record, key) for record in (found[0], found[-1]))  # pyright: ignore[reportReturnType]


def _value(record: Record, key: str) -> str:
    error = record.get(f"{key}_se")
    return number(record[key]) + ("" if error is None else f" ± {number(error)}")


def _warnings(run: RunFolder) -> str:
    """List the signals of the hacking watch that tripped, with the steps at which they set in."""
    alarms, steps = Alarms(), dict[str, list[int]]()
    for record in run.metrics:
        for name in alarms.measure(_levels(record)):
            steps.setdefault(name, []).append(int(record["step"]))
    if not any(WATCH_WARNINGS in record for record in run.metrics):
        return ""
    if not steps:
        return "The hacking watch of rlkl did not trip in this run."
    lines = [f"- `{name}` at step {', '.join(map(str, found))}" for name, found in steps.items()]
    warning = "**Warning.** The hacking watch of rlkl tripped: the policy may exploit its reward."
    return "\n".join([warning, "", *lines])


def _levels(record: Record) -> dict[str, float]:
    own = {key.removeprefix("watch/"): value for key, value in record.items() if key.startswith("watch/")}
    return {name: level for name, level in own.items() if name != "warnings" and not name.startswith("spread/")}


def _loading(place: str) -> str:
    return f"""## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = AutoModelForCausalLM.from_pretrained("{place}")
```

```python
from vllm import LLM

llm = LLM("{place}")
```"""


def _loading_adapter(run: RunFolder, place: str) -> str:
    base = scrub(run.recipe["model"]["path"])
    return f"""## Load it

These are adapters (LoRA) for `{base}`.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{place}")
```

```python
from vllm import LLM
from vllm.lora.request import LoRARequest

llm = LLM("{base}", enable_lora=True)
llm.generate("...", lora_request=LoRARequest("{place}", 1, "{place}"))
```"""


def _setting(run: RunFolder) -> str:
    shown = {key: run.recipe[key] for key in SHOWN_SECTIONS if run.recipe.get(key) not in (None, {}, [])}
    return (
        "## Setting\n\n<details><summary>The resolved recipe, without the sections that change no result</summary>\n\n"
        f"```yaml\n{write_yaml(scrub(shown))}```\n\n</details>"
    )


def _software(run: RunFolder) -> str:
    found = read_origin(run.path)
    return "Software: " + ", ".join(f"{name} {text}" for name, text in found.items()) + "." if found else ""
