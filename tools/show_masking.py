"""Shows blocks as the model sees them in pre-training: masked spans, their replacements, and SBO's boundaries.

    python tools/show_masking.py --config configs/tiny.py [--rows 4] [--html FILE] [--statistics]

Invariant: the blocks shown are the first rows of the run's own batches, masks included. Where the workdir (default:
runs/<the config's name>) lacks the tokenizer or the blocks, the tool makes them first.
"""

import dataclasses
import html
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from etils import epath
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spanbert_jax import cli
from spanbert_jax.batch import KEPT, MASK, RANDOM, REPLACEMENTS
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.files import written_aside
from spanbert_jax.main import run_app
from spanbert_jax.text.tokenizer import Tokenizer, word_starts

ROWS = flags.DEFINE_integer("rows", 4, "Blocks to show.", lower_bound=1)
HTML = flags.DEFINE_string("html", None, "Write the blocks to this file as a page, instead of to the terminal.")
STATISTICS = flags.DEFINE_bool(
    "statistics", False, "Show statistics of 4,000 blocks and their expected values, instead of blocks."
)

STATISTICS_BLOCKS = 4000
KINDS = {value: name for name, value in REPLACEMENTS.items()}
SHOWN_AS = {
    "special": "dim",
    "plain": "",
    "unit": "blue",
    "boundary": "bold underline cyan",
    "mask": "bold black on yellow",
    "random": "bold white on magenta",
    "kept": "bold white on green",
    "original": "italic bright_black",
}
LEGEND = (
    ("mask", "[MASK]×2", "a span replaced by [MASK], with the number of pieces"),
    ("random", "cat of", "a span replaced by random pieces"),
    ("kept", "the dog", "a span that is left as it is, and predicted like the others"),
    ("original", "‹was this›", "the original pieces of the span before, which the model has to predict"),
    ("boundary", "next", "a boundary: SBO predicts the span beside it from the two boundaries"),
    ("original", "‹was this; MLM only›", "a span that SBO does not predict, such as one at an end of the block"),
)
# Where blocks have spans that rules found (config.corpus.spans):
UNITS_LEGEND = (
    ("unit", "the old cat", "a unit: a span that the rules for spans found, of which this part is not masked"),
    ("original", "‹was this; NP›", "the original pieces touch units of this kind"),
)
# Share of the masked pieces that SBO predicts, by the block's number of pieces, with the default settings. Computed by
# the sequential algorithm on text of which 85% of the pieces begin a word. The authors' code was measured at 30, 126
# and 510 pieces: 0.87, 0.96, 0.984.
SBO_LENGTHS = (4, 8, 15, 30, 60, 126, 250, 510)
SBO_COVERAGE = (0.50, 0.667, 0.792, 0.874, 0.922, 0.958, 0.975, 0.985)
SBO_DEPENDS_ON = ("scheme", "rate", "rate_steps", "span_p", "span_min", "span_max", "boundaries", "max_span_offset")


@dataclasses.dataclass(frozen=True)
class Segment:
    """A piece of text with its kind, a key of SHOWN_AS. space: whether white space comes before the text."""

    kind: str
    text: str
    space: bool


def main(config: Config, workdir: str) -> int:
    """Prepares the data, reads blocks and shows them; returns the exit status."""
    from spanbert_jax.corpus.blocks import open_blocks
    from spanbert_jax.corpus.masked_batches import described_batches
    from spanbert_jax.runs.prepare import prepare
    from spanbert_jax.runs.start_from import StartingWeights, adopt

    if HTML.value and STATISTICS.value:
        raise UserError("--html shows blocks and --statistics numbers; give one of the two")
    if HTML.value and not Path(HTML.value).absolute().parent.is_dir():
        raise UserError(
            f"--html {HTML.value}: there is no directory {Path(HTML.value).absolute().parent}; make it first"
        )
    if HTML.value and Path(HTML.value).is_dir():
        raise UserError(f"--html {HTML.value} is a directory; name a file")
    with StartingWeights(config) as start:
        config = adopt(config, epath.Path(workdir), start)
        tokenizer, data = prepare(config, epath.Path(workdir), start)
    blocks = open_blocks(data / "blocks", "train")
    wanted = STATISTICS_BLOCKS if STATISTICS.value else ROWS.value
    if STATISTICS.value:  # rows of one length can be concatenated; masks are the same
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, lengths=1))
    # A collapsed row has the same masks, and would not show the pieces of a span in their places.
    config = dataclasses.replace(config, masking=dataclasses.replace(config.masking, collapse_spans=False))
    batches = described_batches(config, blocks, tokenizer, 0, wanted)  # each has a row at least
    console = Console(highlight=False)
    if STATISTICS.value:
        rows = collect(batches, wanted)
        console.print(statistics_table(config, rows, blocks.metadata.piece_counts, blocks.metadata.kinds))
        return 0
    shown = [describe_row(tokenizer, row, blocks.metadata.kinds) for row in first_rows(batches, wanted)]
    if HTML.value:
        with written_aside(Path(HTML.value)) as aside:
            aside.write_text(page(shown, workdir), encoding="utf-8")
        console.print(f"Wrote {HTML.value}.")
    else:
        print_rows(console, shown)
    return 0


