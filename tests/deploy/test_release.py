"""What `make release` writes and refuses; that the wheel works in empty environments is tests/e2e/test_packaging.py."""

import datetime
import importlib.util
import io
import shutil
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("release", ROOT / "deploy" / "release.py")
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)

TODAY = datetime.date(2026, 12, 1)
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n\n## [0.2.0] - 2026-11-01\n\n- Another.\n"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def copy(tmp_path):
    """The files that name the version."""
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "deploy" / "kubernetes", tmp_path / "deploy" / "kubernetes")
    return tmp_path


def test_unreleased_changes_become_those_of_the_version():
    assert release.date_changelog(CHANGELOG, "0.3.0", TODAY) == CHANGELOG.replace(
        "## [Unreleased]\n", "## [Unreleased]\n\n## [0.3.0] - 2026-12-01\n"
    )


@pytest.mark.parametrize(
    ("text", "version", "message"),
    [
        (CHANGELOG, "0.2.0", "0.2.0 is not newer than 0.2.0"),
        (CHANGELOG, "0.1.9", "0.1.9 is not newer than 0.2.0"),
        (CHANGELOG, "0.3", "'0.3' is not a version X.Y.Z"),
        (CHANGELOG, "v0.3.0", "'v0.3.0' is not a version X.Y.Z"),
        (CHANGELOG.replace("- A thing.\n", ""), "0.3.0", "there is nothing to release"),
        ("# Changelog\n\n## [0.2.0] - 2026-11-01\n", "0.3.0", "its first section is not"),
    ],
)
def test_what_is_no_new_version_is_refused(text, version, message):
    with pytest.raises(release.ReleaseError, match=message):
        release.date_changelog(text, version, TODAY)


def test_a_release_sets_the_version_wherever_it_stands(copy):
    release.prepare(copy, "99.1.0", TODAY)
    assert release.check_texts(copy) == "99.1.0"
    assert tomllib.loads((copy / "pyproject.toml").read_text())["project"]["version"] == "99.1.0"
    assert len(release.overlays(copy)) == 4
    with pytest.raises(release.ReleaseError, match="nothing to release"):
        release.prepare(copy, "99.1.0", TODAY)


@pytest.mark.parametrize(
    "file", ["pyproject.toml", "CHANGELOG.md", "deploy/kubernetes/overlays/gpu/kustomization.yaml"]
)
def test_a_file_that_names_another_version_is_refused(copy, file):
    release.prepare(copy, "99.1.0", TODAY)
    (copy / file).write_text((copy / file).read_text().replace("99.1.0", "99.0.0"))
    with pytest.raises(release.ReleaseError, match=r"99\.[01]\.0"):
        release.check_texts(copy)


def test_a_version_older_than_the_project_is_refused(copy):
    with pytest.raises(release.ReleaseError, match=r"0\.0\.1 is older than"):
        release.prepare(copy, "0.0.1", TODAY)


def wheel_of(path, leave_out=(), add=()):
    """As much of a wheel as is checked."""
    packages = ("plaudit_client", "plaudit_demo", "plaudit_export", "plaudit_ppo", "plaudit_service")
    scripts = "".join(f"{name} = {place}\n" for name, place in PROJECT["project"]["scripts"].items())
    files = {f"{package}/py.typed": "" for package in packages} | {
        "plaudit-1.0.0.dist-info/entry_points.txt": f"[console_scripts]\n{scripts}",
        "plaudit-1.0.0.dist-info/licenses/LICENSE": "",
    }
    with zipfile.ZipFile(path / "plaudit-1.0.0-py3-none-any.whl", "w") as archive:
        for name, content in (files | dict.fromkeys(add, "")).items():
            if name not in leave_out:
                archive.writestr(name, content)
    return Path(archive.filename)


def test_a_wheel_of_the_five_packages_and_all_commands_passes(tmp_path):
    release.check_wheel(wheel_of(tmp_path), "1.0.0", PROJECT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add": ["tests/conftest.py"]}, "tests"),
        ({"leave_out": ["plaudit_ppo/py.typed"], "add": ["plaudit_ppo/a.py"]}, "plaudit_ppo/py.typed"),
        ({"leave_out": ["plaudit-1.0.0.dist-info/licenses/LICENSE"]}, "LICENSE"),
    ],
)
def test_a_wheel_with_more_or_less_is_refused(tmp_path, changes, message):
    with pytest.raises(release.ReleaseError, match=message):
        release.check_wheel(wheel_of(tmp_path, **changes), "1.0.0", PROJECT)


def test_a_wheel_without_a_command_is_refused(tmp_path):
    more = {**PROJECT, "project": {**PROJECT["project"], "scripts": {**PROJECT["project"]["scripts"], "other": "a:b"}}}
    with pytest.raises(release.ReleaseError, match="its commands are not those"):
        release.check_wheel(wheel_of(tmp_path), "1.0.0", more)


def test_an_sdist_that_lacks_a_file_is_refused(tmp_path):
    path = tmp_path / "plaudit-1.0.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("plaudit-1.0.0/pyproject.toml"), io.BytesIO())
    with pytest.raises(release.ReleaseError, match=r"CHANGELOG\.md"):
        release.check_sdist(path, "1.0.0")
