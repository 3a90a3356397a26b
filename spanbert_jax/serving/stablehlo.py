"""An exported model as StableHLO, for JAX: one file for each function, and one for the parameters.

Invariant: one file serves every batch size, every length up to the model's, and each of `artefact.PLATFORMS`.
"""

from pathlib import Path

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file, save_file

from spanbert_jax.serving.artefact import PLATFORMS, Call, Model


def write_stablehlo(model: Model, directory: Path) -> None:
    """Writes a .stablehlo file for each function, and the parameters as params.safetensors."""
    batch, length = export.symbolic_shape("batch, length", constraints=[f"length <= {model.max_length}"])
    matrix, vector = (jax.ShapeDtypeStruct(shape, np.int32) for shape in ((batch, length), (batch,)))
    params = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in model.params.items()}
    for name, function in model.functions.items():
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(params, matrix, vector, matrix)
        (directory / f"{name}.stablehlo").write_bytes(exported.serialize())
    save_file(model.params, directory / "params.safetensors")


def read_stablehlo(directory: Path) -> dict[str, Call]:
    """The functions of a directory that `write_stablehlo` wrote, with their parameters."""
    params = jax.device_put(load_file(directory / "params.safetensors"))

    def load(path: Path) -> Call:
        call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
        return lambda *inputs: call(params, *inputs)

    return {path.stem: load(path) for path in directory.glob("*.stablehlo")}
