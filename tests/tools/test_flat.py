"""benchmarks/flat.py: growth is told from noise."""

import numpy as np
import pytest

from benchmarks.flat import QUANTITIES, Sample, bound_of, table, trend, trends_of

STEPS = np.arange(20, 2001, 10)


def samples(memory_growth: float = 0.0, slower: float = 0.0, leaked_files: int = 0) -> list[Sample]:
    """A run of 2,000 steps with noise. Growth is that of 1,000 steps, in MB and as a share of a step's time."""
    rng = np.random.default_rng(0)
    memory = 900 - 300 * np.exp(-STEPS / 100) + memory_growth * STEPS / 1000 + rng.normal(0, 3, len(STEPS))
    files = 40 + 8 * (STEPS % 50 < 20) + leaked_files * STEPS // 1000
    time = 5 * (1 + slower * STEPS / 1000) + rng.exponential(0.3, len(STEPS)) + 20 * (STEPS % 100 == 0)
    return [Sample(int(s), m, int(f), 90, t) for s, m, f, t in zip(STEPS, memory, files, time, strict=True)]


def verdicts(**grown: float) -> dict[str, str]:
    return {name: one.verdict(bound_of(name, one)) for name, one in trends_of(samples(**grown)).items()}


def test_noise_a_warm_up_and_the_spikes_of_saves_and_evaluations_are_no_growth() -> None:
    assert verdicts() == dict.fromkeys(QUANTITIES, "flat")
    assert table(trends_of(samples())).count("| flat |") == len(QUANTITIES)


@pytest.mark.parametrize(
    ("grown", "name"),
    [({"memory_growth": 10.0}, "memory"), ({"leaked_files": 10}, "files"), ({"slower": 0.3}, "time")],
)
def test_a_run_that_keeps_what_it_needs_no_more_is_found(grown: dict[str, float], name: str) -> None:
    assert verdicts(**grown) == dict.fromkeys(QUANTITIES, "flat") | {name: "grows"}


def test_a_measurement_that_would_not_show_the_bound_is_not_passed() -> None:
    noisy = np.random.default_rng(0).normal(900, 60, len(STEPS))
    found = trend(STEPS.tolist(), noisy.tolist(), np.mean)
    assert found.verdict(QUANTITIES["memory"].bound) == "too noisy to tell"
