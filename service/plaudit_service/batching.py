"""Which waiting sequences make the next batch: pure, without clock, queue or engine."""

from collections.abc import Sequence


def choose_batch(waiting: Sequence[tuple[int, int]], *, max_padded_tokens: int) -> list[int]:
    """Choose sequences of close length, always with one of the oldest, within a budget of padded tokens.

    The anchor is the longest of those that arrived first, so nothing starves. The batch then grows, in the order of
    lengths, towards whichever neighbour is closer in length, while rows x longest stays within the budget. A sequence
    over the budget goes alone.

    Args:
        waiting: (arrival, length in tokens) of each waiting sequence; arrivals are numbers that grow.
        max_padded_tokens: Limit of rows x longest row.

    Returns:
        Indices into `waiting`, longest first; empty when nothing waits.
    """
    if not waiting:
        return []
    order = sorted(range(len(waiting)), key=lambda at: -waiting[at][1])
    lengths = [waiting[at][1] for at in order]
    anchor = min(range(len(order)), key=lambda rank: (waiting[order[rank]][0], rank))
    first, last = anchor, anchor  # the batch is order[first : last + 1], lengths falling
    while True:
        num_rows = last - first + 2
        fits_longer = first > 0 and num_rows * lengths[first - 1] <= max_padded_tokens
        fits_shorter = last + 1 < len(order) and num_rows * lengths[first] <= max_padded_tokens
        if fits_longer and fits_shorter:
            fits_longer = lengths[first - 1] - lengths[anchor] < lengths[anchor] - lengths[last + 1]
        if fits_longer:
            first -= 1
        elif fits_shorter:
            last += 1
        else:
            return order[first : last + 1]


def cut_batches(lengths: Sequence[int], *, max_padded_tokens: int) -> list[list[int]]:
    """Cut sequences that are all there at once into batches, as repeated `choose_batch` would, in one pass.

    Args:
        lengths: Length in tokens of each sequence.
        max_padded_tokens: Limit of rows x longest row; a sequence over it goes alone.

    Returns:
        Indices into `lengths`, longest first.
    """
    batches: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_padded_tokens:
            batches[-1].append(at)
        else:
            batches.append([at])
    return batches
