"""What a store holds, as lookup and removal see it: pure answers over one snapshot.

A catalog is replaced as a whole whenever the store's records change, so that reading needs no lock.
Names follow docker: a full id, then a name (whose tag is "latest" if none is said), then the unique
beginning of an id; removal untags first, and deletes with the last name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import evolve, field, frozen

from orchestra.image.digest import is_digest
from orchestra.image.media import Descriptor
from orchestra.image.reference import Reference, parse_reference
from orchestra.image.store import Record
from orchestra.model.container import Image
from orchestra.model.errors import Conflict, Invalid, NotFound

_SHORT = 12  # digits of an id in messages


@frozen
class Line:
    """A record with the image it leads to; `name` is canonical, "" of an untagged image."""

    name: str
    target: Descriptor
    image: Image


@frozen
class Removal:
    """What a removal will do: take `names` (canonical) away, and the image unless `keep`."""

    image: Image
    names: tuple[str, ...]
    keep: bool


@frozen
class Catalog:
    images: tuple[Image, ...] = ()  # newest first
    lines: tuple[Line, ...] = ()
    lowers: Mapping[str, tuple[str, ...]] = field(factory=dict)  # by image id, topmost first

    def by_id(self, image_id: str) -> Image:
        for image in self.images:
            if image.id == image_id:
                return image
        raise NotFound(f"No such image: {image_id}")

    def of(self, image: Image) -> tuple[Line, ...]:
        """The image's lines; there is always one."""
        return tuple(line for line in self.lines if line.image.id == image.id)

    def find(self, ref: str) -> tuple[Image, str]:
        """The image that `ref` means, and the canonical name it was found by ("": by an id).

        NotFound("No such image: ..."); Invalid where a beginning fits several ids.
        """
        if is_digest(ref):
            for image in self.images:
                if ref in (image.id, image.manifest_digest):
                    return image, ""
            raise NotFound(f"No such image: {ref}")
        shown = ref
        try:
            reference = parse_reference(ref).tagged()
        except Invalid:
            if not _is_beginning(ref):
                raise
        else:
            shown = reference.familiar()
            for line in self.lines:
                if _is_named(line, reference):
                    return line.image, line.name
        if _is_beginning(ref):
            beginning = f"sha256:{ref.removeprefix('sha256:')}"
            fitting = [image for image in self.images if image.id.startswith(beginning)]
            if len(fitting) == 1:
                return fitting[0], ""
            if fitting:
                raise Invalid(f"image id {ref!r} is ambiguous: {len(fitting)} images begin with it")
        raise NotFound(f"No such image: {shown}")

    def to_save(self, ref: str) -> Sequence[Line]:
        """The lines that `ref` means for an archive: a bare repository means all its tags, an id
        no name."""
        repository = _bare_repository(ref)
        lines = [line for line in self.lines if repository_of(line.name) == repository != ""]
        if lines:
            return lines
        image, name = self.find(ref)
        if name:
            return [line for line in self.lines if line.name == name]
        return [evolve(self.of(image)[0], name="")]

    def removal(self, ref: str, force: bool, in_use: Mapping[str, str]) -> Removal:
        """Decide as docker does; `in_use` maps image ids to who has them ("container web").

        Conflict in docker's words. With `force` a name is taken from an image in use, whose data
        stays, untagged; by its id such an image cannot be removed.
        """
        image, name = self.find(ref)
        user = in_use.get(image.id)
        short = image.id.removeprefix("sha256:")[:_SHORT]
        names = tuple(line.name for line in self.of(image) if line.name)
        if name:
            if names == (name,) and user and not force:
                raise Conflict(
                    f'conflict: unable to remove repository reference "{ref}" (must force) - '
                    f"{user} is using its referenced image {short}"
                )
            return Removal(image, (name,), keep=names != (name,) or user is not None)
        if user:
            raise Conflict(
                f"conflict: unable to delete {short} (cannot be forced) - image is being used by "
                f"{user}"
            )
        if len({repository_of(name) for name in names}) > 1 and not force:
            raise Conflict(
                f"conflict: unable to delete {short} (must be forced) - image is referenced in "
                "multiple repositories"
            )
        return Removal(image, names, keep=False)


def renamed(
    records: tuple[Record, ...], name: str, target: Descriptor | None
) -> tuple[Record, ...]:
    """The records with `name` on `target`, or on nothing. An image that loses its last name stays,
    untagged; one that gets a name is untagged no more."""
    kept = [record for record in records if record.name != name]
    if target is not None:
        kept = [r for r in kept if r.name or r.target.digest != target.digest]
        kept.append(Record(name, target))
    for record in records:
        digest = record.target.digest
        if record.name == name and not any(r.target.digest == digest for r in kept):
            kept.append(Record("", record.target))
    return tuple(kept)


def taggable(name: str) -> Reference:
    """The reference that `name` is as a tag: "latest" added, a digest refused."""
    reference = parse_reference(name)
    if reference.digest:
        raise Invalid(f"cannot name an image {name!r}: a digest is what it is, not a name to give")
    return reference.tagged()


def repository_of(name: str) -> str:
    """The repository of a canonical name, "" of ""."""
    return parse_reference(name).repository if name else ""


def _bare_repository(ref: str) -> str:
    """The repository that `ref` is if it says neither tag nor digest, else ""."""
    try:
        reference = parse_reference(ref)
    except Invalid:
        return ""
    return "" if reference.tag or reference.digest else reference.repository


def _is_named(line: Line, reference: Reference) -> bool:
    if not line.name:
        return False
    if reference.digest:
        return repository_of(line.name) == reference.repository and reference.digest in (
            line.target.digest,
            line.image.manifest_digest,
        )
    return line.name == reference.canonical()


def _is_beginning(ref: str) -> bool:
    """Whether `ref` may be the beginning of an id."""
    digits = ref.removeprefix("sha256:")
    return 0 < len(digits) <= 64 and all(digit in "0123456789abcdef" for digit in digits)
