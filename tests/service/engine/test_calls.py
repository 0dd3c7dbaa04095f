from types import SimpleNamespace

import pytest

from plaudit_service.engine import calls
from plaudit_service.engine.calls import calls_for, default_calls


@pytest.mark.parametrize(
    ("device", "num_threads", "weights_bytes", "expected"),
    [
        ("cpu", 2, 1000, 2),
        ("cpu", 2, 1001, 1),
        ("cpu", 1, 1, 1),
        ("cpu", 8, 1, 1),
        ("cuda", 2, 1, 1),
        ("cuda:1", 2, 1, 1),
    ],
)
def test_two_calls_at_once_are_for_two_threads_and_weights_that_fit_twice(device, num_threads, weights_bytes, expected):
    assert calls_for(device, num_threads, weights_bytes=weights_bytes, memory_bytes=8000) == expected


@pytest.mark.parametrize(("limit_bytes", "expected"), [(8 << 20, 2), (4 << 20, 1)])
def test_the_weights_of_all_bundles_have_to_fit_what_this_process_may_hold(
    limit_bytes, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(calls, "memory_bytes", lambda: limit_bytes)
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).write_bytes(bytes(1 << 18))
    bundle = SimpleNamespace(path=tmp_path)
    assert default_calls([bundle, bundle], "cpu", 2) == expected
