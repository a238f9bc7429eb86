"""JSON and schemas."""

from __future__ import annotations

import json
import pickle
import socket

import pytest

from reward_models import JsonSchema
from rlkl.errors import RewardError, RewardInputError

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"name": "Ada", "age": 36}', 1.0),
        ('\n {"name": "Ada"} ', 1.0),
        ('{"name": 1}', 0.25),
        ("{}", 0.25),
        ('{"name": "Ada", "name": "Eve"}', 0.0),
        ('{"name": "Ada", "age": NaN}', 0.0),
        ('Here: {"name": "Ada"}', 0.0),
        ("[" * 100_000, 0.0),
        ('{"name": "Ada", "age": ' + "9" * 5000 + "}", 0.0),
        ("", 0.0),
    ],
)
def test_schema(completion, expected):
    reward = JsonSchema(schema=SCHEMA, parsed=0.25)
    reward.setup()
    assert reward(completion=completion) == expected


def test_a_file_a_column_and_a_fenced_block(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    by_file = pickle.loads(pickle.dumps(JsonSchema(schema=str(file), extract="fenced")))
    assert by_file(completion='Sure:\n```json\n{"name": "Ada"}\n```\nBye') == 1.0
    assert by_file(completion='{"name": "Ada"}') == 0.0
    by_column = JsonSchema(schema_column="wanted")
    assert by_column(completion="3", wanted='{"type": "integer"}') == 1.0
    assert by_column(completion="3", wanted={"type": "string"}) == 0.0
    with pytest.raises(RewardError, match="column 'wanted' of this row is 'no schema'"):
        by_column(completion="3", wanted="no schema")


def test_nothing_is_fetched(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("asked for a connection")

    monkeypatch.setattr(socket, "create_connection", refuse)
    reward = JsonSchema(schema={"$ref": "http://example.org/schema.json"})
    with pytest.raises(RewardError, match=r"http://example\.org/schema\.json"):
        reward(completion="{}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set one of 'schema'"),
        ({"schema": {}, "schema_column": "a"}, "set one of 'schema'"),
        ({"schema": {"type": "intger"}}, "'schema' is .*expected a JSON schema.*intger"),
        ({"schema": "/nowhere.json"}, "'schema' is '/nowhere.json'.*No such file"),
        ({"schema": {}, "parsed": 2}, "'parsed' is 2; expected a number >= 0 and <= 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(RewardInputError, match=message):
        JsonSchema(**settings).setup()
