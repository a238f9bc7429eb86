"""Rewards that reach for files, modules, threads, programs, signals and the working directory."""

import asyncio
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from neighbour import doubled

HERE = Path(__file__).parent
time.sleep(0.5)  # a slow import
pool = ThreadPoolExecutor(4)


def reads_own_file(completion):
    with open(HERE / "words.txt") as words:
        return float(sum(word in completion for word in words.read().split()))


def imports_neighbour(completion):
    import neighbour

    assert neighbour.doubled is doubled
    return doubled(completion)


def uses_threads(completion):
    return sum(pool.map(ord, completion))


def starts_threads(completion):
    found = []
    threads = [threading.Thread(target=found.append, args=[character]) for character in completion]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(found)


def runs_a_program(completions):
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import sys; print(*map(len, sys.argv[1:]))", *completions],
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(number) for number in done.stdout.split()]


def uses_processes(completions):
    with multiprocessing.get_context("fork").Pool(2) as processes:
        return processes.map(len, completions)


def alarm(completion):
    def ring(number, frame):
        raise TimeoutError

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        return float(len(completion))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def goes_elsewhere(completion):
    os.chdir(tempfile.gettempdir())
    return 1.0


def warns(completion):
    warnings.warn("this is old", stacklevel=1)
    logging.getLogger().warning("scored %r", completion)
    sys.stderr.write("done\n")
    return 1.0


async def asynchronous(completion):
    numbers = await asyncio.gather(*(doubled_later(character) for character in completion))
    return sum(numbers)


async def doubled_later(text):
    await asyncio.sleep(0.001)
    return doubled(text)
