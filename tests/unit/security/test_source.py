"""A few calls run whatever text or file they are given. Each of them is in one known place, for a reason."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

MAY_RUN_CODE = {
    ("rlkl/system/importing.py", "exec"): "runs the file that a recipe names: a reward, a rule, a term",
    ("rlkl/system/importing.py", "compile"): "compiles the file that a recipe names",
    ("rlkl/system/importing.py", "importlib.import_module"): "imports the module that a recipe names",
    ("rlkl/cli.py", "import_module"): "imports the command, one of a fixed list",
    ("rlkl/__init__.py", "import_module"): "imports a public name when it is first used",
    ("rlkl/rewards/__init__.py", "import_module"): "imports a public name when it is first used",
    ("rlkl/updates/__init__.py", "import_module"): "imports a built-in rule",
    ("rlkl/updates/terms/__init__.py", "import_module"): "imports a built-in term",
    ("rlkl/rollout/engine.py", "import_module"): "imports the engine that a recipe names",
    ("rlkl/rewards/execution/worker.py", "pickle.loads"): "reads what the driver, which has started it, sends",
    ("rlkl/models/scattering.py", "pickle.loads"): "reads an error that it has just written itself",
    ("rlkl/learner/shards_on_disk.py", "pickle.Unpickler"): "loads a few classes of tensors only",
    ("reward_models/evaluated_answers.py", "compile"): "parses the answer of a model, and runs nothing",
}
"""File and call -> the reason why the call is there."""

RUNS_CODE = {
    *("eval", "exec", "compile", "__import__", "import_module", "importlib.import_module"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.loads"),
    *("marshal.loads", "shelve.open", "joblib.load", "os.system", "os.popen", "subprocess.getoutput"),
    *("pd.read_pickle", "runpy.run_path", "runpy.run_module"),
}
SAFE_YAML = {"safe_load", "safe_dump", "SafeLoader", "SafeDumper", "dump"}


@cache
def nodes() -> tuple[tuple[str, ast.AST], ...]:
    """Return file and node of all calls and classes."""
    files = sorted(file for folder in ("rlkl", "reward_models") for file in (ROOT / folder).rglob("*.py"))
    return tuple(
        (str(file.relative_to(ROOT)), node)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call | ast.ClassDef)
    )


@cache
def calls() -> tuple[tuple[str, str, ast.Call], ...]:
    return tuple((file, ast.unparse(node.func), node) for file, node in nodes() if isinstance(node, ast.Call))


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def test_every_call_that_can_run_a_text_or_a_file_has_a_reason():
    found = {(file, name) for file, name, _ in calls() if name in RUNS_CODE}
    bases = {
        (file, ast.unparse(base))
        for file, node in nodes()
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if ast.unparse(base) in RUNS_CODE
    }
    assert found | bases == MAY_RUN_CODE.keys()


def test_no_command_goes_through_a_shell():
    with_shell = [file for file, _, call in calls() if keywords(call).get("shell", "False") != "False"]
    assert with_shell == []


def test_torch_loads_weights_only():
    loads = [(file, keywords(call).get("weights_only")) for file, name, call in calls() if name == "torch.load"]
    assert loads, "the old file of a learner's state should have been found"
    assert {only for _, only in loads} == {"True"}
    assert [file for file, name, _ in calls() if name in ("numpy.load", "np.load")] == []


def test_transformers_is_told_each_time_to_run_no_code_of_a_model():
    """Left out, it asks on the terminal, and a "y" runs the code."""
    open_ended = [
        f"{file}:{call.lineno}"
        for file, name, call in calls()
        if name.endswith((".from_pretrained", ".from_config"))
        and not name.startswith("GenerationConfig")
        and keywords(call).get("trust_remote_code") != "False"
        and "settings" not in (keywords(call).get(None) or "")
    ]
    assert open_ended == []
    settings = [
        ast.unparse(node)
        for file in ("rlkl/updates/base.py", "rlkl/models/language_model.py")
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.Dict) and "'trust_remote_code': False" in ast.unparse(node)
    ]
    assert len(settings) == 2, "both hand their settings over as **settings"


def test_yaml_is_read_in_one_place_and_safely():
    users = {
        file
        for file, name, _ in calls()
        if name.startswith("yaml.") and name not in ("yaml.dump", "yaml.constructor.ConstructorError")
    }
    assert users == {"rlkl/recipe/core_yaml.py"}
    tree = ast.parse((ROOT / "rlkl/recipe/core_yaml.py").read_text())
    (loader,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "_Loader")
    assert [ast.unparse(base) for base in loader.bases] == ["yaml.SafeLoader"]
    loads = [keywords(call)["Loader"] for file, name, call in calls() if name == "yaml.load"]
    assert loads == ["_Loader"]
