"""The versions of the packages that make a bundle, without importing them."""

import importlib.metadata

PACKAGES = ("plaudit", "torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime")


def versions(*more: str) -> dict[str, str]:
    """Versions of the packages that made the bundle, and of `more`.

    Raises:
        ModuleNotFoundError: one of them is not installed.
    """
    return {name: importlib.metadata.version(name) for name in (*PACKAGES, *more)}
