"""The Pallas kernels that a function calls, and the arrays of its program. Nothing is compiled or run."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

Shape = tuple[int, ...]


def kernel_calls(function: Callable[..., Any], *arguments: Any) -> list[list[Shape]]:
    """For each call of a Pallas kernel in a function's program, the shapes of the call's inputs on one device."""
    equations = _equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    return [_shapes(equation.invars) for equation in equations if equation.primitive.name == "pallas_call"]


def arrays_between(function: Callable[..., Any], *arguments: Any, dtypes: tuple[Any, ...] = ()) -> set[Shape]:
    """The shapes of all arrays (of `dtypes`, where some are given) that a function's program makes outside of its
    kernels."""
    equations = _equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    made = (variable.aval for equation in equations for variable in equation.outvars)
    return {aval.shape for aval in made if hasattr(aval, "shape") and (not dtypes or aval.dtype in dtypes)}


def cuda_calls(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """The targets of the custom calls in a function's program for an NVIDIA GPU; the machine needs no GPU."""
    return _calls("cuda", function, *arguments)


def tpu_calls(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """The same in a function's program for a TPU."""
    return _calls("tpu", function, *arguments)


def _calls(platform: str, function: Callable[..., Any], *arguments: Any) -> list[str]:
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    return re.findall(r"custom_call @([^\s(]+)", text)


def _shapes(variables: Any) -> list[Shape]:
    return [variable.aval.shape for variable in variables]


def _equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """The equations of a program and of the programs inside it, without those inside kernels."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "pallas_call":
            for part in jax.tree.leaves(tuple(equation.params.values()), is_leaf=_is_program):
                if _is_program(part):
                    yield from _equations(part.jaxpr if isinstance(part, ClosedJaxpr) else part)


def _is_program(part: Any) -> bool:
    return isinstance(part, (Jaxpr, ClosedJaxpr))
