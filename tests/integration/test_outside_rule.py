"""The tutorial's rule on the real stack, its file nowhere on the learner's import path."""

import shutil
from pathlib import Path

import rlkl
from rlkl.recipe.io import dump_recipe, load_recipe
from tests.integration.runs import REPOSITORY, make_recipe, records


def test_the_tutorials_rule_trains_on_ray_and_vllm(tmp_path: Path, untied_model: Path):
    file = Path(shutil.copy(REPOSITORY / "recipes" / "rule_example.py", tmp_path / "my_rule.py"))
    written = tmp_path / "recipe.yaml"
    written.write_text(dump_recipe(make_recipe(tmp_path / "run", untied_model, steps=2)))

    recipe = load_recipe(written, f"update={{rule: '{file}:Reinforce', kl_coef: 0.05}}")
    result = rlkl.train(recipe)

    lines = records(result.run_dir)
    assert [line["weights/verified"] for line in lines] == [1, 1]
    assert all(line["optim/grad_norm"] > 0 for line in lines)
    assert lines[1]["loss/kl"] > lines[0]["loss/kl"]
    assert all(line["rule/praised_tokens"] > 0 for line in lines)
    assert load_recipe(result.run_dir / "recipe.yaml").update == recipe.update
