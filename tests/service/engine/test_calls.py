from types import SimpleNamespace

import pytest

from plaudit_service.engine import calls
from plaudit_service.engine.calls import default_calls


@pytest.mark.parametrize(
    ("device", "num_threads", "gib", "expected"),
    [("cpu", 2, 1, 2), ("cpu", 2, 2, 1), ("cpu", 1, 1, 1), ("cpu", 8, 1, 1), ("cuda", 2, 1, 1), ("cuda:1", 2, 1, 1)],
)
def test_two_calls_at_once_are_for_two_threads_and_weights_that_fit_twice(
    device, num_threads, gib, expected, tmp_path, monkeypatch
):
    sizes = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 8 << 30}
    monkeypatch.setattr(calls.os, "sysconf", sizes.__getitem__)
    for name in ("model.onnx", "model.onnx.data"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(gib << 29)  # sparse
    assert default_calls([SimpleNamespace(path=tmp_path)], device, num_threads) == expected
