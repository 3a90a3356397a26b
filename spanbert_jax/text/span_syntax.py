"""How the rules for spans are written (config.corpus.spans), so that a mistake is found before any library is imported.

Invariant: a list of rules that `parse_rules` accepts can still fail by what it names (a file, a model, a pattern), and
by nothing else.
"""

import re
from typing import NamedTuple

from spanbert_jax.errors import UserError, quoted

SEPARATOR = "; "  # between two rules
WITHOUT_ARGUMENT = ("sentence", "capitals")
WITH_PATTERN = ("regex", "pos")  # NAME=PATTERN
WITH_SOURCE = ("gazetteer", "spacy", "file")  # a file or a model
_RULES = ", ".join(
    [
        *WITHOUT_ARGUMENT,
        *(f"{name}:NAME=PATTERN" for name in WITH_PATTERN),
        *(f"{name}:{'MODEL' if name == 'spacy' else 'FILE'}" for name in WITH_SOURCE),
    ]
)
_NAME = re.compile(r"[\w.-]+")


class Parsed(NamedTuple):
    """A rule in parts."""

    written: str  # the whole rule
    name: str  # of the rule
    kind: str  # NAME, for rules with a pattern
    argument: str  # PATTERN, FILE or MODEL


def parse_rules(rules: str) -> list[Parsed]:
    """The rules of a list, in order. Raises UserError where one is none."""
    last = rules.rpartition(SEPARATOR)[2]
    if last.lstrip().startswith("regex:") and last.endswith(";"):
        raise UserError(f"rule {quoted(last)} ends in ';'; leave it out, or write [;] for the character")
    return [_parse(rule.strip()) for rule in rules.strip(" ;").split(SEPARATOR)]


def _parse(written: str) -> Parsed:
    name, colon, argument = written.partition(":")
    if name in WITH_PATTERN:
        kind, equals, pattern = argument.partition("=")
        if not equals or not pattern:
            raise UserError(f"rule {quoted(written)} has no pattern; write {name}:NAME=PATTERN")
        return Parsed(written, name, check_kind(kind, written), pattern)
    if (name in WITHOUT_ARGUMENT and not colon) or (name in WITH_SOURCE and argument):
        return Parsed(written, name, "", argument)
    raise UserError(
        f"{quoted(written)} is no rule for spans; the rules are {_RULES}, with '; ' between two (docs/spans.md)"
    )


def check_kind(name: str, rule: str) -> str:
    """The name of a kind of spans; raises UserError, naming the rule, where it has other characters than a name."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"rule {quoted(rule)}: {quoted(name)} is no name of a kind; use letters, digits, '_', '-' and '.'"
        )
    return name
