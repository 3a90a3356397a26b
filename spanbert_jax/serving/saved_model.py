"""An exported model as a TensorFlow SavedModel: a signature for each function, and their parameters as variables.

Invariant: one signature serves every batch, every length up to the model's, and each of `artefact.PLATFORMS`. The
functions import TensorFlow; importing this module does not.
"""

import importlib
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from spanbert_jax.serving.artefact import OUTPUTS, PLATFORMS, Call, Model


def write_saved_model(model: Model, directory: Path) -> None:
    """A SavedModel with a signature a function, and the parameters as variables that the signatures share."""
    importlib.import_module("spanbert_jax.tensorflow_settings")  # before TensorFlow is imported
    import tensorflow as tf
    from jax.experimental import jax2tf

    module = tf.Module()
    module.params = {name: tf.Variable(value, trainable=False, name=name) for name, value in model.params.items()}
    shapes = {"input_ids": [None, None], "lengths": [None], "token_type_ids": [None, None]}
    specs = [tf.TensorSpec(shape, tf.int32, name) for name, shape in shapes.items()]

    def signature(name: str, function: Call) -> Any:
        converted = jax2tf.convert(
            function,
            polymorphic_shapes=[None, "batch, length", "batch", "batch, length"],
            polymorphic_constraints=[f"length <= {model.max_length}"],
            with_gradient=False,
            native_serialization_platforms=PLATFORMS,
        )

        @tf.function(input_signature=specs, autograph=False)
        def call(input_ids: Any, lengths: Any, token_type_ids: Any) -> dict[str, Any]:
            return {OUTPUTS[name]: converted(module.params, input_ids, lengths, token_type_ids)}

        return call

    signatures = {name: signature(name, function) for name, function in model.functions.items()}
    # JAX writes erf as a composite, and TensorFlow 2.21 infers no symbolic shapes in one; it writes erfc out.
    with mock.patch.object(jax.lax, "erf", lambda x: 1 - jax.lax.erfc(x)):
        tf.saved_model.save(module, str(directory), signatures)


def read_saved_model(directory: Path) -> dict[str, Call]:
    """The functions of a directory that `write_saved_model` wrote, with their parameters."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(directory))

    def call(name: str) -> Call:
        names = ("input_ids", "lengths", "token_type_ids")
        return lambda *inputs: loaded.signatures[name](**dict(zip(names, inputs, strict=True)))[OUTPUTS[name]]

    return {name: call(name) for name in loaded.signatures}


def tensorflow_version() -> str:
    """The version that a SavedModel written here is for."""
    import tensorflow as tf

    return tf.__version__
