"""One release in one command: version, changelog, sdist and wheel, each role installed in an empty environment.

Given a version, sets it and dates the changelog's section first; else checks what is there. Commits, tags and publishes
nothing: it says how. Exit 0: may be published. 1: a check failed. 2: wrong usage.
"""

import argparse
import configparser
import datetime
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
SECTION = re.compile(r"^## \[(?P<version>[^]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)
UNRELEASED = "Unreleased"


class ReleaseError(Exception):
    """Why this is no release; one line for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="release.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("version", nargs="?", help="X.Y.Z to release now (default: check the version that is there)")
    parser.add_argument("--tools", type=Path, required=True, help="bin folder of the environment with build and twine")
    options = parser.parse_args(arguments)
    try:
        if options.version:
            refuse_uncommitted(ROOT)
            prepare(ROOT, options.version, datetime.datetime.now(tz=datetime.UTC).date())
        version = check_texts(ROOT)
        step(f"{version}: building sdist and wheel")
        sdist, wheel = build(ROOT, options.tools)
        check_sdist(sdist, version)
        check_wheel(wheel, version, tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
        step("the metadata as an index reads it")
        run(options.tools / "twine", "check", "--strict", sdist, wheel)
        step("every role in an empty environment; takes minutes")
        run(
            *(sys.executable, "-m", "pytest", "-q", "-m", "", ROOT / "tests" / "e2e" / "test_packaging.py"),
            env={**os.environ, "PLAUDIT_WHEEL": str(wheel)},
        )
    except ReleaseError as error:
        print(f"release: error: {error}", file=sys.stderr)
        return 1
    print(f"\n{sdist.relative_to(ROOT)}\n{wheel.relative_to(ROOT)}\nTo publish them:")
    print(f"  git commit -am 'Release {version}' && git tag -a v{version} -m {version} && git push --follow-tags")
    return 0


def refuse_uncommitted(root: Path) -> None:
    """Raises ReleaseError where the release would hold what is in no commit."""
    status = ["git", "-C", str(root), "status", "--porcelain"]
    if changed := subprocess.run(status, check=True, capture_output=True, text=True).stdout:
        raise ReleaseError(f"not committed: {', '.join(line[3:] for line in changed.splitlines())}")


def prepare(root: Path, version: str, today: datetime.date) -> None:
    """Set the version in every file that names it, and date the changelog's section.

    Raises:
        ReleaseError: the version is not X.Y.Z or not a new one, or nothing was changed since the last.
    """
    step(f"{version}: setting the version, dating the changelog")
    changelog, pyproject = root / "CHANGELOG.md", root / "pyproject.toml"
    dated = date_changelog(changelog.read_text(encoding="utf-8"), version, today)
    text = pyproject.read_text(encoding="utf-8")
    current = tomllib.loads(text)["project"]["version"]
    if parse(version) < parse(current):
        raise ReleaseError(f"{version} is older than {current} of pyproject.toml")
    pyproject.write_text(text.replace(f'\nversion = "{current}"\n', f'\nversion = "{version}"\n'), encoding="utf-8")
    changelog.write_text(dated, encoding="utf-8")
    for overlay in overlays(root):
        text = overlay.read_text(encoding="utf-8")
        overlay.write_text(text.replace(f"newTag: {current}-", f"newTag: {version}-"), encoding="utf-8")


def date_changelog(text: str, version: str, today: datetime.date) -> str:
    """The changelog whose unreleased changes are those of this version.

    Raises:
        ReleaseError: there are none, or the version is not newer than the newest one there.
    """
    sections = list(SECTION.finditer(text))
    if not sections or sections[0]["version"] != UNRELEASED:
        raise ReleaseError(f"CHANGELOG.md: its first section is not [{UNRELEASED}]")
    end = sections[1].start() if len(sections) > 1 else len(text)
    if "\n- " not in text[sections[0].end() : end]:
        raise ReleaseError(f"CHANGELOG.md: nothing stands under [{UNRELEASED}], so there is nothing to release")
    for section in sections[1:]:
        if parse(section["version"]) >= parse(version):
            raise ReleaseError(f"{version} is not newer than {section['version']} of CHANGELOG.md; choose a higher one")
    heading = f"## [{UNRELEASED}]\n\n## [{version}] - {today.isoformat()}"
    return text[: sections[0].start()] + heading + text[sections[0].end() :]


def check_texts(root: Path) -> str:
    """The version, if pyproject.toml, changelog and overlays agree on it.

    Raises:
        ReleaseError: they do not.
    """
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    parse(version)
    dated = [s["version"] for s in SECTION.finditer((root / "CHANGELOG.md").read_text(encoding="utf-8")) if s["date"]]
    if not dated or dated[0] != version:
        raise ReleaseError(
            f"CHANGELOG.md: its newest dated section is {dated[0] if dated else 'none'}, but pyproject.toml says "
            f"{version}; make release VERSION={version}"
        )
    for overlay in overlays(root):
        if f"newTag: {version}-" not in overlay.read_text(encoding="utf-8"):
            raise ReleaseError(f"{overlay.relative_to(root)}: its image is not of version {version}")
    return str(version)


def overlays(root: Path) -> list[Path]:
    """The files of the Kubernetes overlays, whose image tags begin with the version."""
    return sorted((root / "deploy" / "kubernetes" / "overlays").glob("*/kustomization.yaml"))


def parse(version: str) -> tuple[int, ...]:
    """X.Y.Z as numbers.

    Raises:
        ReleaseError: it is something else.
    """
    match = VERSION.fullmatch(version)
    if match is None:
        raise ReleaseError(f"{version!r} is not a version X.Y.Z")
    return tuple(map(int, match.groups()))


def build(root: Path, tools: Path) -> tuple[Path, Path]:
    """Make the sdist, and the wheel from that sdist, in dist/ and nothing else there."""
    dist = root / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    run(tools / "python", "-m", "build", "--no-isolation", "--outdir", dist, root)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return sdist, wheel


def check_sdist(sdist: Path, version: str) -> None:
    """Raises ReleaseError where the sdist lacks what a build needs."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "PKG-INFO"} - names
    if missing or sdist.name != f"plaudit-{version}.tar.gz":
        raise ReleaseError(f"{sdist.name}: not version {version}, or without {sorted(missing)}")


def check_wheel(wheel: Path, version: str, project: dict[str, dict[str, object]]) -> None:
    """Raises ReleaseError where the wheel holds other packages, commands or another version than the project says."""
    targets = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]  # type: ignore[index]
    packages = {Path(package).name for package in targets}
    information = f"plaudit-{version}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        if {name.split("/")[0] for name in names} != {*packages, information}:
            raise ReleaseError(f"{wheel.name}: holds {sorted({name.split('/')[0] for name in names})}")
        entries = archive.read(f"{information}/entry_points.txt").decode()
    required = {f"{package}/py.typed" for package in packages} | {f"{information}/licenses/LICENSE"}
    if required - names:
        raise ReleaseError(f"{wheel.name}: lacks {sorted(required - names)}")
    commands = configparser.ConfigParser()
    commands.read_string(entries)
    if dict(commands["console_scripts"]) != project["project"]["scripts"]:
        raise ReleaseError(f"{wheel.name}: its commands are not those of pyproject.toml")


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Raises ReleaseError where a command fails."""
    if subprocess.run([str(part) for part in command], check=False, env=env).returncode:
        raise ReleaseError(f"{Path(command[0]).name} {' '.join(map(str, command[1:3]))} failed; see above")


def step(text: str) -> None:
    """Say what comes next."""
    print(f"release: {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
