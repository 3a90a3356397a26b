"""Training some groups of parameters alone: the others have no gradient and no moments, and stay as they are."""

import json

import jax
import numpy as np
import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.training.step import trained_params
from tests.support.devices import on_four_devices
from tests.support.small_decoder import decoder_config
from tests.support.steps import states, training_of
from tests.support.synthetic import small_config


def test_the_others_stay_bit_for_bit_and_microbatches_change_nothing_but_rounding() -> None:
    found = []
    for count in (1, 2):
        train = {"only": "decoder", "accumulation": count}
        config = decoder_config("runs/tiny", train=train, optimizer={"eps": 1e-3})
        before = jax.tree.map(np.asarray, training_of(config).first())
        (*_, (after, sums)) = states(config, 3)
        for group, params in before["params"].items():
            pairs = zip(jax.tree.leaves(params), jax.tree.leaves(after["params"][group]), strict=True)
            same = [np.array_equal(*pair) for pair in pairs]
            assert all(same) == (group != "decoder"), group
        moments = [leaf.size for leaf in jax.tree.leaves(after["opt_state"]) if leaf.ndim]
        assert sum(moments) == 2 * sum(leaf.size for leaf in jax.tree.leaves(before["params"]["decoder"]))
        found.append((after["params"]["decoder"], sums))
    (one, one_sums), (two, two_sums) = found
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name in one_sums.keys() - {"positions"}:
        assert one_sums[name] == pytest.approx(two_sums[name], rel=1e-5), name
    assert {"decoder_loss", "decoder_end_loss"} < one_sums.keys() and "mlm_loss" not in one_sums


def test_devices_change_nothing_but_rounding() -> None:
    script = """
import json
from tests.support.four_devices import DECODER_CASES, decoder
print(json.dumps({name: decoder(dict(mesh)) for name, mesh in DECODER_CASES.items()}))
"""
    cases = json.loads(on_four_devices(script))
    one = cases.pop("one")
    for case in cases.values():
        np.testing.assert_allclose(case["losses"], one["losses"], rtol=1e-5)
        for a, b in zip(case["params"], one["params"], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert cases["all"]["moments_held"] * 2 <= cases["all"]["moments"] == one["moments"]


def test_a_group_that_the_model_lacks_and_random_parameters_that_would_stay_are_refused() -> None:
    with pytest.raises(UserError, match="only names 'decodr', and the model's groups are encoder, decoder; name one"):
        trained_params(small_config("runs/tiny", train={"only": "decodr"}), {"encoder": {}, "decoder": {}})
    with pytest.raises(UserError, match=r"config\.init_from is empty, so all other parameters would stay random"):
        small_config(train={"only": "decoder"})
