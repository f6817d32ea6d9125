"""Join tokens of data nodes: `hfn_<node>_<secret>_<root>`; they pin the deployment's root."""

from __future__ import annotations

from app.identity.tokens import PROVIDER, Token, parse_token

_PREFIX = "hfn"
_ROOT_LETTERS = 64


def join_text(token: Token, root_fingerprint: str) -> str:
    """A join token as an administrator hands it to a data node."""
    return f"{_PREFIX}_{token.text.partition('_')[2]}_{root_fingerprint}"


def parse_join(text: str) -> Token | None:
    """The token inside a join token, or None. What it pins is the node's affair."""
    prefix, _, rest = text.partition("_")
    inner, _, root = rest.rpartition("_")
    if prefix != _PREFIX or len(root) != _ROOT_LETTERS:
        return None
    return parse_token(f"{PROVIDER}_{inner}")
