"""The plan of a passkey test: depths and distances on a grid, and its cost."""

from __future__ import annotations

import pytest

from pigguf.evals.passkey_plan import PasskeyPlan, plan_passkey_test
from pigguf.evals.passkey_prompts import WORDING_NAMES, PasskeyPrompts
from pigguf.inference.engine import Model


@pytest.mark.parametrize("name", WORDING_NAMES)
@pytest.mark.parametrize(("window", "distances", "depths"), [(4096, 8, 3), (5000, 7, 7), (2048, 1, 1)])
def test_a_plan_fills_the_grid_and_leaves_room_for_the_answer(
    vocabulary: Model, name: str, window: int, distances: int, depths: int
) -> None:
    prompts = PasskeyPrompts(vocabulary, name)
    plan = plan_passkey_test(prompts, "98765", window, distances, depths)
    room = window - prompts.max_answer_tokens
    sentence = 30  # tokens of the longest, in this vocabulary
    assert [position.grid_tokens for position in plan.distances] == [
        window * i // distances for i in range(1, distances + 1)
    ]
    assert plan.depths[0].grid_tokens == plan.depths[0].n_sentences == 0
    for start in plan.depths:
        for distance in plan.distances_from(start):
            prompt = prompts.encode("98765", start.n_sentences, distance.n_sentences)
            assert len(prompt) == start.n_tokens + distance.n_tokens <= room
            # the key's first digit is at its position, and nowhere before it
            assert vocabulary.detokenize(prompt[start.n_tokens :]).startswith("9")
            assert "9" not in vocabulary.detokenize(prompt[: start.n_tokens])
        limit = room - start.n_tokens if start is plan.depths[0] else window - start.grid_tokens
        assert limit - sentence < plan.distances_from(start)[-1].n_tokens <= limit
    for start in plan.depths[1:]:
        assert start.grid_tokens - prompts.max_answer_tokens - sentence < start.n_tokens <= start.grid_tokens
    for distance in plan.distances[:-1]:
        assert distance.grid_tokens - sentence < distance.n_tokens <= distance.grid_tokens


def test_starts_lie_on_the_grid_of_the_distances(vocabulary: Model) -> None:
    plan: PasskeyPlan = plan_passkey_test(PasskeyPrompts(vocabulary, "paper"), "12345", 4096, 8, 3)
    assert [start.grid_tokens for start in plan.depths] == [
        0,
        1024,
        2560,
    ]  # steps 0, 8 / 3 and 16 / 3, whole ones
    assert [len(plan.distances_from(start)) for start in plan.depths] == [8, 6, 3]


def test_32_distances_cost_a_tenth_of_separate_prefills_and_less(vocabulary: Model) -> None:
    plan = plan_passkey_test(PasskeyPrompts(vocabulary, "paper"), "12345", 32768, 32, 1)
    separate = sum(plan.depths[0].n_tokens + distance.n_tokens for distance in plan.distances)
    assert plan.prefill_tokens(plan.depths[0]) < separate / 13
