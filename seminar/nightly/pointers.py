"""What is in use, moved as one: the `current` pointers of a bundle and of all it was made from, forward, undone, and back.

No file system moves five pointers at once. Servers read that of the bundle alone, so it moves last; a move may be repeated, which
is how a crash in between is finished.
"""

from collections.abc import Mapping

from seminar.artifacts import Artifact, Store

POINTERS = ("pairs", "vectors", "codebooks", "index", "bundle")
"""Kinds that a night makes current, in this order; `index` only where the bundle has one."""


def current_versions(store: Store) -> dict[str, str | None]:
    """Where every pointer of a night stands; None for one that was never set."""
    return {kind: store.current(kind) if (store.root / kind / "current.json").is_file() else None for kind in POINTERS}


def move_pointers(store: Store, versions: Mapping[str, str]) -> None:
    """Make these current. Idempotent, so that a rerun finishes what a crash between two pointers left."""
    for kind in filter(versions.__contains__, POINTERS):
        store.set_current(kind, versions[kind])


def move_back(store: Store, versions: Mapping[str, str], before: Mapping[str, str | None]) -> None:
    """Undo `move_pointers`: no pointer of a night is left, nor is it offered to a later rollback. Idempotent."""
    for kind in filter(versions.__contains__, reversed(POINTERS)):
        moved = before[kind] not in (None, versions[kind])
        if moved and store.current(kind) == versions[kind]:
            store.rollback(kind)


def restore(store: Store, bundle: Artifact) -> None:
    """Make an earlier bundle current with all that it was made from, `bundle` last; a crash in between is finished by a rerun."""
    made_from = {kind: ref.version for kind, ref in bundle.manifest.inputs.items() if store.exists(kind, ref.version)}
    for kind, version in {**made_from, "bundle": bundle.version}.items():
        # Back along the pointer's own history where that leads there: what is rolled back is not offered again.
        if store.previous(kind)[:1] == [version]:
            store.rollback(kind)
        else:
            store.set_current(kind, version)
