"""What an export keeps in memory: the weights once, in float32, whatever the precision."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from plaudit_export.testing import tiny_causal_checkpoint

# The command as it is, but that weights go to a file of their own as those of a large model do; then its peak in bytes.
MEASURED = """
import sys
from pathlib import Path
from plaudit_export.graphs import tracing
from plaudit_export.cli import main
tracing.MAX_INLINE_BYTES = 0
code = main(sys.argv[1:])
lines = Path("/proc/self/status").read_text().splitlines()
print("peak", next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
sys.exit(code)
"""
# Room beside the weights: kernels and arenas grow with a model's width, too.
CONSTANT_BYTES = 40_000_000


def peak_bytes(checkpoint: Path, bundle: Path, precision: str) -> int:
    arguments = ["checkpoint", checkpoint, bundle, "--precision", precision, "--golden-max-tokens", "64"]
    command = [sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def wide_checkpoint(path: Path) -> Path:
    """120 MB in float32, stored in bfloat16, as most models are."""
    tiny_causal_checkpoint(path, hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=2)
    weights = load_file(path / "model.safetensors")
    save_file(
        {name: weight.bfloat16() for name, weight in weights.items()}, path / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return path


@pytest.fixture(scope="module")
def baseline_bytes(causal_checkpoint, tmp_path_factory):
    """What imports, tracer and engine take."""
    return peak_bytes(causal_checkpoint, tmp_path_factory.mktemp("tiny") / "bundle", "fp32")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_an_export_needs_at_most_one_and_a_half_times_the_float32_weights(precision, baseline_bytes, tmp_path):
    wide = wide_checkpoint(tmp_path / "wide")
    weights_bytes = sum(weight.numel() * 4 for weight in load_file(wide / "model.safetensors").values())
    assert weights_bytes > 100_000_000
    peak = peak_bytes(wide, tmp_path / "bundle", precision)
    assert (tmp_path / "bundle" / "model.onnx.data").is_file()
    print("PEAK", peak, baseline_bytes, weights_bytes)
    assert peak - baseline_bytes <= 1.5 * weights_bytes + CONSTANT_BYTES
