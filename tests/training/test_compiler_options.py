"""What a step's compiler is told on each kind of device."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from spanbert_jax.training.compiler_options import step_options


def mesh_of(platform: str, kind: str, data: int) -> Any:
    devices = np.array([SimpleNamespace(platform=platform, device_kind=kind)] * data, dtype=object)
    return SimpleNamespace(devices=devices.reshape(data, 1, 1), shape={"data": data, "fsdp": 1, "model": 1})


@pytest.mark.parametrize("data", [1, 8])
def test_a_gpus_products_are_never_tried_in_triton(data: int) -> None:
    assert step_options(mesh_of("gpu", "NVIDIA H200", data))["xla_gpu_enable_triton_gemm"] is False


def test_gradients_are_reduced_beside_arithmetic_where_several_known_tpus_have_them_to_reduce() -> None:
    for kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite"):
        assert step_options(mesh_of("tpu", kind, 2))["xla_enable_async_all_reduce"] is True
        assert step_options(mesh_of("tpu", kind, 1)) is None
    assert step_options(mesh_of("tpu", "TPU v99", 2)) is None


def test_a_cpu_keeps_the_defaults() -> None:
    assert step_options(mesh_of("cpu", "cpu", 4)) is None


def test_a_gpus_options_are_ones_that_this_xla_knows() -> None:
    options = step_options(mesh_of("gpu", "NVIDIA H200", 1))
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1.0) == 2
