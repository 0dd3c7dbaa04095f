"""Token ids as arrays, and as bytes that compare as they do."""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


def token_key(token_ids: Ids) -> bytes:
    """Bytes that compare as the ids do, so that sequences with a common beginning are neighbours when sorted."""
    return token_ids.astype(">u4").tobytes()
