"""Messages between the driver and a worker process.

Calls go to the worker as pickles. Results come back as JSON, and the driver checks every field: a program that a reward
executes can write to the worker's end, and loading a pickle that it wrote would run its code in the driver.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, NoReturn, cast, get_args

from rlkl.rewards.execution.call import CallResult
from rlkl.rewards.function.result import NAME, Failure, FailureKind, Outcome, Score

MOST_BYTES = 64 * 2**20
"""A longer message is refused."""
_CHUNK = 2**16
_LENGTH = struct.Struct(">I")
_KINDS = get_args(FailureKind)
_SCORE = ("value", "components", "tags", "token_values")
_FAILURE = ("kind", "what", "detail", "traceback")


class WireError(Exception):
    """A worker's message is not a result. Never leaves this package."""


class MessageSocket:
    """Sends and receives messages over a socket. A message is its length, 4 bytes big-endian, and its bytes."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._received = bytearray()

    def send(self, body: bytes, timeout_s: float | None = None) -> None:
        """Send a whole message.

        Raises:
            TimeoutError: the other end did not read it in time.
            OSError: the other end is closed.
        """
        self._end.settimeout(timeout_s)
        self._end.sendall(_LENGTH.pack(len(body)) + body)

    def receive(self, timeout_s: float | None = None, most_bytes: int | None = None) -> bytes:
        """Receive a whole message; ``timeout_s`` is the limit for all of it.

        Raises:
            TimeoutError: the message did not arrive in time, or only a part of it.
            EOFError: the other end is closed.
            WireError: the message is longer than ``most_bytes``.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size, end))
        if most_bytes is not None and length > most_bytes:
            raise WireError(f"a message of {length:,} bytes; at most {most_bytes:,} are accepted")
        return self._take(length, end)

    def close(self) -> None:
        self._end.close()

    def _take(self, count: int, end: float | None) -> bytes:
        while len(self._received) < count:
            if end is None:
                self._end.settimeout(None)
            elif (left := end - time.monotonic()) > 0:
                self._end.settimeout(left)
            else:
                raise TimeoutError
            part = self._end.recv(_CHUNK)
            if not part:
                raise EOFError
            self._received += part
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken


def encode_answer(number: int, answer: CallResult) -> bytes:
    """Encode the answer to call ``number`` as JSON. Exceptions themselves (`Failure.cause`) are left out."""
    body = _encoded(
        {
            "number": number,
            "seconds": float(answer.seconds),
            "failure": _failure_fields(answer.failure),
            "outcomes": [_outcome_fields(outcome) for outcome in answer.outcomes],
        }
    )
    if len(body) <= MOST_BYTES:
        return body
    size = f"a result of {len(body):,} bytes; at most {MOST_BYTES:,} are accepted"
    return encode_answer(number, CallResult(failure=Failure(kind="returned", what="returned too much", detail=size)))


def decode_answer(body: bytes, *, number: int, samples: int) -> CallResult:
    """Decode the answer to call ``number``, which is about ``samples`` samples.

    Raises:
        WireError: the message is not such an answer.
    """
    fields = _object(body, "number", "seconds", "failure", "outcomes")
    if type(fields["number"]) is not int or fields["number"] != number:
        _refuse(f"an answer to call {fields['number']!r:.50}, expected one to call {number}")
    failure = _failure(fields["failure"])
    rows = _list(fields["outcomes"])
    if len(rows) != (0 if failure else samples):
        _refuse(f"{len(rows)} outcomes for {samples} samples")
    outcomes = tuple(_outcome(row) for row in rows)
    return CallResult(outcomes=outcomes, failure=failure, seconds=_float(fields["seconds"]))


def encode_start(failure: Failure | None) -> bytes:
    """Encode why a worker is not ready; ``failure`` is None if it is."""
    return _encoded({"failure": _failure_fields(failure)})


def decode_start(body: bytes) -> Failure | None:
    """Read the message of `encode_start`; raises `WireError`."""
    return _failure(_object(body, "failure")["failure"])


def _encoded(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, allow_nan=False).encode()


def _failure_fields(failure: Failure | None) -> dict[str, str] | None:
    if failure is None:
        return None
    return {name: str(getattr(failure, name)) for name in _FAILURE}


def _outcome_fields(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Failure):
        return {"failure": _failure_fields(outcome)}
    return {"score": {name: getattr(outcome, name) for name in _SCORE}}


def _object(body: bytes, *names: str) -> dict[str, Any]:
    try:
        fields = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{type(error).__name__}: {error!s:.200}") from None
    return _fields(fields, *names)


def _fields(value: Any, *names: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != set(names):
        _refuse(f"expected the fields {', '.join(names)}, got {value!r:.200}")
    return cast("dict[str, Any]", value)


def _outcome(value: Any) -> Outcome:
    if isinstance(value, dict) and value.keys() == {"score"}:
        return _score(value["score"])
    failure = _failure(_fields(value, "failure")["failure"])
    if failure is None:
        _refuse("an outcome that is neither a score nor a failure")
    return failure


def _score(value: Any) -> Score:
    fields = _fields(value, *_SCORE)
    if not isinstance(fields["components"], dict):
        _refuse(f"components {fields['components']!r:.200}")
    for name in fields["components"]:
        if not NAME.fullmatch(name):
            _refuse(f"the component {name!r:.200}")
    return Score(
        value=None if fields["value"] is None else _float(fields["value"]),
        components={name: _float(number) for name, number in fields["components"].items()},
        tags=tuple(_text(tag) for tag in _list(fields["tags"])),
        token_values=tuple(_float(number) for number in _list(fields["token_values"])),
    )


def _failure(value: Any) -> Failure | None:
    if value is None:
        return None
    fields = _fields(value, *_FAILURE)
    if fields["kind"] not in _KINDS:
        _refuse(f"a failure of kind {fields['kind']!r:.50}")
    return Failure(**{name: _text(text) for name, text in fields.items()})  # pyright: ignore[reportArgumentType]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else _refuse(f"expected a list, got {value!r:.200}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _refuse(f"expected a text, got {value!r:.200}")


def _float(value: Any) -> float:
    """Check that a value is a finite float. JSON writes every float so that it reads back exactly."""
    return value if type(value) is float and math.isfinite(value) else _refuse(f"expected a number, got {value!r:.200}")


def _refuse(problem: str) -> NoReturn:
    raise WireError(problem)
