"""Further engine arguments of vLLM are checked by name, before anything starts."""

from __future__ import annotations

import pytest

from rlkl.cli import main
from rlkl.errors import RecipeError
from rlkl.recipe.io import load_recipe
from rlkl.rollout.vllm_arguments import REFUSED, check_vllm_arguments, engine_arguments


def test_arguments_of_the_installed_vllm_pass_and_others_do_not():
    check_vllm_arguments({"max_num_seqs": 8, "enable_prefix_caching": False, "tensor_parallel_size": 2})
    with pytest.raises(RecipeError, match=r"max_num_seq: vLLM has no such .* did you mean 'max_num_seqs'"):
        check_vllm_arguments({"max_num_seq": 8})


def test_what_rlkl_sets_itself_is_refused_with_the_reason():
    with pytest.raises(RecipeError, match=r"vllm\.dtype is not allowed: set model\.dtype; rollout\.vllm\.seed"):
        check_vllm_arguments({"dtype": "float16", "seed": 3})
    assert REFUSED.keys() - engine_arguments() <= {"chat_template"}, "vLLM has renamed some of them"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.vllm.max_num_seq=8"], "did you mean 'max_num_seqs'"),
        (["rollout.vllm.model=x"], "rollout.vllm.model is not allowed: set model.path"),
        (["rollout.vllm=8"], "rollout.vllm = 8: expected a section of any keys"),
        (["rollout.engine=hf", "rollout.vllm.max_num_seqs=8"], "engine = hf reads no vLLM arguments"),
        (["rollout.stop=END"], "rollout.stop = 'END': expected a list, each entry text"),
        (["rollout.stop=['']"], "an empty text would end every completion"),
    ],
)
def test_plan_and_train_refuse_them_as_bad_input(overrides, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in ("plan", "train"):
        assert main([command, "quickstart", *overrides]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_keeps_them():
    recipe = load_recipe("quickstart", "rollout.vllm.max_num_seqs=8", 'rollout.stop=["\\n\\n", "END"]')
    assert recipe.rollout.vllm == {"max_num_seqs": 8}
    assert recipe.rollout.stop == ["\n\n", "END"]
