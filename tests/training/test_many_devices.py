"""Four devices in one process: one reduction a step, divided moments, and the update of one device."""

import json
from typing import Any

import numpy as np
import pytest

from tests.support.devices import on_four_devices
from tests.support.four_devices import CASES, EXTENDED_CASES


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    """What `four_devices` measures."""
    script = "import json; from tests.support.four_devices import measured; print(json.dumps(measured()))"
    return json.loads(on_four_devices(script))


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Between two cases' parameters after the last step."""
    pairs = zip(one["params"], other["params"], strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("one", "bfloat16")])
def test_devices_microbatches_and_divided_moments_change_nothing_but_rounding(cases: dict[str, Any], name: str) -> None:
    np.testing.assert_allclose(cases[name]["losses"], cases["one"]["losses"], rtol=1e-6)
    assert 0 <= largest_difference(cases[name], cases["one"]) < 1e-6


def test_pairs_and_extensions_give_the_same_metrics_and_parameters_on_every_mesh() -> None:
    script = "import json; from tests.support.four_devices import extended; print(json.dumps(extended()))"
    cases = json.loads(on_four_devices(script))
    one = cases["one"]
    assert {"nsp_loss", "nsp_correct", "nsp_count", "nsp_class_0", "nsp_class_1"} <= set(one["sums"])
    for name in EXTENDED_CASES:
        assert cases[name]["sums"] == one["sums"]
        np.testing.assert_allclose(cases[name]["losses"], one["losses"], rtol=1e-6, err_msg=name)
        assert largest_difference(cases[name], one) < 1e-6, name


def over_data(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The collectives of more than a step's sums."""
    return [found for found in case["collectives"] if found["elements"] > 100]


def test_gradients_cross_the_data_axis_once_a_step_outside_the_loop_over_microbatches(cases: dict[str, Any]) -> None:
    parameters = sum(map(len, cases["data"]["params"]))
    (reduction,) = over_data(cases["data"])
    assert (reduction["kind"], reduction["loop"]) == ("all-reduce", False)
    sums = reduction["elements"] - parameters
    assert 0 < sums < 100  # scalars: one reduction carries both
    assert not any(found["loop"] for found in cases["data"]["collectives"])


def test_with_a_model_axis_the_loop_holds_collectives_of_that_axis_alone(cases: dict[str, Any]) -> None:
    inside = {found["groups"] for found in cases["model"]["collectives"] if found["loop"]}
    assert inside == {"[2,2]<=[4],"}  # devices 0, 1 and 2, 3: neighbours, as the model axis is the last
    outside = [found for found in over_data(cases["model"]) if not found["loop"]]
    assert [found["groups"] for found in outside] == ["{{0,2},{1,3}},"]


def test_divided_moments_take_scattered_gradients_and_a_quarter_of_the_memory(cases: dict[str, Any]) -> None:
    zero = cases["zero"]
    parameters = sum(map(len, zero["params"]))
    moved = {
        kind: sum(found["elements"] for found in zero["collectives"] if found["kind"] == kind)
        for kind in ("reduce-scatter", "all-gather", "all-reduce")
    }
    assert moved["reduce-scatter"] * 4 == moved["all-gather"] == parameters
    assert moved["all-reduce"] < 200  # sums and the gradient's norm
    assert not any(found["loop"] for found in zero["collectives"])
    assert zero["moments_held"] * 4 == zero["moments"] == cases["one"]["moments"] == 2 * parameters
    assert cases["data"]["moments_held"] == cases["data"]["moments"]


def test_a_bfloat16_reduction_stays_within_its_rounding(cases: dict[str, Any]) -> None:
    """bfloat16 keeps 8 bits: a gradient is off by up to 2^-8, of which a step moves a parameter by at most 1e-2."""
    one, narrow = cases["one"], cases["bfloat16"]
    np.testing.assert_allclose(narrow["losses"], one["losses"], rtol=2e-3)
    assert 1e-6 < largest_difference(narrow, one) < len(one["losses"]) * 1e-2 * 2**-4


def test_the_checksums_of_a_divided_state_are_those_of_whole_arrays(cases: dict[str, Any]) -> None:
    on_the_devices, on_the_host = cases["fsdp"]["checksums"]
    assert on_the_devices == on_the_host and len(set(on_the_host.values())) > 60
    assert {name.split("/")[0] for name in on_the_host} == {"params", "opt_state", "step"}
