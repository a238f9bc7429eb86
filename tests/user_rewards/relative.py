from .neighbour import doubled  # noqa: F401


def f(completion):
    return 1.0
