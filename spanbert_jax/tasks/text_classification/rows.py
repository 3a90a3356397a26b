"""Rows of one text or two: [CLS] a [SEP], or [CLS] a [SEP] b [SEP] with token type 1 from b on.

Invariant: a row is never longer than `length`; of two texts the longer one loses pieces first, from its end (code:
run_glue.py, _truncate_seq_pair).
"""

import dataclasses
from collections.abc import Sequence

from spanbert_jax.tasks.rows import Row
from spanbert_jax.tasks.text_classification.files import LabelledText
from spanbert_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TextRowMaker:
    """Makes one row of each example. A label that is None becomes 0."""

    tokenizer: Tokenizer
    length: int  # pieces, special ones included
    labels: tuple[str, ...]  # in the classifier's order
    regression: bool  # whether the labels are numbers
    token_types: int = 2  # the model's; where it is 1, both texts have type 0

    def __call__(self, examples: Sequence[LabelledText]) -> list[list[Row]]:
        """The row of each example, in a list."""
        first = self.tokenizer.tokenize_batch([example.text for example in examples])
        second = self.tokenizer.tokenize_batch([example.second or "" for example in examples])
        return [[self._row(*parts)] for parts in zip(examples, first, second, strict=True)]

    def _row(self, example: LabelledText, first: list[int], second: list[int]) -> Row:
        cls, sep = self.tokenizer.cls_id, self.tokenizer.sep_id
        pair = example.second is not None
        room = self.length - (3 if pair else 2)
        cut = len(first) + len(second) > room
        first = first[: max(room - len(second), -(-room // 2))] if pair else first[:room]
        second = second[: room - len(first)]
        ids = [cls, *first, sep, *((*second, sep) if pair else ())]
        if self.regression:
            label: int | float = float(example.label or 0.0)
        else:
            label = 0 if example.label is None else self.labels.index(example.label)
        second_type = min(self.token_types - 1, 1)
        types = [0] * (len(first) + 2) + [second_type] * (len(ids) - len(first) - 2)
        return {"input_ids": ids, "token_type_ids": types, "label": label, "cut": int(cut)}
