"""Tokens that a user names: by their entry in the vocabulary, or as `id:N`."""

from typing import Any

from plaudit_export.errors import SourceError

BY_ID = "id:"


def named_token(source: str, tokenizer: Any, token: str, *, flag: str, by_id: str = "id:N") -> int:
    """The id of an entry of the vocabulary, as `convert_tokens_to_ids` knows it, or the one that is given.

    Args:
        source: the checkpoint, for messages.
        tokenizer: its own.
        token: as the user names it.
        flag: of the command line, for messages.
        by_id: how the flag takes an id, for messages.

    Raises:
        SourceError: the vocabulary has no such entry.
    """
    if token.startswith(BY_ID):
        return int(token.removeprefix(BY_ID))
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        raise SourceError(
            f"{flag}: the tokenizer of {source} has no token {token!r}; give it as it stands in the vocabulary, or by "
            f"its id: {by_id}"
        )
    return int(token_id)
