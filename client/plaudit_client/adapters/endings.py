"""Whether a policy has ended a completion, or the limit of its length has."""

from collections.abc import Sequence

from plaudit_client.errors import InvalidArgument

EosTokenId = int | Sequence[int] | None


def as_eos_ids(eos_token_id: EosTokenId, where: str = "eos_token_id") -> frozenset[int]:
    """What transformers calls an `eos_token_id`: one id, several, or none.

    Raises:
        InvalidArgument: It is something else.
    """
    several = [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id
    if isinstance(several, str) or not isinstance(several, Sequence) or any(type(each) is not int for each in several):
        raise InvalidArgument(f"{where}: got {eos_token_id!r}; give an int, a list of int, or None")
    return frozenset(several)


def has_ended(token_ids: Sequence[int], eos_ids: frozenset[int]) -> bool:
    """Whether a completion's last token is one that ends it."""
    return len(token_ids) > 0 and token_ids[-1] in eos_ids
