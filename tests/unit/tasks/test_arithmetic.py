"""The world of additions."""

from __future__ import annotations

import pytest

from rlkl.system.compat import ensure_torch_extras
from rlkl.tasks import task_rows
from rlkl.tasks.arithmetic import Arithmetic
from rlkl.tasks.characters import ALPHABET, character_tokenizer

ensure_torch_extras()


def test_rows_are_all_additions_up_to_the_largest_sum():
    rows = Arithmetic(largest_sum=2).rows()
    assert [row["prompt"] for row in rows] == ["0+0=", "0+1=", "0+2=", "1+0=", "1+1=", "2+0="]
    assert [row["answer"] for row in rows] == ["0", "1", "2", "1", "2", "2"]
    assert len(Arithmetic().rows()) == 21 * 22 // 2


def test_uneven_rows_add_larger_sums_to_the_training_rows_alone():
    known, both = (task_rows(f"arithmetic{part}/train") for part in ("", "/uneven"))
    assert [row for row in both if int(row["answer"]) <= 20] == known
    assert sorted({int(row["answer"]) for row in both}) == list(range(31))
    assert len(both) - len(known) == 31 * 32 // 2 - 21 * 22 // 2
    assert task_rows("arithmetic/uneven/test") == task_rows("arithmetic/test")


@pytest.mark.parametrize(("completion", "expected"), [("19", 1.0), ("19 ", 0.0), ("119", 0.0), ("18", 0.0), ("", 0.0)])
def test_gold_reward_wants_exactly_the_answer(completion, expected):
    assert Arithmetic().reward("7+12=", completion, "19") == expected


def test_tokenizer_keeps_every_character_and_adds_nothing():
    tokenizer = character_tokenizer()
    assert len(tokenizer.encode(ALPHABET)) == len(ALPHABET)
    assert tokenizer.decode(tokenizer.encode(ALPHABET)) == ALPHABET
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]
    ids = [*tokenizer.encode("19"), tokenizer.eos_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "19"


def test_half_of_the_demonstrations_are_wrong_and_wrong_answers_are_spread_evenly():
    import torch

    world = Arithmetic(wrong_fraction=0.5)
    rows = world.rows()
    row_B = torch.full((20_000,), 5)  # 0+5=
    demonstrated_B = world._demonstrated(rows, row_B, torch.Generator().manual_seed(0))
    shares = torch.bincount(demonstrated_B, minlength=21) / 20_000
    assert rows[5]["answer"] == "5"
    assert shares[5].item() == pytest.approx(0.5, abs=0.02)
    wrong = torch.cat([shares[:5], shares[6:]])
    torch.testing.assert_close(wrong, torch.full((20,), 0.025), atol=0.005, rtol=0)


def test_building_twice_gives_the_same_weights_and_leaves_the_global_generator_alone(tmp_path):
    import torch
    from safetensors.torch import load_file

    world = Arithmetic(steps=2, batch_size=8)
    torch.manual_seed(3)
    expected_draw = torch.rand(4)
    torch.manual_seed(3)
    world.build_base_model(tmp_path / "first")
    assert torch.equal(torch.rand(4), expected_draw)
    world.build_base_model(tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_built_folder_loads_with_transformers_auto_classes(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    Arithmetic(steps=1, batch_size=4).build_base_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id == 1
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert tokenizer.encode("7+12=") == character_tokenizer().encode("7+12=")


def test_teaching_raises_the_probability_of_right_answers(tmp_path):
    """From 1 in 98 characters to more than 1 in 4 for the answers of an easy world, all demonstrations right."""
    import torch
    from transformers import AutoModelForCausalLM

    world = Arithmetic(largest_sum=3, wrong_fraction=0.0, steps=30, batch_size=32)
    world.build_base_model(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), character_tokenizer()
    probabilities = []
    for row in world.rows():
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer.encode(row["prompt"])])).logits[0, -1]
        probabilities.append(logits.softmax(-1)[tokenizer.encode(row["answer"])[0]])
    assert torch.stack(probabilities).mean() > 0.25