def first_rows(batches: Iterator[dict[str, np.ndarray]], count: int) -> Iterator[dict[str, np.ndarray]]:
    """The first `count` rows of the batches, one by one, without the empty ones that fill batches up."""
    rows = ((batch, row) for batch in batches for row in np.flatnonzero(batch["lengths"]))
    for batch, row in itertools.islice(rows, count):
        yield {name: value[row] for name, value in batch.items()}


def describe_row(
    tokenizer: Tokenizer, row: dict[str, np.ndarray], kinds_of_units: Sequence[str] = ()
) -> tuple[str, list[Segment]]:
    """(a line of numbers, the segments) of one row of `described_batches`."""
    used = row["masked_weights"] > 0
    positions, kinds = row["masked_positions"][used], row["replacement"][used]
    clean = row["input_ids"][: row["lengths"]].copy()
    clean[positions] = row["masked_ids"][used]
    starts = np.concatenate([[True], word_starts(tokenizer, clean[1:-1]), [True]])
    specials = {0, len(clean) - 1}
    kind_of_row = ""
    if "token_type_ids" in row:
        second = int(np.argmax(row["token_type_ids"]))  # the first piece of B
        specials.add(second - 1)
        starts[second - 1 : second + 1] = True
        label = "of another document" if row["next_labels"] else "the text that follows"
        kind_of_row = f" ({second - 2} and {len(clean) - second - 1}, {label})"
    predicted = row["span_weights"] > 0
    boundaries = {int(i) for name in ("span_left", "span_right") for i in row[name][predicted]}
    kind_at = dict(zip(positions.tolist(), kinds.tolist(), strict=True))
    sbo = set(row["masked_positions"][predicted].tolist())
    tags = row.get("block_tags", np.zeros_like(row["input_ids"]))

    def text(ids: np.ndarray, begins: np.ndarray) -> str:
        pieces = ((" " if begin else "") + tokenizer.surface(int(id)) for id, begin in zip(ids, begins, strict=True))
        return "".join(pieces).strip()

    segments: list[Segment] = []
    at = 0
    while at < len(clean):
        if at not in kind_at:
            plain = "unit" if tags[at] else "plain"
            kind = "special" if at in specials else "boundary" if at in boundaries else plain
            segments.append(Segment(kind, tokenizer.surface(int(clean[at])), bool(starts[at])))
            at += 1
            continue
        end = at
        while end in kind_at and kind_at[end] == kind_at[at]:
            end += 1
        kind = KINDS[kind_at[at]]
        seen = f"[MASK]×{end - at}" if kind == "mask" else text(row["input_ids"][at:end], starts[at:end])
        touched = dict.fromkeys(kinds_of_units[tag // 2 - 1] for tag in tags[at:end] if tag)
        note = "".join(f"; {name}" for name in [*touched, *([] if sbo.intersection(range(at, end)) else ["MLM only"])])
        segments.append(Segment(kind, seen, True))
        segments.append(Segment("original", f"‹{text(clean[at:end], starts[at:end])}{note}›", False))
        at = end
    spans = int(np.sum(np.diff(positions, prepend=-1) != 1))
    masked = f"{len(positions)} masked in {spans} spans, {len(sbo)} of them predicted by SBO as well"
    return f"{len(clean) - len(specials)} pieces{kind_of_row}, {masked}", segments


def legend_of(rows: list[tuple[str, list[Segment]]]) -> tuple[tuple[str, str, str], ...]:
    """The legend for these rows: (kind, example, meaning) of each way in which text is shown."""
    has_units = any(segment.kind == "unit" for _, segments in rows for segment in segments)
    return LEGEND + (UNITS_LEGEND if has_units else ())


def print_rows(console: Console, rows: list[tuple[str, list[Segment]]]) -> None:
    """The legend, then every row."""
    for kind, sample, meaning in legend_of(rows):
        console.print(Text.assemble("  ", (sample, SHOWN_AS[kind]), f"  {meaning}"))
    for number, (title, segments) in enumerate(rows):
        console.print()
        console.rule(f"Block {number + 1}: {title}", align="left", style="dim")
        line = Text()
        for segment in segments:
            line.append(" " if segment.space and line else "").append(segment.text, SHOWN_AS[segment.kind])
        console.print(line)


STYLE = """
body { font: 16px/1.9 Georgia, serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { font-family: system-ui, sans-serif; line-height: 1.3 } h2 { font-size: 1rem; margin-top: 2.5rem; color: #555 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem } dd { margin: 0 }
.special { color: #888 } .unit { background: #dbe9ff; border-radius: .25em }
.boundary { border-bottom: 3px solid #0088aa; font-weight: bold }
.mask, .random, .kept { border-radius: .25em; padding: .08em .3em }
.mask { background: #ffd54d } .random { background: #9c27b0; color: #fff } .kept { background: #2e7d32; color: #fff }
.original { font-style: italic; font-size: .85em; color: #666; margin-left: .2em }
"""


def page(rows: list[tuple[str, list[Segment]]], workdir: str) -> str:
    """The content of `print_rows` as one HTML file that needs no other file."""

    def mark(kind: str, text: str) -> str:
        return f'<span class="{kind}">{html.escape(text)}</span>' if kind != "plain" else html.escape(text)

    legend = "".join(f"<dt>{mark(kind, sample)}</dt><dd>{meaning}</dd>\n" for kind, sample, meaning in legend_of(rows))
    blocks = []
    for number, (title, segments) in enumerate(rows):
        text = "".join((" " if segment.space else "") + mark(segment.kind, segment.text) for segment in segments)
        blocks.append(f"<h2>Block {number + 1}: {html.escape(title)}</h2>\n<p>{text}</p>\n")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Masked blocks of {html.escape(workdir)}</title>\n<style>{STYLE}</style>\n"
        f"<h1>What the model sees: {html.escape(workdir)}</h1>\n<dl>\n{legend}</dl>\n{''.join(blocks)}</html>\n"
    )


def collect(batches: Iterator[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """The arrays of the first `count` rows, without the empty ones; shows a progress bar."""
    from spanbert_jax.training.progress import Stage

    parts: list[dict[str, np.ndarray]] = []
    rows = 0
    with Stage("Masking blocks") as stage:
        while rows < count:
            batch = next(batches)
            used = batch["lengths"] > 0
            parts.append({name: value[used] for name, value in batch.items()})
            rows += int(used.sum())
            stage.update(min(rows / count, 1.0), f"{rows:,} blocks")
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def statistics_table(
    config: Config, rows: dict[str, np.ndarray], piece_counts: np.ndarray, kinds_of_units: Sequence[str] = ()
) -> Table:
    """A table of the shares observed in `rows` and of those that the configuration asks for."""
    from spanbert_jax.corpus.masking import span_law, word_limits

    masking = config.masking
    texts, used = text_lengths(rows), rows["masked_weights"] > 0
    lengths = np.sum(texts, axis=0)
    rate = masking.rate
    table = Table(title=f"{len(lengths):,} blocks, {lengths.mean():.0f} pieces in the mean, {used.sum():,} masked")
    for column in ("", "observed", "expected"):
        table.add_column(column, justify="left" if not column else "right")
    if not masking.rate_steps or masking.final_rate == rate:
        exact = used.sum(1) == np.sum(np.ceil(rate * np.array(texts, np.float64)), axis=0)
        of = " of each text" if len(texts) == 2 else ""
        table.add_row(f"blocks with ⌈{rate:g} × pieces⌉{of} masked", f"{exact.mean():.2%}", "100%")
    if len(texts) == 2:
        random = f"{rows['next_labels'].mean():.2%}"
        table.add_row("blocks whose second text is of another document", random, "50% or more")
    law, fewest = span_law(masking), word_limits(masking)[0]
    drawn = rows["drawn_words"]
    table.add_section()
    mean = float(law @ np.arange(fewest, fewest + len(law)))
    table.add_row("words in a drawn span, mean", f"{drawn.mean():.3f}", f"{mean:.3f}")
    for words, share in enumerate(law, fewest):
        table.add_row(f"  {words} word{'s' * (words > 1)}", f"{(drawn == words).mean():.2%}", f"{share:.2%}")
    table.add_section()
    starts = used & (np.diff(rows["masked_positions"], axis=1, prepend=-1) != 1)
    by_piece = masking.granularity == "piece" or masking.scheme == "subword"
    kinds = rows["replacement"][used if by_piece else starts]
    shares = (masking.mask_share, masking.random_share, 1 - masking.mask_share - masking.random_share)
    names = ("become [MASK]", "become random pieces", "are kept")
    for kind, name, share in zip((MASK, RANDOM, KEPT), names, shares, strict=True):
        observed = f"{(kinds == kind).mean():.2%}"
        table.add_row(f"{'pieces' if by_piece else 'merged spans'} that {name}", observed, f"{share:.2%}")
    shown = np.take_along_axis(rows["input_ids"], rows["masked_positions"], axis=1)
    absent = (piece_counts[shown[rows["replacement"] == RANDOM]] == 0).sum()
    table.add_row("random pieces that the corpus lacks", f"{absent:,}", "0")
    table.add_section()
    table.add_row("pieces in a merged span, mean", f"{used.sum() / starts.sum():.2f}", "")
    coverage = rows["span_weights"].sum() / used.sum()
    table.add_row(
        "masked pieces that SBO predicts (fewer where words are long)",
        f"{coverage:.2%}",
        expected_coverage(config, np.concatenate(texts)),
    )
    if "block_tags" in rows:
        add_units(table, config, rows, kinds_of_units)
    return table


def add_units(table: Table, config: Config, rows: dict[str, np.ndarray], kinds: Sequence[str]) -> None:
    """Adds a section about the units of blocks, those of config.masking.units. kinds: all that the blocks have."""
    from spanbert_jax.corpus.units import chosen_kinds

    tags, used = rows["block_tags"], rows["masked_weights"] > 0
    inside = chosen_kinds(config.masking, kinds)[tags // 2]
    units = inside & (tags % 2 == 1)
    texts = sum(lengths.sum() for lengths in text_lengths(rows))
    masked = np.take_along_axis(inside, rows["masked_positions"], axis=1)[used]
    table.add_section()
    table.add_row("units in a block, mean", f"{units.sum(1).mean():.1f}", "")
    table.add_row("pieces in a unit, mean", f"{inside.sum() / max(units.sum(), 1):.2f}", "")
    table.add_row("pieces inside units", f"{inside.sum() / texts:.2%}", "")
    table.add_row("masked pieces inside units", f"{masked.mean():.2%}", "")


def text_lengths(rows: dict[str, np.ndarray]) -> list[np.ndarray]:
    """int [rows]: the number of pieces in each block, or in the first and in the second text of each."""
    if "token_type_ids" not in rows:
        return [rows["lengths"] - 2]
    second = rows["token_type_ids"].sum(1)  # with its [SEP]
    return [rows["lengths"] - second - 2, second - 1]


def expected_coverage(config: Config, lengths: np.ndarray) -> str:
    """The share of masked pieces that SBO predicts in texts of these lengths, interpolated between SBO_LENGTHS; ""
    where the settings are not those of SBO_COVERAGE."""
    masking = config.masking
    if masking.scheme == "subword":
        return "0%"
    if masking.boundaries == "internal" and masking.max_span_offset >= config.data.block_length:
        return "100%"
    paper = Config().masking
    if any(getattr(masking, name) != getattr(paper, name) for name in SBO_DEPENDS_ON):
        return ""
    lost = np.log(1 - np.array(SBO_COVERAGE))
    shares = 1 - np.exp(np.interp(np.log(np.maximum(lengths, 1)), np.log(SBO_LENGTHS), lost))
    return f"about {np.average(shares, weights=lengths):.0%}"


if __name__ == "__main__":
    cli.run(lambda: run_app(main))
