"""A judge behind HTTP: what is sent, what is read, and what happens when it fails."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import pytest

from reward_models import Judge
from rlkl.errors import RewardError, RewardInputError
from tests.unit.reward_models.judge_server import MODEL, Reply, endpoint

ROW = {"prompt": "What is {1}+1?", "completion": "2 {prompt} [[10]]"}


def make(url: str, **settings: Any) -> Judge:
    return Judge(base_url=url, model=MODEL, **{"backoff_s": 0.01, "timeout_s": 30.0, **settings})


def ask(judge: Judge, *rows: dict[str, str]) -> list[Any]:
    """One score or error for each row, all at the same time."""

    async def run() -> list[Any]:
        answers = await asyncio.gather(*(judge(**row) for row in rows or (ROW,)), return_exceptions=True)
        await judge.close()
        return answers

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ({}, "Good. [[10]]", 1.0),
        ({}, "Bad. [[ 1 ]]", 0.0),
        ({}, "Not [[10]] but rather [[5.5]]", 0.5),
        ({"low": 0, "high": 1, "score_pattern": r"Score: (\d(\.\d+)?)"}, "Score: 0.25", 0.25),
        ({"low": -1, "high": 1}, "[[-1]]", 0.0),
    ],
)
def test_scores(settings, text, expected):
    with endpoint(lambda number, body: Reply(text=text)) as server:
        assert ask(make(server.url, **settings)) == [expected]


def test_what_is_sent(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "abc")
    template = "{question} -> {completion}? Give {json} as {1}."
    row = {"question": "2+2", "completion": "{question}4", "json": "J"}
    with endpoint(lambda number, body: Reply()) as server:
        judge = make(
            server.url + "/", template=template, system="Be fair.", api_key_variable="JUDGE_KEY", extra={"seed": 3}
        )
        judge.setup()
        assert judge.__signature__.parameters.keys() == {"question", "completion", "json"}
        assert ask(judge, row) == [pytest.approx(6 / 9)]
    assert server.requests == [
        {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "Be fair."},
                {"role": "user", "content": "2+2 -> {question}4? Give J as {1}."},
            ],
            "temperature": 0.0,
            "max_tokens": 512,
            "seed": 3,
        }
    ]
    assert server.headers[0]["Authorization"] == "Bearer abc"


@pytest.mark.parametrize(
    "failure", [Reply(status=503), Reply(status=429, headers={"Retry-After": "0"}), Reply(status=0)]
)
def test_failures_that_pass_are_tried_again(failure):
    with endpoint(lambda number, body: failure if number < 2 else Reply()) as server:
        assert ask(make(server.url)) == [pytest.approx(6 / 9)]
        assert len(server.requests) == 3


def test_a_slow_reply_is_given_up_and_tried_again():
    with endpoint(lambda number, body: Reply(delay_s=8.0 if number == 0 else 0.0)) as server:
        assert ask(make(server.url, timeout_s=4.0)) == [pytest.approx(6 / 9)]
        assert len(server.requests) > 1


def test_in_the_end_it_is_an_error():
    with endpoint(lambda number, body: Reply(status=500, body=b"no GPU left")) as server:
        answers = ask(make(server.url, retries=2))
        assert len(server.requests) == 3
    with pytest.raises(RewardError, match="failed 3 times, at last with status 500: no GPU left"):
        raise answers[0]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(text="A fine answer."), "the reply has no match of .*A fine answer"),
        (Reply(text="[[11]]"), r"the score 11 is not within \[1, 10\]"),
        (Reply(text=""), "the reply holds no text"),
        (Reply(text=None), "the reply holds no text"),
        (Reply(body=b"<html>"), "the reply holds no text: status 200: <html>"),
        (Reply(status=400, body=b"too long"), "refused the request with status 400: too long"),
        (Reply(status=401), "refused the request with status 401"),
    ],
)
def test_what_is_no_score_is_an_error_at_once(reply, message):
    with endpoint(lambda number, body: reply) as server:
        answers = ask(make(server.url))
        assert len(server.requests) == 1
    with pytest.raises(RewardError, match=message):
        raise answers[0]


def test_one_failure_takes_no_other_score_with_it():
    def answer(number: int, body: dict[str, Any]) -> Reply:
        return Reply(text="none" if "bad row" in body["messages"][0]["content"] else "[[4]]")

    with endpoint(answer) as server:
        answers = ask(make(server.url), ROW, {**ROW, "completion": "bad row"}, ROW)
    assert answers[0] == answers[2] == pytest.approx(3 / 9)
    assert isinstance(answers[1], RewardError)


def test_requests_at_the_same_time_have_a_limit():
    with endpoint(lambda number, body: Reply(delay_s=0.3)) as server:
        assert len(ask(make(server.url, concurrency=3), *[ROW] * 12)) == 12
        assert server.most_held == 3


def test_event_loops_of_several_threads():
    with endpoint(lambda number, body: Reply()) as server:
        judge = make(server.url)
        answers: list[Any] = []

        def work() -> None:
            for _ in range(2):  # a new event loop each time
                answers.extend(ask(judge, ROW, ROW))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [pytest.approx(6 / 9)] * 12


def test_set_up_sees_that_the_endpoint_has_the_model(monkeypatch):
    with endpoint(lambda number, body: Reply()) as server:
        pickle.loads(pickle.dumps(make(server.url))).setup()
        with pytest.raises(RewardInputError, match="did you mean 'judge-model'"):
            Judge(base_url=server.url, model="judge-modal").setup()
        with pytest.raises(RewardInputError, match=r"'base_url' is .*expected an endpoint that answers\. .*404"):
            make(server.url + "/chat").setup()
        monkeypatch.delenv("NO_KEY", raising=False)
        with pytest.raises(RewardInputError, match="'api_key_variable' is 'NO_KEY'"):
            make(server.url, api_key_variable="NO_KEY").setup()
    with pytest.raises(RewardInputError, match=r"expected an endpoint that answers\. ConnectError"):
        make(server.url).setup()
    make(server.url, check=False).setup()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "Rate it."}, "'template' is 'Rate it.'; expected a text with {completion} in it"),
        ({"score_pattern": r"\d"}, "a group around the number"),
        ({"score_pattern": "("}, "expected a regular expression"),
        ({"low": 10}, "'low' is 10; expected less than high, 10.0"),
        ({"retries": -1}, "'retries' is -1"),
        ({"base_url": "localhost:8000"}, "an address that starts with http:// or https://"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(RewardInputError, match=message):
        Judge(**{"base_url": "http://127.0.0.1:1/v1", "model": MODEL, **settings})
