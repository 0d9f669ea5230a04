"""Ids of any text in RecBole's atomic files: what the file cannot hold is written in an escaped form and restored."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

ESCAPED = "\u241b"  # the symbol for escape: a token that begins with it is percent-encoded
LONGEST = 10_000  # RecBole reads with Python's csv module, whose fields end at 131,072 bytes

# RecBole reads with pandas.read_csv, which takes these words for a missing value (and drops the row), quotes for
# quotes, and tabs and line breaks for the end of a field.
_MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
}
_UNSAFE = re.compile('[\x00-\x1f\x7f"]')


def escape_token(token: str) -> str:
    """The token as an atomic file can hold it: itself, unless RecBole would read it as something else."""
    if _UNSAFE.search(token):
        return ESCAPED + re.sub('[\x00-\x1f\x7f"%]', lambda found: quote(found[0]), token)
    if token in _MISSING or token == "[PAD]" or token.startswith(ESCAPED):
        return ESCAPED + token.replace("%", "%25")
    return token


def restore_token(token: str) -> str:
    """What `escape_token` was given; a token that is not escaped stays as it is."""
    return unquote(token[len(ESCAPED) :]) if token.startswith(ESCAPED) else token
