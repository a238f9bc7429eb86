"""From rows to prompts: what is kept, what is counted, how text becomes tokens."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rlkl.data.prompts import Encoder, PromptSource, check_prompts, load_prompts
from rlkl.data.report import BadRow, DataReport
from rlkl.errors import DataError
from rlkl.recipe import DataSection
from rlkl.tasks.characters import character_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[bot]{% endif %}"
)
STRICT_TEMPLATE = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('users first') }}{% endif %}ok"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return character_tokenizer()


@pytest.fixture
def chat_tokenizer() -> Any:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tokenizer_with_bos_and_eos() -> Any:
    """'<unk>' plays the beginning-of-sequence token; encoding puts it first and '<eos>' last, as T5-like ones do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = character_tokenizer()
    tokenizer.bos_token = "<unk>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A <eos>", special_tokens=[("<unk>", 2), ("<eos>", 1)]
    )
    return tokenizer


def write_jsonl(folder: Path, *rows: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def section(source: str, **keys: Any) -> DataSection:
    return DataSection(source=source, **{"shuffle": False, **keys})


def load(source: str, tokenizer: Any, **keys: Any) -> PromptSource:
    return load_prompts(section(source, **keys), Encoder(tokenizer=tokenizer), seed=0)


def test_plain_text_rows_become_prompts_with_all_their_columns(tmp_path, tokenizer):
    row = {"prompt": "1+1=", "answer": "2", "level": 3}
    (prompt,) = load(write_jsonl(tmp_path, row), tokenizer).take(0, 1)
    assert prompt.text == "1+1="
    assert prompt.token_ids == tuple(tokenizer.encode("1+1="))
    assert prompt.columns == row
    assert prompt.id == "row-0"


def test_bad_rows_are_counted_by_kind_with_their_numbers(tmp_path, tokenizer, caplog):
    path = write_jsonl(
        tmp_path,
        {"prompt": "good"},
        {"prompt": "  "},
        {"prompt": None},
        '{"prompt": "cut off\n',
        "\n",
        {"prompt": 7},
        {"question": "no prompt"},
        [1, 2],
        {"prompt": "four+"},
        {"prompt": "four"},
    )
    source = load(path, tokenizer, max_prompt_tokens=4, max_bad_fraction=0.8)
    report = source.report
    assert (report.total, report.kept, report.empty, report.malformed, report.too_long) == (9, 2, 2, 4, 1)
    assert [prompt.id for prompt in source.take(0, 2)] == ["row-0", "row-9"]
    assert [(bad.row, bad.problem) for bad in report.examples] == [
        (1, "empty"), (2, "empty"), (3, "malformed"), (5, "malformed"), (6, "malformed"), (8, "too_long"),
    ]  # fmt: skip
    assert "2 of 9 rows kept (2 empty, 4 malformed, 1 too long)" in caplog.text
    assert report.bad_fraction == pytest.approx(7 / 9)


def test_a_line_in_another_encoding_spoils_only_itself(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "\xe9"}\n{"prompt": "b"}')
    source = load(str(path), tokenizer, max_bad_fraction=0.5)
    assert [prompt.text for prompt in source.take(0, 2)] == ["a", "b"]
    assert source.report.examples[0].row == 1


def test_too_many_bad_rows_stop_and_say_what_to_do(tmp_path, tokenizer):
    path = write_jsonl(tmp_path, {"prompt": "ok"}, {"prompt": ""}, {"prompt": "ok"}, {"prompt": "ok"})
    with pytest.raises(DataError, match=r"data.max_bad_fraction") as caught:
        load(path, tokenizer, max_bad_fraction=0.2)
    assert path in str(caught.value)
    assert "3 of 4 rows kept (1 empty" in str(caught.value)
    assert "row 2" in str(caught.value)
    assert len(load(path, tokenizer, max_bad_fraction=0.25)) == 3


def test_no_usable_row_is_an_error_whatever_the_fraction(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"0 of 1 rows kept"):
        load(write_jsonl(tmp_path, {"prompt": ""}), tokenizer, max_bad_fraction=1.0)
    with pytest.raises(DataError, match=r"has no rows"):
        load(write_jsonl(tmp_path), tokenizer)


def test_a_missing_column_names_the_nearest(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"'promt'.*did you mean 'prompt'"):
        load(write_jsonl(tmp_path, {"prompt": "a", "answer": "b"}), tokenizer, prompt_column="promt")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ([7, 8], ["7", "8"]),
        (["a", "a"], ["row-0", "row-1"]),
        (["a", None], ["row-0", "row-1"]),
        ([1, "1"], ["row-0", "row-1"]),
    ],
)
def test_the_id_column_is_used_where_it_tells_rows_apart(tmp_path, tokenizer, ids, expected):
    path = write_jsonl(tmp_path, *({"prompt": "x", "id": value} for value in ids))
    assert [prompt.id for prompt in load(path, tokenizer).take(0, 2)] == expected


