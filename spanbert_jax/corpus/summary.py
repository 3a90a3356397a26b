"""The lines that tell a person about blocks before hours of training on them.

Invariant: every warning says what to change.
"""

from spanbert_jax.config import Config
from spanbert_jax.corpus.blocks import Metadata
from spanbert_jax.corpus.vocabulary_fit import WARNED_SHARE, advice, describe_share, unknown_share
from spanbert_jax.text.span_rules import MAX_CHARACTERS, MAX_WORDS
from spanbert_jax.text.tokenizer import Tokenizer

_FEW_DOCUMENTS = 5  # With fewer held-out documents, a single one can turn the metrics.


def describe_blocks(config: Config, tokenizer: Tokenizer, metadata: Metadata) -> list[str]:
    """A line of counts, and a warning for each property of the blocks from which training would suffer."""
    train, held_out = metadata.counts["train"], metadata.counts["held_out"]
    share = unknown_share(tokenizer.unk_id, metadata.piece_counts)
    lines = [
        f"Blocks: {train['blocks']:,} of {train['documents']:,} documents for training, {held_out['blocks']:,} of "
        f"{held_out['documents']:,} held out; {describe_share(share)}"
    ]
    if metadata.spans:
        counts, left_out = metadata.spans["counts"], metadata.spans["left_out"]
        found = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        limits = f"{MAX_WORDS:,} words or {MAX_CHARACTERS:,} characters"
        left = f"; {left_out:,} sentences of more than {limits} were not searched" if left_out else ""
        lines.append(f"Spans: {found}{left}")
        if not any(counts.values()):
            lines.append(
                f"warning: config.corpus.spans={config.corpus.spans!r} finds no span; try the rules on some text: "
                "python tools/find_spans.py"
            )
    if share >= WARNED_SHARE:
        lines.append(f"warning: {describe_share(share)}, from which nothing is learnt; {advice(config, tokenizer)}")
    if train["blocks"] < config.train.batch_size:
        lines.append(
            f"warning: training has {train['blocks']:,} blocks, fewer than the {config.train.batch_size:,} rows of a "
            "batch, so every step takes all of them and fills up with empty rows; give more text, or a smaller "
            "--config.train.batch_size"
        )
    if held_out["documents"] < _FEW_DOCUMENTS:
        lines.append(
            f"warning: the held-out metrics will rest on {held_out['documents']:,} of "
            f"{train['documents'] + held_out['documents']:,} documents; give more documents, or a larger "
            "--config.corpus.held_out, and another --workdir"
        )
    return lines
