"""Learning a few examples by heart, which shows that a task's rows, loss and decoding fit together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from spanbert_jax.tasks.finetuning import FineTuning, Prediction
from spanbert_jax.tasks.rows import make_rows
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer, wordpiece_from_vocab
from tests.support.quick_keys import quick_key


def tokenizer_of_texts(vocab: Path, texts: Sequence[str]) -> Tokenizer:
    """WordPiece of those pieces of a cased vocabulary that the texts have, and of nine unused ones. It cuts the texts
    as the whole vocabulary does, and a model for it learns faster."""
    whole = wordpiece_from_vocab(vocab, lowercase=False)
    used = {piece for pieces in whole.tokenize_batch(texts) for piece in pieces}
    lines = vocab.read_text(encoding="utf-8").splitlines()
    kept = [*SPECIALS, *(f"[unused{number}]" for number in range(1, 10)), *(lines[piece] for piece in sorted(used))]
    return Tokenizer("wordpiece", "\n".join(kept).encode())


def learn_by_heart(task: FineTuning, examples: Sequence[Any], rate: float, steps: int) -> list[Prediction]:
    """Predictions for `examples` after `steps` of full-batch Adam on them, from fresh parameters, without dropout. The
    learning rate falls from `rate` to 0."""
    rows = make_rows(task.featuriser("train")(examples))
    batch = rows.collate(np.arange(len(rows)), task.config.data.block_length, task.padding)
    model = task.model("cpu")
    params = jax.jit(lambda: task.init_params(model, quick_key(0)))()
    goal, optimizer = task.objective(model), optax.adam(optax.linear_schedule(rate, 0.0, steps))

    @jax.jit
    def learn(params: Any) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            params, state = carry
            (loss, _), grads = jax.value_and_grad(goal.loss, has_aux=True)(
                params, batch, goal.totals(batch), None, None
            )
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)

    (params, _), losses = learn(params)
    assert losses[-1] < losses[0] / 10
    computed = jax.jit(lambda params: task.outputs(model, params, batch))(params)
    outputs = [{name: np.asarray(value)[row] for name, value in computed.items()} for row in range(len(rows))]
    return task.decode(examples, rows, outputs, {})