def test_plain_text_keeps_the_default_bos_and_loses_a_closing_eos(tmp_path):
    tokenizer = tokenizer_with_bos_and_eos()
    (prompt,) = load(write_jsonl(tmp_path, {"prompt": "12"}), tokenizer).take(0, 1)
    one, two = character_tokenizer().encode("12")
    assert tokenizer.encode("12") == [2, one, two, 1]
    assert prompt.token_ids == (2, one, two)


def test_text_that_brings_its_own_bos_gets_no_second_one(tmp_path):
    (prompt,) = load(write_jsonl(tmp_path, {"prompt": "<unk>1"}), tokenizer_with_bos_and_eos()).take(0, 1)
    assert prompt.token_ids == (2, *character_tokenizer().encode("1"))


def test_chat_messages_go_through_the_template_up_to_the_assistants_turn(tmp_path, chat_tokenizer):
    path = write_jsonl(tmp_path, {"prompt": [{"role": "user", "content": "hi", "name": None}]})
    (prompt,) = load(path, chat_tokenizer, system_prompt="be kind").take(0, 1)
    assert prompt.text == "[system]be kind[user]hi[bot]"
    assert prompt.token_ids == tuple(chat_tokenizer.encode(prompt.text, add_special_tokens=False))


def test_a_rows_own_system_message_stays_the_only_one(tmp_path, chat_tokenizer):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    (prompt,) = load(write_jsonl(tmp_path, {"prompt": messages}), chat_tokenizer, system_prompt="be kind").take(0, 1)
    assert prompt.text == "[system]be brief[user]hi[bot]"


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "empty"),
        ([{"role": "system", "content": "x"}], "empty"),
        ([{"role": "user", "content": ""}], "empty"),
        (["hi"], "malformed"),
        ([{"role": "user"}], "malformed"),
        ([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], "malformed"),
    ],
)
def test_bad_messages_are_counted(tmp_path, chat_tokenizer, messages, problem):
    good = {"prompt": [{"role": "user", "content": "hi"}]}
    source = load(write_jsonl(tmp_path, good, {"prompt": messages}), chat_tokenizer, max_bad_fraction=0.5)
    assert [(bad.row, bad.problem) for bad in source.report.examples] == [(1, problem)]


def test_messages_that_the_template_refuses_are_malformed(tmp_path, chat_tokenizer):
    chat_tokenizer.chat_template = STRICT_TEMPLATE
    rows = [{"prompt": [{"role": role, "content": "hi"}]} for role in ("user", "tool")]
    source = load(write_jsonl(tmp_path, *rows), chat_tokenizer, max_bad_fraction=0.5)
    assert "users first" in str(source.report)


def test_chat_without_a_template_is_refused(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"no chat template"):
        load(write_jsonl(tmp_path, {"prompt": [{"role": "user", "content": "hi"}]}), tokenizer)


def test_a_system_prompt_for_plain_text_is_refused(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"data.system_prompt needs chat messages"):
        load(write_jsonl(tmp_path, {"prompt": "hi"}), tokenizer, system_prompt="be kind")


def source_of(count: int, *, shuffle: bool = True, seed: int = 0) -> PromptSource:
    from rlkl.types import Prompt

    report = DataReport(total=count, kept=count, empty=0, malformed=0, too_long=0, image=0, examples=())
    prompts = [Prompt(id=str(number), text="x", token_ids=(1,)) for number in range(count)]
    return PromptSource(prompts, report, shuffle=shuffle, seed=seed)


def ids(source: PromptSource, position: int, count: int) -> list[str]:
    return [prompt.id for prompt in source.take(position, count)]


def test_without_shuffling_prompts_come_in_order_again_and_again():
    assert ids(source_of(3, shuffle=False), 2, 5) == ["2", "0", "1", "2", "0"]


