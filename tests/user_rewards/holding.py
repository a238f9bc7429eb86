"""Classes that hold something, and dataclasses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass
class Verdict:
    right: float
    brief: float


def dataclass_as_dict(completion, answer):
    return asdict(Verdict(right=float(completion == answer), brief=float(len(completion) < 3)))


class Judge:
    def __init__(self, *, words: list[str]):
        self.words = words

    def setup(self):
        self.known = frozenset(self.words)

    def __call__(self, completion: str) -> int:
        return len(self.known & set(completion))

    def close(self):
        del self.known


@dataclass
class Length:
    factor: float = 1.0
    seen: dict[str, float] = field(default_factory=dict)

    def __call__(self, completion: str) -> float:
        return self.seen.setdefault(completion, self.factor * len(completion))


class AsyncJudge:
    async def setup(self):
        self.bonus = 1.0

    async def __call__(self, completion):
        return self.bonus + len(completion)

    async def close(self):
        del self.bonus
