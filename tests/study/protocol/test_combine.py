"""Which techniques are tried together."""

from __future__ import annotations

from fake_training import Finished

from study.protocol.combine import combined_choice


def test_at_most_one_technique_a_slot_is_combined(compared: Finished) -> None:
    """Of each slot the arm with the best lower limit above 1 is combined; other models stay out."""
    with compared.open() as (_, state):
        assert combined_choice(state) == ["twice", "half-more"]
        state.experiment.known["half-more"] = state.experiment.known["half-more"].model_copy(
            update={"slot": "init"}
        )
        assert combined_choice(state) == ["twice"]
        update = {"different_model": True}
        state.experiment.known["twice"] = state.experiment.known["twice"].model_copy(update=update)
        assert combined_choice(state) == ["half-more"]