def test_each_epoch_holds_every_prompt_once_in_its_own_order():
    source = source_of(50)
    epochs = [ids(source, 50 * epoch, 50) for epoch in range(3)]
    assert all(sorted(epoch) == sorted(map(str, range(50))) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_draw_depends_on_its_position_only():
    stream = ids(source_of(7), 0, 40)
    source = source_of(7)
    for position, count in [(30, 10), (0, 3), (5, 20), (6, 2), (13, 1)]:
        assert ids(source, position, count) == stream[position : position + count]


def test_the_seed_decides_the_order():
    assert ids(source_of(50), 0, 50) == ids(source_of(50), 0, 50)
    assert ids(source_of(50), 0, 50) != ids(source_of(50, seed=1), 0, 50)


def test_a_clean_source_is_reported_without_a_warning(tmp_path, tokenizer, caplog):
    caplog.set_level(logging.INFO, logger="rlkl")
    load(write_jsonl(tmp_path, {"prompt": "a"}), tokenizer)
    assert [(record.levelname, record.message[-15:]) for record in caplog.records] == [("INFO", " of 1 rows kept")]


def test_a_report_shows_its_examples():
    bad = BadRow(row=4, problem="too_long", detail="900 tokens")
    report = DataReport(total=2, kept=1, empty=0, malformed=0, too_long=1, image=0, examples=(bad,))
    assert str(report) == "1 of 2 rows kept (0 empty, 0 malformed, 1 too long): row 5 (too_long: 900 tokens)"


PAIRS = {"chosen_column": "chosen", "rejected_column": "rejected"}


def test_answers_become_what_a_sampler_would_have_returned(tmp_path: Path, tokenizer: Any) -> None:
    source = load(write_jsonl(tmp_path, {"prompt": "1+1=", "chosen": "2", "rejected": "3<eos>"}), tokenizer, **PAIRS)
    (prompt,) = source.take(0, 1)
    eos = tokenizer.eos_token_id
    assert prompt.token_ids == tuple(tokenizer.encode("1+1="))
    assert prompt.answers == ((*tokenizer.encode("2"), eos), (*tokenizer.encode("3"), eos))


def test_chat_answers_are_the_last_messages(tmp_path: Path, chat_tokenizer: Any) -> None:
    ask = {"role": "user", "content": "hi"}
    row = {
        "prompt": [ask],
        "chosen": [ask, {"role": "assistant", "content": "ho"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    (prompt,) = load(write_jsonl(tmp_path, row), chat_tokenizer, **PAIRS).take(0, 1)
    assert prompt.text == "[user]hi[bot]"
    assert [chat_tokenizer.decode(answer, skip_special_tokens=True) for answer in prompt.answers] == ["ho", "no"]


def test_bad_answers_are_counted_with_bad_prompts(tmp_path: Path, tokenizer: Any) -> None:
    good = {"prompt": "p", "chosen": "abc", "rejected": "d"}
    rows = [
        good,
        {**good, "chosen": ""},
        {**good, "rejected": None},
        {**good, "rejected": "abc"},
        {**good, "chosen": "abcd"},
        {**good, "chosen": 7},
        {**good, "chosen": [{"role": "user", "content": "abc"}]},
        {**good, "prompt": ""},
    ]
    encoder = Encoder(tokenizer=tokenizer, max_answer_tokens=4)
    source = load_prompts(section(write_jsonl(tmp_path, *rows), max_bad_fraction=1, **PAIRS), encoder, seed=0)
    report = source.report
    assert (report.total, report.kept, report.empty, report.malformed, report.too_long) == (8, 1, 3, 3, 1)
    assert "'chosen' has 5 tokens" in str(report)
    assert "both answers are the same" in str(report)


def test_an_answer_column_that_is_not_there_is_named(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path, {"prompt": "p", "chosen": "a", "reject": "b"})
    with pytest.raises(DataError, match=r"data\.rejected_column = 'rejected' is not a column .* did you mean 'reject'"):
        load(path, tokenizer, **PAIRS)


def test_rows_are_checked_without_a_tokenizer(tmp_path: Path):
    good = [{"role": "user", "content": "hi"}]
    bad = [{"role": "assistant", "content": "already answered"}]
    rows = [
        {"prompt": "a", "x": 1},
        {"prompt": good, "x": 2},
        {"prompt": bad},
        {"prompt": " "},
        {"prompt": 3},
        {"x": 4},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    prompts, report = check_prompts(DataSection(source=str(file), max_bad_fraction=0.7))
    assert (report.kept, report.total) == (2, 6)
    assert [(prompt.text, prompt.token_ids, prompt.columns["x"]) for prompt in prompts] == [("a", (), 1), ("hi", (), 2)]
    with pytest.raises(DataError, match=r"2 of 6 rows kept \(1 empty, 3 malformed"):
        check_prompts(DataSection(source=str(file)))
    with pytest.raises(DataError, match=r"data\.chosen_column = 'best' is not a column"):
        check_prompts(DataSection(source=str(file), chosen_column="best", rejected_column="x"))
