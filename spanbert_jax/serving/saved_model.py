"""An exported model as a TensorFlow SavedModel: one signature for each function, with the parameters as variables.

Invariant: one signature serves every batch size, every length up to the model's, and each of `artefact.PLATFORMS`.
Importing this module does not import TensorFlow; calling its functions does.
"""

import importlib
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from spanbert_jax.serving.artefact import OUTPUTS, PLATFORMS, Call, Model


def write_saved_model(model: Model, directory: Path) -> None:
    """Writes a SavedModel whose signatures, one for each function, share the parameters as variables."""
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
    # An exported program has erf as a composite operation, in which TensorFlow 2.21 cannot infer symbolic shapes, and
    # erfc as plain operations.
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
    """The version of the installed TensorFlow, which reads the SavedModels written here."""
    import tensorflow as tf

    return tf.__version__
