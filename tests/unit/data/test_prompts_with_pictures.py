"""Rows with pictures: placeholders, counts, bad rows, chat messages; every kind of source."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rlkl.data.images import open_image
from rlkl.data.prompts import SIZES_CHECKED, Encoder, PromptSource, load_prompts
from rlkl.data.vision import PictureProcessor, load_picture_processor
from rlkl.errors import DataError, InputError
from rlkl.recipe import DataSection
from rlkl.tasks.characters import character_tokenizer
from tests.models import IMAGE, tiny_qwen2_5_vl, tiny_qwen3
from tests.pictures import processor_of

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}" + IMAGE + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2_5_vl(tmp_path_factory.mktemp("model") / "vl", seed=0)


@pytest.fixture(scope="module")
def pictures(model_path: Path) -> PictureProcessor:
    return processor_of(model_path)


def png(width: int = 56, height: int = 56, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def load(source: Path, pictures: PictureProcessor | None, **keys: Any) -> PromptSource:
    tokenizer = pictures.whole.tokenizer if pictures else character_tokenizer()
    section = DataSection(source=str(source), shuffle=False, **{"max_bad_fraction": 1.0, **keys})
    return load_prompts(section, Encoder(tokenizer=tokenizer, pictures=pictures), seed=0)


def jsonl(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sources(folder: Path) -> list[Path]:
    """The same two rows as JSON Lines with files and base64, as parquet with bytes, and as a saved data set."""
    (folder / "red.png").write_bytes(png())
    text = base64.b64encode(png(84, 56, "blue")).decode()
    rows = [{"prompt": f"{IMAGE}1", "images": "red.png"}, {"prompt": f"{IMAGE}2", "images": [text]}]
    lists = [[{"bytes": png(), "path": None}], [{"bytes": png(84, 56, "blue"), "path": None}]]
    columns = {"prompt": [f"{IMAGE}1", f"{IMAGE}2"], "images": lists}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    features = datasets.Features({"prompt": datasets.Value("string"), "images": datasets.List(datasets.Image())})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder / "saved"))
    return [jsonl(folder, *rows), folder / "rows.parquet", folder / "saved"]


def test_every_kind_of_source_gives_the_same_prompts(tmp_path: Path, pictures: PictureProcessor):
    for source in sources(tmp_path):
        one, two = load(source, pictures).take(0, 2)
        for prompt, size, colour, tokens in ((one, (56, 56), (255, 0, 0), 4), (two, (84, 56), (0, 0, 255), 6)):
            (image,) = prompt.images
            assert (image.width, image.height) == size
            assert open_image(image).getpixel((5, 5)) == colour
            assert prompt.token_ids.count(pictures.image_token_id) == tokens, "one placeholder a token"
            assert prompt.columns.keys() == {"prompt"}, "pictures are no column"


def test_placeholders_repeat_where_each_picture_stands(tmp_path: Path, pictures: PictureProcessor):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png(112, 56))
    row = {"prompt": f"1{IMAGE}2{IMAGE}3", "images": ["b.png", "a.png"]}
    (prompt,) = load(jsonl(tmp_path, row), pictures).take(0, 1)
    runs = "".join("i" if token == pictures.image_token_id else "." for token in prompt.token_ids)
    assert runs == ".." + "i" * 8 + "..." + "i" * 4 + ".."
    assert [image.width for image in prompt.images] == [112, 56]


def test_bad_pictures_are_counted_and_named(tmp_path: Path, pictures: PictureProcessor):
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "half.png").write_bytes(png()[:60])
    (tmp_path / "thin.png").write_bytes(png(2000, 2))
    source = load(
        jsonl(
            tmp_path,
            {"prompt": f"{IMAGE}1", "images": ["good.png"]},
            {"prompt": f"{IMAGE}2", "images": ["missing.png"]},
            {"prompt": f"{IMAGE}3", "images": ["half.png"]},
            {"prompt": f"{IMAGE}4", "images": []},
            {"prompt": "5", "images": ["good.png"]},
            {"prompt": f"{IMAGE}{IMAGE}6", "images": ["good.png"]},
            {"prompt": "7", "images": None},
            {"prompt": f"{IMAGE}8", "images": ["thin.png"]},
        ),
        pictures,
    )
    assert (source.report.kept, source.report.image) == (2, 6)
    said = str(source.report)
    assert "6 with bad images" in said
    assert "row 2 (image: 'images': a picture the file 'missing.png' cannot be read" in said
    assert "row 4 (image: the prompt mentions 1 pictures and the row has 0)" in said
    assert [len(prompt.images) for prompt in source.take(0, 2)] == [1, 0]


def test_pictures_count_in_the_length_of_a_prompt(tmp_path: Path, pictures: PictureProcessor):
    (tmp_path / "a.png").write_bytes(png(280, 280))
    row = {"prompt": f"{IMAGE}1", "images": ["a.png"]}
    kept = load(jsonl(tmp_path, row), pictures, max_prompt_tokens=103)
    assert kept.report.kept == 1
    with pytest.raises(DataError, match=r"1 too long.*103 tokens"):
        load(jsonl(tmp_path, row), pictures, max_prompt_tokens=102)


def test_pixels_bound_the_tokens_of_a_picture(tmp_path: Path, model_path: Path):
    (tmp_path / "a.png").write_bytes(png(112, 112))
    path = jsonl(tmp_path, {"prompt": f"{IMAGE}1", "images": ["a.png"]})
    for pixels, tokens in (((None, None), 16), ((None, 84 * 84), 9), ((140 * 140, None), 25)):
        bounded = load_picture_processor(str(model_path), pixels)
        assert bounded is not None
        (prompt,) = load(path, bounded).take(0, 1)
        assert prompt.token_ids.count(bounded.image_token_id) == tokens
    bounded.whole.save_pretrained(tmp_path / "saved")
    again = processor_of(tmp_path / "saved", config_from=model_path)
    assert again.token_count(prompt.images[0]) == 25, "a trained policy keeps the sizes that it was trained with"
    with pytest.raises(InputError, match=r"data\.min_pixels = 3136 exceeds data\.max_pixels = 1000"):
        load_picture_processor(str(model_path), (None, 1000))
    with pytest.raises(ValueError, match=r"min_pixels = 9 exceeds max_pixels = 4"):
        DataSection(source="x", min_pixels=9, max_pixels=4)


def test_another_column_may_hold_the_pictures(tmp_path: Path, pictures: PictureProcessor):
    (tmp_path / "a.png").write_bytes(png())
    row = {"prompt": f"{IMAGE}1", "figure": "a.png", "images": "not looked at"}
    (prompt,) = load(jsonl(tmp_path, row), pictures, image_column="figure").take(0, 1)
    assert len(prompt.images) == 1
    assert prompt.columns["images"] == "not looked at"


def test_pictures_are_part_of_what_a_resumed_run_checks(tmp_path: Path, pictures: PictureProcessor):
    row = {"prompt": f"{IMAGE}1", "images": "a.png"}
    prints = []
    for colour in ("red", "red", "blue"):
        (tmp_path / "a.png").write_bytes(png(colour=colour))
        prints.append(load(jsonl(tmp_path, row), pictures).fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("text", "images", "wanted"),
    [
        ("what?", ["a.png"], f"[user]{IMAGE}what?[bot]"),
        ("look: <image> and <image>!", ["a.png", "a.png"], f"[user]look: {IMAGE} and {IMAGE}![bot]"),
        ("<image>what?", ["a.png"], f"[user]{IMAGE}what?[bot]"),
        ("what?", [], "[user]what?[bot]"),
    ],
)
def test_plain_text_as_chat(tmp_path: Path, pictures: PictureProcessor, text: str, images: list[str], wanted: str):
    (tmp_path / "a.png").write_bytes(png())
    tokenizer = pictures.whole.tokenizer
    tokenizer.chat_template = TEMPLATE
    try:
        row = {"prompt": text, "images": images}
        (prompt,) = load(jsonl(tmp_path, row), pictures, as_chat=True).take(0, 1)
        system = load(jsonl(tmp_path, row), pictures, as_chat=True, system_prompt="be brief").take(0, 1)[0]
    finally:
        tokenizer.chat_template = None
    assert prompt.text == wanted
    assert system.text == f"[system]be brief{wanted}"
    assert prompt.token_ids.count(pictures.image_token_id) == 4 * len(images)


def test_a_text_model_refuses_pictures(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(DataError, match=r"the column 'images' .* holds pictures, but the model has no vision tower"):
        load(jsonl(tmp_path, {"prompt": "1", "images": "a.png"}), None)


def test_token_counts_are_checked_for_each_size_before_training(tmp_path: Path, model_path: Path, monkeypatch):
    fresh = processor_of(model_path)
    rows = []
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(56 + 28 * (number // 2), 56, "red" if number % 2 else "blue"))
        rows.append({"prompt": f"{IMAGE}1", "images": f"{number}.png"})
    cuts: list[Any] = []
    process = fresh.process
    monkeypatch.setattr(fresh, "process", lambda shown: cuts.append(shown.size) or process(shown))
    load(jsonl(tmp_path, *rows), fresh)
    assert cuts == [(56, 56), (84, 56)], f"one picture of each size, up to {SIZES_CHECKED} sizes"

    counted = fresh.token_count
    monkeypatch.setattr(fresh, "token_count", lambda image: counted(image) + (image.width == 84))
    with pytest.raises(DataError, match=r"row-2: picture 1 \(84 x 56 pixels\) is 6 tokens .* announced 7"):
        load(jsonl(tmp_path, *rows), fresh)


def test_models_that_cannot_be_placed_are_refused(tmp_path: Path, model_path: Path):
    assert load_picture_processor(str(tiny_qwen3(tmp_path / "text", tied=False, seed=0))) is None
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(InputError, match=r"vision-language model of type llava; rlkl knows qwen2_vl, qwen2_5_vl"):
        load_picture_processor(str(other))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((model_path / "config.json").read_text())
    with pytest.raises(InputError, match="its picture processor cannot be loaded"):
        load_picture_processor(str(bare))
