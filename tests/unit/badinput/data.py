"""Cases: data files and pictures."""

from __future__ import annotations

from typing import Any

from tests.unit.badinput.case import Case, Place, with_file, with_rows

MESSAGES = [{"role": "user", "content": "hi"}]
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

CASES = [
    Case(
        wrong="The data file does not exist",
        run="plan r.yaml data.source=row.jsonl",
        names="data.source = 'row.jsonl' does not exist",
        way="did you mean 'rows.jsonl'?",
    ),
    Case(
        wrong="The data file is empty",
        run="plan r.yaml",
        make=with_file("rows.jsonl", "\n"),
        names="data.source = 'rows.jsonl' has no rows",
        way="expected one or more with a column 'prompt' (data.prompt_column)",
    ),
    Case(
        wrong="The data file is CSV",
        run="plan r.yaml data.source=rows.csv",
        make=with_file("rows.csv", "prompt,answer\n1+1=,2\n"),
        names="data.source = 'rows.csv' is a .csv file",
        way="use .jsonl or .parquet. pandas converts: pandas.read_csv(FILE).to_json",
    ),
    Case(
        wrong="A folder has the name of a data file",
        run="plan r.yaml data.source=d.jsonl",
        make=lambda place: (place.here / "d.jsonl").mkdir(),
        names="data.source = 'd.jsonl' is a folder",
        way="name a file in it",
    ),
    Case(
        wrong="A folder without data files",
        run="plan r.yaml data.source=d",
        make=lambda place: (place.here / "d").mkdir(),
        names="data.source = 'd' (data.subset None, data.split train)",
        way="Name a .jsonl or .parquet file",
    ),
    Case(
        wrong="A data set of the hub, offline",
        run="train r.yaml data.source=someone/numbers",
        names="data.source = 'someone/numbers'",
        way="HF_HUB_OFFLINE forbids to download it: unset it",
    ),
    Case(
        wrong="A `.parquet` file that is text",
        run="plan r.yaml data.source=d.parquet",
        make=with_file("d.parquet", "prompt\n1+1=\n"),
        names="data.source = 'd.parquet' cannot be read as parquet",
        way="Copy or write it again",
    ),
    Case(
        wrong="A built-in task with a typo",
        run="plan r.yaml data.source=task:arithmatic",
        names="data.source = 'task:arithmatic': no built-in task is called 'arithmatic'",
        way="did you mean 'arithmetic'?",
    ),
    Case(
        wrong="A built-in task has no such rows",
        run="plan r.yaml data.source=task:arithmetic/tset",
        names="task:arithmetic has no rows called 'tset'",
        way="did you mean 'test'?",
    ),
    Case(
        wrong="The rows have another column for the prompt",
        run="plan r.yaml",
        make=with_rows({"question": "1+1=", "answer": "2"}),
        names="data.prompt_column = 'prompt' is not a column of data.source = 'rows.jsonl'",
        way="available: answer, question",
    ),
    Case(
        wrong="A `.jsonl` file is one JSON list",
        run="plan r.yaml",
        make=with_file("rows.jsonl", '[{"prompt": "1+1="}]\n'),
        names="row 1 (malformed: a JSON list, not an object)",
        way="a .jsonl file holds one JSON object a line",
    ),
    Case(
        wrong="The last line of a `.jsonl` file is cut off, in a file of two",
        run="plan r.yaml",
        make=with_file("rows.jsonl", '{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+'),
        names="'rows.jsonl': 1 of 2 rows kept (0 empty, 1 malformed, 0 too long): row 2",
        way="raise data.max_bad_fraction",
    ),
    Case(
        wrong="A `.jsonl` file is compressed",
        run="plan r.yaml",
        make=with_file("rows.jsonl", b"\x1f\x8b\x08\x00abc"),
        names="row 1 (malformed: not JSON",
        way="one JSON object a line, in UTF-8",
    ),
    Case(
        wrong="Prompts are numbers",
        run="plan r.yaml",
        make=with_rows({"prompt": 1, "answer": "2"}),
        names="row 1 (malformed: 'prompt' is int, not text or a list of messages)",
        way="point data.prompt_column (now 'prompt') elsewhere",
    ),
    Case(
        wrong="Prompts are null",
        run="plan r.yaml",
        make=with_rows({"prompt": None, "answer": "2"}),
        names="row 1 (empty: 'prompt' is null)",
        way="Mend the rows",
    ),
    Case(
        wrong="Prompts are too long",
        run="train r.yaml",
        make=with_rows({"prompt": "1" * 100, "answer": "2"}),
        names="row 1 (too_long: 100 tokens)",
        way="raise data.max_prompt_tokens (now 16)",
    ),
    Case(
        wrong="Chat messages for a tokenizer without a chat template",
        run="train r.yaml",
        make=with_rows({"prompt": MESSAGES, "answer": "2"}),
        names="the column 'prompt' of data.source = 'rows.jsonl' holds chat messages",
        way="use an instruct model or a plain-text column",
    ),
    Case(
        wrong="A chat message has no role",
        run="plan r.yaml",
        make=with_rows({"prompt": [{"rol": "user", "content": "hi"}], "answer": "2"}),
        names="row 1 (malformed: message 1 is not",
        way="{'role': ..., 'content': ...}",
    ),
    Case(
        wrong="The data of the evaluation do not exist",
        run=("plan", "r.yaml", "eval={data: {source: test.jsonl}}"),
        names="eval.data: data.source = 'test.jsonl' does not exist",
        way="did you mean",
    ),
]


