"""Which checkpoint a source is, so that none is exported twice: its commit on the hub, or the hashes of its files.

Needs neither torch nor the hub's weights.
"""

from dataclasses import dataclass
from typing import Any

from plaudit_export.checkpoints.config_files import is_adapter, read_adapter_config
from plaudit_export.checkpoints.places import base_of, checkpoint_files, look_up
from plaudit_export.errors import SourceError
from plaudit_export.recipes.on_disk import recipe_on_disk
from plaudit_service.bundles.bundle import sha256_of


@dataclass(frozen=True)
class Identity:
    """A checkpoint that does not change any more.

    Attributes:
        source: what to export: a directory as it is, or a hub id at its commit.
        name: of the directory or the repository.
        content: JSON that is equal exactly where the checkpoints are: commit, or hashes and what names the trainer; of
            an adapter its base's, too.
    """

    source: str
    name: str
    content: dict[str, Any]

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter on a base."""
        return "base" in self.content


def identify(source: str) -> Identity:
    """What a directory or a hub id is now. The files of a directory are read as a whole.

    Hashes, because sizes and times do not tell two checkpoints of one shape apart: images and archives set times.

    Raises:
        SourceError: there is no such checkpoint.
    """
    place = look_up(source)
    content: dict[str, Any] = {"id": place.id, "commit": place.revision}
    if place.revision is None:
        try:
            files = {
                str(file.relative_to(place.directory)): sha256_of(file) for file in checkpoint_files(place.directory)
            }
        except OSError as error:
            raise SourceError(f"{source}: cannot be read ({error})") from error
        content["files"] = files
        if named := recipe_on_disk(place.directory):
            content["trained_by"] = named.by
    else:
        source = f"{place.id}@{place.revision}"
    if is_adapter(place.directory):
        fields = read_adapter_config(place.directory)
        base, revision = base_of(place.directory, fields["base_model_name_or_path"]), fields.get("revision")
        content["base"] = identify(base if revision is None else f"{base}@{revision}").content
    return Identity(source, place.id, content)
