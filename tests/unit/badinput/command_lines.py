"""Cases: commands and their options."""

from __future__ import annotations

from tests.unit.badinput.case import Case, Place, with_file
from tests.unit.badinput.checkpoints import _run, _two_runs

EVAL = "eval base --data rows.jsonl --reward my.py:right --engine hf"


def _scorable(place: Place) -> None:
    place.rows({"prompt": "1+1=", "completion": "2", "answer": "2"})


CASES = [
    Case(
        wrong="A command that there is not",
        run="trian r.yaml",
        names="no command is called 'trian'",
        way="did you mean 'train'?",
    ),
    Case(
        wrong="No command",
        run=(),
        names="the following arguments are required: COMMAND",
        way="rlkl --help shows what there is",
    ),
    Case(
        wrong="An option that there is not",
        run="train r.yaml --step 3",
        names="unrecognized arguments: --step 3",
        way="rlkl --help shows what there is",
    ),
    Case(
        wrong="An option whose number is text",
        run="plan r.yaml --gpus many",
        names="argument --gpus: invalid int value: 'many'",
        way="rlkl plan --help shows what there is",
    ),
    Case(
        wrong="`rlkl train` without a recipe",
        run="train steps=3",
        names="rlkl train needs a recipe first",
        way="(rlkl train RECIPE ...), or --resume RUN_DIR",
    ),
    Case(
        wrong="Two recipes",
        run="plan r.yaml other.yaml",
        names="override 'other.yaml'",
        way="expected section.key=value",
    ),
    Case(
        wrong="A GPU that the table does not have",
        run="plan r.yaml --gpus 8 --gpu H1000",
        names="--gpu H1000 is not in the table",
        way="did you mean 'H100'?",
    ),
    Case(
        wrong="Plan for no GPU",
        run="plan r.yaml --gpus 0",
        names="--gpus 0",
        way="expected 1 or more",
    ),
    Case(
        wrong="A mean length above the recipe's limit",
        run="plan r.yaml --gpus 8 --prompt-tokens 400",
        names="--prompt-tokens 400",
        way="at most at the limit of the recipe, 16",
    ),
    Case(
        wrong="Measured seconds of a folder that is no run",
        run="plan r.yaml --measured base",
        names="--measured base: no recipe.yaml there",
        way="expected the folder of a run",
    ),
    Case(
        wrong="`rlkl eval` without data",
        run="eval base --engine hf",
        names="rlkl eval needs data",
        way="--data FILE, --recipe RECIPE, or the folder of a run",
    ),
    Case(
        wrong="`rlkl eval` without rewards",
        run="eval base --engine hf --data rows.jsonl",
        names="rlkl eval needs rewards",
        way="--reward FILE:FUNCTION",
    ),
    Case(
        wrong="An engine that there is not",
        run="eval base --data rows.jsonl --reward my.py:right --engine tpu",
        names="rollout.engine = 'tpu'",
        way="expected vllm, hf, or package.module:Class",
    ),
    Case(
        wrong="No samples",
        run=f"{EVAL} --samples 0",
        names="eval.samples = 0",
        way="expected a whole number >= 1",
    ),
    Case(
        wrong="A key of the training in `rlkl eval`",
        run=f"{EVAL} learner.lr=1",
        names="learner.lr does nothing in rlkl eval",
        way="available: cluster, data, eval",
    ),
    Case(
        wrong="The KL to a reference at another temperature than 1",
        run=f"{EVAL} --reference base --temperature 0.5",
        names="--reference base with --temperature 0.5",
        way="leave one of the two out",
    ),
    Case(
        wrong="Samples of an evaluation as CSV",
        run=f"{EVAL} --out samples.csv",
        names="--out samples.csv",
        way="expected a file that ends with .parquet",
    ),
    Case(
        wrong="A file to write is below a file",
        run=f"{EVAL} --out my.py/samples.parquet",
        names="--out my.py/samples.parquet cannot be written",
        way="is a file, so it cannot hold others; choose another folder",
    ),
    Case(
        wrong="A file to write is a folder",
        run="score --reward my.py:right --data rows.jsonl --out base",
        make=_scorable,
        names="--out base cannot be written: it is a folder",
        way="name a file in it",
    ),
    Case(
        wrong="A recipe and `--reward` in `rlkl score`",
        run="score r.yaml --reward my.py:right --data rows.jsonl",
        names="rlkl score takes a recipe or --reward, not both",
        way="got the recipe r.yaml",
    ),
    Case(
        wrong="A prompt without text",
        run=("generate", "base", " ", "--engine", "hf"),
        names="the prompt cannot be used",
        way="blank text",
    ),
    Case(
        wrong="A seed below 0",
        run="generate base hi --engine hf --seed -1",
        names="seed = -1",
        way="expected a whole number >= 0",
    ),
    Case(
        wrong="A sweep without seeds",
        run="sweep r.yaml update.kl_coef=[0,1] --dry-run",
        names="sweep of r.yaml: no seeds",
        way="give seeds (a list, or how many)",
    ),
    Case(
        wrong="A sweep that there is not",
        run="sweep rlues --dry-run",
        names="no sweep file and no recipe is called 'rlues'",
        way="did you mean 'rules'?",
    ),
    Case(
        wrong="One value of a sweep is not allowed",
        run="sweep r.yaml update.kl_coef=[0,-1] seeds=2 --dry-run",
        names="update.kl_coef = -1",
        way="expected a number >= 0",
    ),
    Case(
        wrong="A sweep file without arms",
        run="sweep s.yaml --dry-run",
        make=with_file("s.yaml", "name: s\nseeds: 2\narms: {}\n"),
        names="s.yaml: arms = {}",
        way="expected one entry or more, NAME: VALUE",
    ),
    Case(
        wrong="No runs at a time",
        run="sweep r.yaml update.kl_coef=[0,1] seeds=2 --dry-run --jobs 0",
        names="--jobs 0",
        way="1 or more",
    ),
    Case(
        wrong="KLs that are no numbers",
        run="compare a b --at-kl low",
        make=_two_runs,
        names="--at-kl low",
        way="expected numbers with commas between them",
    ),
    Case(
        wrong="Steps of a fit that nobody asked for",
        run="compare a b --at-steps 10",
        make=_two_runs,
        names="--at-steps 10",
        way="needs --over steps",
    ),
    Case(
        wrong="The picture of a comparison as .doc",
        run="compare a b --pdf x.doc",
        make=_two_runs,
        names="--pdf x.doc",
        way="expected a name that ends with .pdf, .svg, .png",
    ),
    Case(
        wrong="A report that is written again every 0 s",
        run="report old --watch 0",
        make=_run("old"),
        names="--watch 0",
        way="expected a whole number, 1 or more",
    ),
    Case(
        wrong="A repository without a valid name",
        run=("push", "old", "me/my policy", "--dry-run"),
        make=_run("old"),
        names="'me/my policy' cannot name a repository",
        way="expected USER/NAME",
    ),
    Case(
        wrong="A key that there is not",
        run="keys optimzer",
        names="no key is called 'optimzer'",
        way="did you mean 'learner.optimizer'?",
    ),
    Case(
        wrong="A W&B project without its owner",
        run="dashboard rlkl --print",
        names="'rlkl' names no W&B project",
        way="expected ENTITY/PROJECT",
    ),
    Case(
        wrong="`--address` without `--cluster`",
        run="doctor --address 127.0.0.1:6379",
        names="--address goes with --cluster",
        way="rlkl doctor --cluster",
    ),
]
