"""The scoring service: loads verified bundles and answers `POST /score` in batches.

`Scorer` computes the same scores in this process, without HTTP; `CombinedScorer` does so for a combination.
"""

import os
from typing import TYPE_CHECKING, Any

from plaudit_service.errors import BundleError, RequestError, ServiceError

if TYPE_CHECKING:
    from plaudit_service.results import Result, Status
    from plaudit_service.serving.scorer import CombinedScorer, Scorer, Scores

# Nothing leaves the machine. ONNX Runtime and huggingface_hub read this when they are imported.
os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_TELEMETRY="1")

__all__ = ["BundleError", "CombinedScorer", "RequestError", "Result", "Scorer", "Scores", "ServiceError", "Status"]

_MODULES = {
    "CombinedScorer": "serving.scorer",
    "Result": "results",
    "Scorer": "serving.scorer",
    "Scores": "serving.scorer",
    "Status": "results",
}


def __getattr__(name: str) -> Any:
    """Imports the engine only when it is asked for, so that the command can say which extra is not installed."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
