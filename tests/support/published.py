"""Others' weights as our parameters, without what serving/ adds."""

import functools

from spanbert_jax.convert.huggingface import Coverage, Params
from spanbert_jax.convert.published_weights import PublishedWeights
from spanbert_jax.model.parameters import parameter_shapes


def load(published: PublishedWeights) -> tuple[Params, Coverage]:
    return published.load(functools.partial(parameter_shapes, published.model, published.tokenizer.vocab_size))