def _pictures(*rows: dict[str, Any], file: bytes | None = None) -> Any:
    """Return what prepares a run with pictures, the last of whose rows is wrong."""

    def make(place: Place) -> None:
        place.model("seeing")
        place.recipe("model: {path: base}", "model: {path: seeing}")
        place.recipe("rows.jsonl, max_prompt_tokens: 16", "rows.jsonl, max_prompt_tokens: 64, image_column: images")
        place.rows(*rows)
        if file is not None:
            place.write("a.png", file)

    return make


PICTURES = [
    Case(
        wrong="Pictures for a model that reads text alone",
        run="train r.yaml data.image_column=images",
        make=with_rows({"prompt": "what?", "answer": "2", "images": ["a.png"]}),
        names="the column 'images' of data.source = 'rows.jsonl' holds pictures",
        way="take a vision-language model",
    ),
    Case(
        wrong="A picture's file does not exist",
        run="train r.yaml",
        make=_pictures({"prompt": f"{IMAGE}what?", "answer": "2", "images": ["gone.png"]}),
        names="the file 'gone.png' cannot be read",
        way="Mend the rows",
    ),
    Case(
        wrong="A picture is a text file",
        run="train r.yaml",
        make=_pictures({"prompt": f"{IMAGE}what?", "answer": "2", "images": ["a.png"]}, file=b"no picture"),
        names="does not decode (cannot identify image file",
        way="Mend the rows",
    ),
    Case(
        wrong="A picture is cut off",
        run="train r.yaml",
        make=_pictures(
            {"prompt": f"{IMAGE}what?", "answer": "2", "images": ["a.png"]}, file=b"\x89PNG\r\n\x1a\n" + b"0"
        ),
        names="does not decode",
        way="raise data.max_bad_fraction",
    ),
    Case(
        wrong="A picture without a placeholder in its prompt",
        run="train r.yaml",
        make=_pictures({"prompt": "what?", "answer": "2", "images": ["a.png", "b.png"]}),
        names="row 1 (image:",
        way="Mend the rows",
    ),
    Case(
        wrong="`rlkl generate` with a picture that does not exist",
        run="generate base hi --engine hf --image x.png",
        names="--image x.png",
        way="there is no such file",
    ),
]
