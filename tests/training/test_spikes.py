"""Loss spikes are found, and neither the noise of a run nor its falling loss is taken for one."""

import json

import numpy as np
import pytest

from spanbert_jax.training.spikes import FEWEST, HISTORY, THRESHOLD, SpikeFinder


def found(losses: np.ndarray, window: int = 50) -> list[int]:
    """The numbers of the spikes among all losses, given in windows."""
    finder = SpikeFinder()
    return [
        start + spike.place
        for start in range(0, len(losses), window)
        for spike in finder.find(losses[start : start + window].tolist())
    ]


def pretraining(steps: int, seed: int = 0) -> np.ndarray:
    """A loss that falls from 10 to about 3, with the noise of a batch of many rows."""
    return 3 + 7 * np.exp(-np.arange(steps) / 300) + np.random.default_rng(seed).normal(0, 0.04, steps)


def test_a_loss_far_above_those_before_is_a_spike_and_its_neighbours_are_none() -> None:
    losses = pretraining(3000)
    losses[[700, 701, 2222]] = 7.0, 6.5, 5.0
    assert found(losses) == [700, 701, 2222]


def test_many_spikes_in_a_row_hide_none_of_themselves() -> None:
    losses = pretraining(2000)
    losses[1000 : 1000 + HISTORY // 4] = 6.0
    assert found(losses) == list(range(1000, 1000 + HISTORY // 4))


@pytest.mark.parametrize("spread", [0.04, 0.5, 1.5], ids=["many_rows", "some_rows", "few_rows"])
def test_the_noise_of_batches_of_any_size_is_no_spike(spread: float) -> None:
    """The losses of few rows are spread over orders of magnitude, as in fine-tuning."""
    assert found(np.exp(np.random.default_rng(1).normal(-3, spread, 20_000))) == []
    assert found(pretraining(3000)) == []


def test_equal_losses_and_a_loss_of_zero_make_nothing_else_a_spike() -> None:
    assert found(np.full(500, 2.0) + 1e-3 * (np.arange(500) % 2)) == []
    assert found(np.zeros(500)) == []


def test_no_loss_is_judged_before_enough_are_known() -> None:
    losses = np.full(FEWEST + 10, 2.0)
    losses[FEWEST - 1], losses[FEWEST + 5] = 90.0, 90.0
    assert found(losses, 10) == [FEWEST + 5]


def test_a_finder_that_goes_on_from_anothers_losses_finds_the_same() -> None:
    losses = pretraining(600)
    losses[[250, 555]] = 9.0, 8.0
    first = SpikeFinder()
    for start in range(0, 300, 50):
        first.find(losses[start : start + 50].tolist())
    second = SpikeFinder(json.loads(json.dumps(first.losses)))
    for start in range(300, 600, 50):
        window = losses[start : start + 50].tolist()
        assert first.find(window) == second.find(window)


def test_z_and_median_are_those_of_the_logarithms_before() -> None:
    before = np.exp(np.random.default_rng(2).normal(1.0, 0.1, 400))
    finder = SpikeFinder()
    assert finder.find(before.tolist()) == []
    (spike,) = finder.find([2.5, 40.0, 2.7])
    logarithms, half = np.sort(np.log(before[-HISTORY:])), HISTORY // 2
    median = logarithms[half - 1 : half + 1].mean()
    distances = np.sort(np.abs(logarithms - median))
    assert spike.place == 1 and spike.median == pytest.approx(np.exp(median))
    assert spike.z == pytest.approx((np.log(40) - median) / (1.4826 * distances[half - 1 : half + 1].mean()))
    assert spike.z > THRESHOLD
