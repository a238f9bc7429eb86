"""Further engine arguments of vLLM are checked by name, before anything starts."""

from __future__ import annotations

import pytest

from rlkl.cli import main
from rlkl.errors import RecipeError
from rlkl.recipe.io import load_recipe, recipe_from
from rlkl.rollout.vllm_arguments import REFUSED, check_vllm_arguments, engine_arguments


def test_arguments_of_the_installed_vllm_pass_and_others_do_not():
    check_vllm_arguments({"max_num_seqs": 8, "enable_prefix_caching": False, "max_num_batched_tokens": 512})
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
        (["rollout.vllm.kv_cache_gb=2"], "did you mean 'kv_cache_gib'"),
        (["rollout.vllm.memory_fraction=2"], "rollout.vllm.memory_fraction = 2: expected a number > 0 and <= 1"),
        (
            ["rollout.kv_cache_gib=2", "rollout.vllm.kv_cache_gib=3"],
            "rollout.kv_cache_gib = 2 and rollout.vllm.kv_cache_gib = 3 set the same; leave rollout.kv_cache_gib out",
        ),
        (["rollout.vllm.tensor_parallel_size=2"], "tensor_parallel_size is not allowed: set rollout.tensor_parallel"),
        (["rollout.vllm.distributed_executor_backend=ray"], "it follows from rollout.tensor_parallel"),
        (["rollout.vllm.model=x"], "rollout.vllm.model is not allowed: set model.path"),
        (["rollout.vllm=8"], "rollout.vllm = 8: expected a section with the keys memory_fraction, kv_cache_gib"),
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
    assert recipe.rollout.vllm.arguments == {"max_num_seqs": 8}
    assert recipe.rollout.stop == ["\n\n", "END"]


@pytest.mark.parametrize("at", ["rollout", "rollout.vllm"])
def test_the_engines_own_settings_have_an_old_place_that_still_works(at: str):
    recipe = load_recipe("quickstart", f"{at}.memory_fraction=0.5", f"{at}.kv_cache_gib=3")
    assert (recipe.rollout.vllm.memory_fraction, recipe.rollout.vllm.kv_cache_gib) == (0.5, 3)
    assert recipe.rollout.vllm.arguments == {}
    assert recipe_from(recipe.model_dump()) == recipe


def test_both_places_may_agree_and_null_is_no_value():
    same = load_recipe("quickstart", "rollout.kv_cache_gib=3", "rollout.vllm={kv_cache_gib: 3, max_num_seqs: 8}")
    assert (same.rollout.vllm.kv_cache_gib, same.rollout.vllm.arguments) == (3, {"max_num_seqs": 8})
    written = load_recipe("quickstart", "rollout.vllm.memory_fraction=null", "rollout.memory_fraction=0.4")
    assert written.rollout.vllm.memory_fraction == 0.4


def test_a_recipe_of_an_earlier_version_with_the_engine_hf_loads():
    recipe = load_recipe("quickstart", "rollout.engine=hf", "rollout.memory_fraction=0.5", "rollout.kv_cache_gib=2")
    assert recipe.rollout.vllm.kv_cache_gib == 2
