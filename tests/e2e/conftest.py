"""The packages of trainers, unpacked; most of them cannot be installed without a GPU."""

import subprocess
import sys
import zipfile

import pytest


@pytest.fixture
def download(tmp_path):
    """Unpacks the wheel of a requirement, and gives the folder that its packages are in."""

    def unpack(requirement):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "--dest", tmp_path, requirement], capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"{requirement} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
        (wheel,) = tmp_path.glob(f"{requirement.split('==')[0]}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / "unpacked")
        return next(tmp_path.glob("unpacked/*.data/purelib"), tmp_path / "unpacked")

    return unpack
