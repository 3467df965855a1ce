"""`allocate --export ENGINE`: the map in an engine's own names, in a file that it reads."""

from collections.abc import Sequence
from pathlib import Path

from kvdelta.analysis.cli.starting import note
from kvdelta.analysis.reading.exporting import EXACT, JOINT, Export, Pair, export
from kvdelta.harness.records.writing import write_file
from kvdelta.schemes import Scheme, parse_scheme
from kvdelta.schemes.engines import presets
from kvdelta.schemes.errors import UserError


def check_export(engine: str | None, specs: Sequence[str]) -> None:
    """UserError, before anything is measured, for an engine that has no name for a candidate."""
    if engine is None:
        return
    for spec in specs:
        scheme = parse_scheme(spec)
        try:
            _names(engine, scheme)
        except UserError as error:
            known = " ".join(f"--scheme {engine}/{name}" for name in presets(engine))
            raise UserError(f"{error}; give candidates that it has: {known}") from None


def export_map(engine: str, scheme: Scheme, layers: int, folder: Path) -> Path:
    """Write the map of a model of so many layers; says what to do with it. UserError where the engine cannot store it so."""
    said: Export = export(engine, [_names(engine, scheme.for_layer(index, layers)) for index in range(layers)])
    path = folder / "export" / said.name
    write_file(path, said.content.encode())
    note(f"for {engine}: {path}; {said.use}")
    return path


def _names(engine: str, scheme: Scheme) -> Pair:
    """What the engine calls the keys and the values that are stored as `scheme` says."""
    known = {name: parse_scheme(preset.spec) for name, preset in presets(engine).items()}
    lossless = scheme.key.quantizer.lossless, scheme.value.quantizer.lossless
    if all(lossless):
        return EXACT, EXACT
    if engine in JOINT:  # one name may be of keys and values that differ
        together = [name for name, one in known.items() if (one.key, one.value) == (scheme.key, scheme.value)]
        if together:
            return together[0], together[0]
    sides = []
    for side, exact in zip(("key", "value"), lossless, strict=True):
        own = [name for name, one in known.items() if one.sides[side] == scheme.sides[side]]
        if not own and not exact:
            raise UserError(f"{engine} has no name for {side}s stored as {scheme.name}")
        sides.append(EXACT if exact else own[0])
    return sides[0], sides[1]
