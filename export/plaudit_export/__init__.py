"""Turns a reward-model checkpoint into a verified bundle."""

import os

# Nothing leaves the machine. ONNX Runtime and huggingface_hub read this when they are imported.
os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_TELEMETRY="1")
