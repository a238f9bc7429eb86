import pytest

from rlkl.recipe import Recipe
from rlkl.recipe.resources import GpuShares, gpu_shares


@pytest.mark.parametrize(
    ("gpus", "sections", "worker", "learner"),
    [
        (0, {}, 0.0, 0.0),
        (1, {}, 0.5, 0.5),
        (2, {}, 1.0, 1.0),
        (8, {"rollout": {"workers": 3}}, 1.0, 1.0),
        (2, {"rollout": {"workers": 3}}, 0.5, 0.5),
        (1, {"learner": {"device": "cpu"}}, 1.0, 0.0),
        (1, {"rollout": {"gpus_per_worker": 0.7}, "learner": {"gpus": 0.3}}, 0.7, 0.3),
    ],
)
def test_gpus_are_shared_where_there_are_fewer_than_actors(gpus: int, sections: dict, worker: float, learner: float):
    recipe = Recipe.model_validate({"model": {"path": "m"}, "data": {"source": "d"}, **sections})

    assert gpu_shares(recipe, gpus) == GpuShares(worker=worker, learner=learner)
