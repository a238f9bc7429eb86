from rlkl.rollout.collect import Draw, build_requests, rollout_metrics, share_out, with_text
from rlkl.types import Completion, Prompt, Rollout, RolloutGroup


def draw(position: int, prompt_id: str = "a") -> Draw:
    return Draw(prompt=Prompt(id=prompt_id, text="", token_ids=(7, position)), position=position)


def test_each_sample_of_each_draw_has_a_seed_of_its_own():
    requests = build_requests([draw(0), draw(1), draw(2, "b")], samples=4, seed=0)

    assert [request.prompt_token_ids for request in requests[::4]] == [(7, 0), (7, 1), (7, 2)]
    assert len({request.seed for request in requests}) == 12
    assert build_requests([draw(1)], samples=4, seed=0) == requests[4:8]
    assert build_requests([draw(1)], samples=4, seed=1) != requests[4:8]


def test_work_is_shared_out_in_order_and_nearly_evenly():
    requests = build_requests([draw(0)], samples=7, seed=0)

    parts = share_out(requests, 3)

    assert [len(part) for part in parts] == [3, 2, 2]
    assert [request for part in parts for request in part] == requests
    assert [len(part) for part in share_out(requests[:1], 2)] == [1, 0]


def test_completions_get_their_text():
    completions = [Completion(token_ids=(n,), logprobs=(-1.0,), finish_reason="stop") for n in range(4)]

    decoded = with_text(completions, lambda ids: [f"<{row[0]}>" for row in ids])

    assert [completion.text for completion in decoded] == ["<0>", "<1>", "<2>", "<3>"]
    assert [completion.token_ids for completion in decoded] == [(n,) for n in range(4)]


def test_no_completion_needs_no_text():
    def decode(rows: list[list[int]]) -> list[str]:  # as a Hugging Face tokenizer does
        return ["".join(map(str, row)) for row in rows] or [""]

    assert with_text([], decode) == []


def test_metrics_by_hand():
    def rollout(reward: float, text: str, length: int, finish: str) -> Rollout:
        return Rollout(
            sample_index=0,
            completion=Completion(
                token_ids=(5,) * length,
                logprobs=(-1.0,) * length,
                finish_reason="length" if finish == "length" else "stop",
                text=text,
            ),
            reward=reward,
            components={"gold": reward / 2},
            weights_version=0,
        )

    groups = [
        RolloutGroup(
            prompt=Prompt(id="a", text="", token_ids=(1,)),
            rollouts=(rollout(1.0, "x", 2, "stop"), rollout(0.0, "", 1, "stop")),
        ),
        RolloutGroup(
            prompt=Prompt(id="b", text="", token_ids=(1,)),
            rollouts=(rollout(1.0, "y", 4, "length"), rollout(1.0, "z", 1, "stop")),
        ),
    ]

    assert rollout_metrics(groups) == {
        "reward/mean": 0.75,
        "reward/std": 0.25,  # 0.5 in the first group, 0 in the second
        "reward/gold": 0.375,
        "reward/failed": 0.0,
        "reward/dropped": 0.0,
        "rollout/length_mean": 2.0,
        "rollout/truncated_fraction": 0.25,
        "rollout/empty_fraction": 0.25,
        "rollout/equal_fraction": 0.5,
    }
