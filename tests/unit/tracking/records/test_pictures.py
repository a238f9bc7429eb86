from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from rlkl.data.images import encode_image, read_image
from rlkl.recipe import Recipe
from rlkl.tracking.records.pictures import save_pictures, side_by_side
from rlkl.tracking.tracker import RunSummary, Tracker
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup
from rlkl.types import Image as PromptImage


def _picture(colour: str) -> PromptImage:
    return encode_image(Image.new("RGB", (4, 3), colour))


def _group(*images: PromptImage, rollouts: int = 2) -> RolloutGroup:
    completion = Completion(token_ids=(5,), logprobs=(-0.5,), finish_reason="stop", text="x")
    return RolloutGroup(
        prompt=Prompt(id="p", text="?", token_ids=(3,), images=images),
        rollouts=tuple(
            Rollout(sample_index=n, completion=completion, reward=0.0, components={}, weights_version=0)
            for n in range(rollouts)
        ),
    )


def test_each_different_picture_is_one_file_with_its_own_bytes(tmp_path: Path):
    red, blue, black = _picture("red"), _picture("blue"), _picture("black")

    columns = save_pictures(
        tmp_path, [_group(red, blue), _group(), _group(red)], {"corrupted": {0: (black, black)}}, kept=5
    )

    at = {name: f"images/{image.key}.png" for name, image in {"r": red, "b": blue, "k": black}.items()}
    both, one = [at["r"], at["b"]], [at["r"]]
    assert columns["images"] == [both, both, None, None, one, None], "the sixth rollout is one more than are kept"
    assert columns["corrupted_images"] == [[at["k"]] * 2, [at["k"]] * 2, None, None, None, None]
    assert {path.name for path in (tmp_path / "images").iterdir()} == {Path(p).name for p in at.values()}
    assert (tmp_path / at["b"]).read_bytes() == blue.data


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp")])
def test_a_file_keeps_the_suffix_of_its_format(tmp_path: Path, kind: str, suffix: str):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "green").save(buffer, format=kind)
    columns = save_pictures(tmp_path, [_group(read_image(buffer.getvalue(), tmp_path), rollouts=1)], {}, kept=1)
    assert columns.keys() == {"images"}, "no rule corrupted anything"
    paths = columns["images"][0]
    assert paths is not None
    assert paths[0].endswith(suffix)
    assert Image.open(tmp_path / paths[0]).format == kind


def test_without_pictures_there_is_no_column_and_no_folder(tmp_path: Path):
    assert save_pictures(tmp_path, [_group()], {}, kept=4) == {}
    assert list(tmp_path.iterdir()) == []
    assert side_by_side(tmp_path, []) is None


def test_the_tracker_writes_pictures_beside_the_samples(tmp_path: Path):
    recipe = Recipe.model_validate(
        {
            "steps": 1,
            "model": {"path": "task:shapes"},
            "data": {"source": "task:shapes"},
            "tracking": {"wandb": "off", "console": "plain", "samples_kept": 1},
        }
    )
    red, black = _picture("red"), _picture("black")
    tracker = Tracker(tmp_path, recipe, run_id=None, first_step=0)
    tracker.log(0, {"reward/mean": 0.0}, [_group(red)], {"perception_kl": [[0.5], None]}, {"corrupted": {0: (black,)}})
    tracker.finish(RunSummary(interrupted=False, policy_dir=None))

    rows = pq.read_table(tmp_path / "samples" / "step_000001.parquet").to_pylist()
    assert [row["perception_kl"] for row in rows] == [[0.5], None]
    assert rows[1]["images"] is None
    (clean,), (spoiled,) = rows[0]["images"], rows[0]["corrupted_images"]
    assert Image.open(tmp_path / clean).getpixel((0, 0)) == (255, 0, 0)
    assert Image.open(tmp_path / spoiled).getpixel((0, 0)) == (0, 0, 0)
