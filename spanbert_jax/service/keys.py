"""API keys from a file.

Invariant: how long a comparison takes says nothing about a key. No key is logged or shown.
"""

import hmac
from pathlib import Path

from spanbert_jax.errors import UserError
from spanbert_jax.service.problems import Problem


def read_keys(path: Path) -> tuple[bytes, ...]:
    """The keys of a file, one a line; raises UserError where there is none."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"--api-key-file {path}: cannot be read ({error.strerror})") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise UserError(f"--api-key-file {path} has no key; write one on each line")
    return keys


def check_key(keys: tuple[bytes, ...], authorization: str) -> None:
    """Raises Problem where there are keys, and the header "Authorization" has none of them."""
    scheme, _, given = authorization.partition(" ")
    # Every key is compared, so that the time does not say which one came near.
    matches = [hmac.compare_digest(key, given.strip().encode("latin-1", "replace")) for key in keys]
    if keys and not (scheme.lower() == "bearer" and any(matches)):
        raise Problem("unauthorized", "the key is missing or wrong; send the header Authorization: Bearer KEY")
