"""Which kernels "auto" means, and what is refused."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from spanbert_jax.config import (
    ATTENTION_KERNELS,
    DROPPING_KERNELS,
    POINTWISE_KERNELS,
    WINDOW_KERNELS,
    ComputeConfig,
    Config,
    ModelConfig,
)
from spanbert_jax.config_check import check
from spanbert_jax.errors import UserError
from spanbert_jax.model.attention import FLASH
from spanbert_jax.model.kernels.choice import choose_attention, choose_pointwise
from spanbert_jax.model.pretraining_heads import pretraining_model

BF16, F32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


def gpu(capability: str) -> Callable[..., list[SimpleNamespace]]:
    return lambda backend: [SimpleNamespace(compute_capability=capability)]


def assert_runs(choose: Callable[[str], str], field: str, kernels: tuple[str, ...], runs: list[str]) -> None:
    """`runs` alone can be named, and "auto" is the first of them."""
    assert choose("auto") == runs[0]
    for name in kernels:
        if name in runs:
            assert choose(name) == name
        else:
            with pytest.raises(UserError, match=rf"config.compute.{field} is '{name}', which needs .*'auto' or 'xla'"):
                choose(name)


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "capability", "runs"),
    [
        ("cpu", F32, 64, "", ["xla"]),
        ("cpu", BF16, 64, "", ["xla"]),
        ("tpu", BF16, 64, "", ["splash", "xla"]),
        ("tpu", F32, 64, "", ["xla"]),
        ("gpu", BF16, 64, "9.0", ["triton", "cudnn", "xla"]),
        ("gpu", BF16, 64, "12.0", ["triton", "cudnn", "xla"]),
        ("cuda", BF16, 64, "8.0", ["triton", "cudnn", "xla"]),
        ("gpu", BF16, 16, "9.0", ["triton", "cudnn", "xla"]),
        ("gpu", BF16, 32, "9.0", ["triton", "cudnn", "xla"]),
        ("gpu", BF16, 128, "9.0", ["triton", "cudnn", "xla"]),
        ("gpu", BF16, 8, "9.0", ["cudnn", "xla"]),
        ("gpu", BF16, 96, "9.0", ["cudnn", "xla"]),
        ("gpu", BF16, 60, "9.0", ["xla"]),
        ("gpu", BF16, 256, "9.0", ["xla"]),
        ("gpu", BF16, 64, "7.5", ["xla"]),
        ("gpu", BF16, 64, "gfx90a", ["xla"]),
        ("gpu", F32, 64, "9.0", ["xla"]),
    ],
)
def test_auto_is_the_fastest_attention_that_runs_there_and_what_does_not_is_refused(
    monkeypatch: pytest.MonkeyPatch, platform: str, dtype: jnp.dtype, head_dim: int, capability: str, runs: list[str]
) -> None:
    monkeypatch.setattr(jax, "local_devices", gpu(capability))
    assert_runs(lambda name: choose_attention(name, platform, dtype, head_dim), "attention", ATTENTION_KERNELS, runs)


@pytest.mark.parametrize(
    ("platform", "dtype", "capability", "runs"),
    [
        ("cpu", BF16, "", ["xla"]),
        ("tpu", BF16, "", ["xla"]),
        ("gpu", BF16, "9.0", ["triton", "xla"]),
        ("cuda", BF16, "8.0", ["triton", "xla"]),
        ("gpu", BF16, "7.5", ["xla"]),
        ("gpu", BF16, "gfx90a", ["xla"]),
        ("gpu", F32, "9.0", ["xla"]),
    ],
)
def test_auto_is_the_fastest_pointwise_kernel_that_runs_there_and_what_does_not_is_refused(
    monkeypatch: pytest.MonkeyPatch, platform: str, dtype: jnp.dtype, capability: str, runs: list[str]
) -> None:
    monkeypatch.setattr(jax, "local_devices", gpu(capability))
    assert_runs(lambda name: choose_pointwise(name, platform, dtype), "pointwise", POINTWISE_KERNELS, runs)


def test_every_kernel_of_attention_can_be_chosen_and_called() -> None:
    assert set(ATTENTION_KERNELS) == {*FLASH, "xla"}
    assert {*DROPPING_KERNELS, *WINDOW_KERNELS} <= set(ATTENTION_KERNELS)


def test_a_program_for_a_gpu_that_is_elsewhere_gets_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(backend: str) -> list[Any]:
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", none)
    assert choose_attention("auto", "gpu", BF16, 64) == choose_pointwise("auto", "gpu", BF16) == "triton"
    assert choose_attention("auto", "gpu", BF16, 80) == "cudnn"


@pytest.mark.parametrize(
    ("platform", "attention", "pointwise"),
    [("tpu", "splash", "xla"), ("gpu", "triton", "triton"), ("cpu", "xla", "xla")],
)
def test_the_model_is_made_with_the_kernels_of_its_platform(
    monkeypatch: pytest.MonkeyPatch, platform: str, attention: str, pointwise: str
) -> None:
    monkeypatch.setattr(jax, "local_devices", gpu("9.0"))
    compute = pretraining_model(Config(), 131, platform).compute
    assert (compute.attention, compute.pointwise) == (attention, pointwise)


@pytest.mark.parametrize("named", [{"attention": "splash"}, {"attention": "triton"}, {"pointwise": "triton"}])
def test_a_kernel_that_is_named_and_cannot_run_says_what_it_needs(named: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"needs config\.compute\.dtype 'bfloat16', not 'float32'"):
        pretraining_model(Config(compute=ComputeConfig(**named)), 131, "cpu")


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
def test_a_kernel_without_attention_dropout_is_refused_where_the_model_has_some(kernel: str) -> None:
    config = Config(compute=ComputeConfig(attention=kernel))
    with pytest.raises(UserError, match=r"set config\.model\.attention_dropout=0, or config\.compute\.attention=xla"):
        check(config)
    check(dataclasses.replace(config, model=ModelConfig(attention_dropout=0.0)))


@pytest.mark.parametrize("kernel", ["triton", "xla", "auto"])
def test_a_kernel_with_attention_dropout_is_taken_where_the_model_has_some(kernel: str) -> None:
    check(Config(compute=ComputeConfig(attention=kernel)))


@pytest.mark.parametrize("field", ["attention", "pointwise"])
def test_a_kernel_that_does_not_exist_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=rf"compute\.{field}"):
        check(Config(compute=ComputeConfig(**{field: "fast"})))
