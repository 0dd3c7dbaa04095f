"""Bring a bundle to a directory and verify it, before a service is started on it. Knows nothing of engines or HTTP."""

import shutil
from pathlib import Path

from plaudit_service.bundles import hub
from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.errors import BundleError
from plaudit_service.whole_files import whole_directory


def fetch(source: str, directory: Path, fingerprint: str | None) -> str:
    """Bring a bundle to a directory and verify every hash there; returns its fingerprint.

    The directory is there as a whole or not at all. One that is there already is verified and left as it is.

    Args:
        source: A bundle directory, or its hub id `org/name[@revision]`.
        directory: Where it shall be.
        fingerprint: The only one to accept; None: any.

    Raises:
        BundleError: there is no such bundle, it is damaged, it has another fingerprint, or it cannot be copied.
    """
    try:
        is_there = directory.exists()
    except OSError as error:  # its name is too long
        raise BundleError(f"{directory}: cannot be made ({error.strerror})") from error
    if is_there:
        return _verify(directory, fingerprint)
    found = hub.local_directory(source)
    aside = None
    try:
        with whole_directory(directory) as aside:
            for file in found.iterdir():
                shutil.copyfile(file, aside / file.name)  # also of a link: a bundle holds plain files only
            return _verify(aside, fingerprint)
    except OSError as error:
        if aside is None:
            raise BundleError(f"{directory}: cannot be made ({error.strerror})") from error
        raise BundleError(f"bundle {source}: cannot be copied to {directory} ({error})") from error


def _verify(directory: Path, fingerprint: str | None) -> str:
    bundle = load_bundle(directory)
    if fingerprint not in (None, bundle.fingerprint):
        raise BundleError(
            f"bundle {bundle.name}: its fingerprint is {bundle.fingerprint}, not {fingerprint} as asked for; "
            f"fetch the bundle with that fingerprint, or give --fingerprint {bundle.fingerprint} if this bundle "
            "is the right one"
        )
    return bundle.fingerprint
