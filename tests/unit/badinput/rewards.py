"""Cases: rewards, in a run and in `rlkl score`."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.badinput.case import HERE, Case, Place, with_file, with_rows

SCORE = "score --reward my.py:right --data rows.jsonl"


def _scored(code: str) -> Callable[[Place], object]:
    """Return what writes a completion to score and the reward."""

    def make(place: Place) -> None:
        place.rows({"prompt": "1+1=", "completion": "2", "answer": "2"})
        place.write("my.py", code)

    return make


CASES = [
    Case(
        wrong="No reward at all",
        run="train r.yaml rewards=[]",
        names="no reward: nothing to learn from",
        way="Put 'rewards: [{function: ...}]' into the recipe",
    ),
    Case(
        wrong="The reward file does not exist",
        run="plan r.yaml rewards[0].function=mine.py:right",
        names=f"there is no reward file '{HERE}/mine.py'",
        way=f"did you mean '{HERE}/my.py'?",
    ),
    Case(
        wrong="The reward file is a folder",
        run="plan r.yaml rewards[0].function=d.py:right",
        make=lambda place: (place.here / "d.py").mkdir(),
        names=f"the reward file '{HERE}/d.py' is a folder",
        way="expected a file of Python code",
    ),
    Case(
        wrong="The reward file has no such function",
        run="plan r.yaml rewards[0].function=my.py:rigth",
        names="'my.py:rigth': 'rigth' does not exist in my.py",
        way="did you mean 'right'?",
    ),
    Case(
        wrong="The reward names no function",
        run="plan r.yaml rewards[0].function=my.py",
        names="'my.py' names nothing to call",
        way="expected path/to/file.py:function",
    ),
    Case(
        wrong="The reward is a number",
        run="plan r.yaml",
        make=with_file("my.py", "right = 5\n"),
        names="'my.py:right': 'right' is not callable in my.py",
        way="my.py defines no function and no class",
    ),
    Case(
        wrong="The reward file has a syntax error",
        run="plan r.yaml",
        make=with_file("my.py", "def right(completion:\n"),
        names=f"importing '{HERE}/my.py' raised SyntaxError",
        way="(my.py, line 1). Correct it",
    ),
    Case(
        wrong="The reward imports a package that is not installed",
        run="plan r.yaml",
        make=with_file("my.py", "import no_such_package\n"),
        names=f"importing '{HERE}/my.py' raised ModuleNotFoundError",
        way="Install 'no_such_package', or put its file beside",
    ),
    Case(
        wrong="The reward file raises when it is imported",
        run="plan r.yaml",
        make=with_file("my.py", "raise RuntimeError('boom')\n"),
        names=f"importing '{HERE}/my.py' raised RuntimeError: boom",
        way="--debug shows the traceback",
    ),
    Case(
        wrong="The reward file is a script that ends with `sys.exit`",
        run="plan r.yaml",
        make=with_file("my.py", "import sys\ndef right(completion): return 1.0\nsys.exit(0)\n"),
        names=f"importing '{HERE}/my.py' raised SystemExit",
        way="if __name__ == '__main__'",
    ),
    Case(
        wrong="The reward is in a module that there is not",
        run="plan r.yaml rewards[0].function=no_such.rewards:right",
        names="importing 'no_such.rewards'",
        way="Install 'no_such'",
    ),
    Case(
        wrong="A built-in reward with a typo",
        run="plan r.yaml rewards[0].function=task:arithmatic",
        names="no built-in task is called 'arithmatic'",
        way="did you mean 'arithmetic'?",
    ),
    Case(
        wrong="A parameter that no row can fill",
        run="plan r.yaml",
        make=with_file("my.py", "def right(completon): return 1.0\n"),
        names="its argument 'completon' is not available for this row",
        way="did you mean 'completion'?",
    ),
    Case(
        wrong="Some rows lack a column that the reward needs",
        run="plan r.yaml",
        make=with_rows({"prompt": "1+1=", "answer": "2"}, {"prompt": "1+2="}, {"prompt": "1+3=", "answer": None}),
        names="its argument 'answer' is missing or null in 2 of 3 rows (first: prompt row-1) of data.source",
        way="give the parameter a default",
    ),
    Case(
        wrong="A parameter that comes by position alone",
        run="plan r.yaml",
        make=with_file("my.py", "def right(completion, /): return 1.0\n"),
        names="parameter 'completion' of 'right' is positional-only",
        way="remove the '/'",
    ),
    Case(
        wrong="A reward that takes only `*args`",
        run="plan r.yaml",
        make=with_file("my.py", "def right(*args): return 1.0\n"),
        names="'right' takes only *args",
        way="name those that it needs",
    ),
    Case(
        wrong="A class whose instances cannot be called",
        run="plan r.yaml",
        make=with_file("my.py", "class right: pass\n"),
        names="'my.py:right' is a class whose instances cannot be called",
        way="give it a __call__ method",
    ),
    Case(
        wrong="A setting that the reward does not take",
        run=("plan", "r.yaml", "rewards[0].settings={bonus: 2}"),
        names="'my.py:right' takes no setting 'bonus'",
        way="available: answer, completion",
    ),
    Case(
        wrong="Two rewards with one name",
        run=("plan", "r.yaml", "rewards=[{function: 'my.py:right'}, {function: 'my.py:right', weight: 2}]"),
        names="2 rewards are called 'right'",
        way="give each its own name (rewards[].name)",
    ),
    Case(
        wrong="A reward with the name of another curve",
        run="plan r.yaml rewards[0].name=mean",
        names="a reward cannot be called 'mean'",
        way="name it otherwise",
    ),
    Case(
        wrong="A rule of your own that is a function",
        run="plan r.yaml update.rule=my.py:right",
        names="update.rule = 'my.py:right': the function 'right' is no subclass of",
        way="derive one from it (docs/your_own_rule.md)",
    ),
    Case(
        wrong="The reward returns text",
        run=SCORE,
        make=_scored("def right(completion): return 'good'\n"),
        names="reward 'right' returned 'good' (str)",
        way="convert it, for example with float(text)",
        exit=1,
    ),
    Case(
        wrong="The reward returns NaN",
        run=SCORE,
        make=_scored("def right(completion): return float('nan')\n"),
        names="reward 'right' returned nan (float)",
        way="expected a finite number, None",
        exit=1,
    ),
    Case(
        wrong="The reward returns a list for one sample",
        run=SCORE,
        make=_scored("def right(completion): return [1, 2]\n"),
        names="reward 'right' returned [1, 2] (list)",
        way="return one number, or rlkl.Reward",
        exit=1,
    ),
    Case(
        wrong="The reward of a batch returns too few numbers",
        run=SCORE,
        make=_scored("def right(completions): return []\n"),
        names="reward 'right' returned [] (list)",
        way="expected a list with one reward for each of 1 samples",
        exit=1,
    ),
    Case(
        wrong="The reward raises on a sample",
        run=SCORE,
        make=_scored("def right(completion): return 1 / 0\n"),
        names="reward 'right' raised ZeroDivisionError on prompt row-0",
        way="completion '2': division by zero",
        exit=1,
    ),
    Case(
        wrong="The rows of `rlkl score` have no completion",
        run=SCORE,
        names="row-0 has no column 'completion' with a text",
        way="available: answer, prompt",
    ),
    Case(
        wrong="`rlkl score` gets a reward that reads token ids, and no tokenizer",
        run=SCORE,
        make=_scored("def right(completion_ids): return len(completion_ids)\n"),
        names="reward 'right' reads 'completion_ids'",
        way="give --tokenizer PATH",
    ),
    Case(
        wrong="The tokenizer of `rlkl score` does not exist",
        run=f"{SCORE} --tokenizer nowhere",
        names="--tokenizer nowhere: cannot be loaded",
        way="expected a Hugging Face folder",
    ),
]
