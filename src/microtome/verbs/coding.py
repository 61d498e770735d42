"""The network's part of a package: as files that everybody reads, or all of them entropy-coded in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from microtome.entropy.container import read, write
from microtome.entropy.packages import CODED
from microtome.graph import pt2
from microtome.graph.coded import NETWORK, WEIGHTS, apart, together
from microtome.graph.network import Network
from microtome.graph.packed import as_packed, save_packed
from microtome.package import target_folder
from microtome.results import Result
from microtome.runtimes import runtime
from microtome.verbs.options import AUTO
from microtome.verbs.request import Request
from microtome.verbs.targets import Made


def is_coded(request: Request) -> bool:
    """Whether the package is to be coded: as the user says, or else the recipe."""
    if request.options.coded is not None:
        return request.options.coded
    return request.recipe != AUTO and any(recipe.coded for recipe in request.recipes)


def with_weights_on_grids(request: Request, network: Network) -> Network:
    """Return a network whose weights are what their codes say, if the package is to be coded: it computes the same."""
    return as_packed(network) if is_coded(request) else network


def write_network(folder: Path, made: Sequence[Made], request: Request) -> list[Made]:
    """Write the networks, and the first one's weights; of a package that is to be coded the first network and all model
    files into one.

    Args:
        folder: the package as far as it is, with the files of its targets.
        made: what came out for each target.
        request: of the package.

    Returns:
        What came out, with the bytes on disk.
    """
    network = made[0].network.to("cpu")
    pt2.save(network, folder / NETWORK)
    if not is_coded(request):
        save_packed(network, folder / WEIGHTS)
        for one in made[1:]:  # for `parity`: each target's file has a network of its own
            pt2.save(one.network.to("cpu"), folder / target_folder(one.name) / NETWORK)
        return list(made)
    content = (folder / NETWORK).read_bytes()
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in _exported(folder, made)}
    files |= apart(network, content)
    coded = write(files)
    assert read(coded) == files
    assert together(files, folder / CODED) == content
    (folder / CODED).write_bytes(coded)
    for path in (*_exported(folder, made), folder / NETWORK):
        path.unlink()
    for emptied in (folder / target_folder(made[0].name), folder / "targets"):  # others get a result.json
        if not any(emptied.iterdir()):
            emptied.rmdir()
    return [replace(one, result=_with_size(one.result, len(coded))) for one in made]


def _exported(folder: Path, made: Sequence[Made]) -> list[Path]:
    """Return the files that the targets' runtimes open."""
    found: list[Path] = []
    for one in made:
        session = one.result["session"]
        found += runtime(session["runtime"]).files(folder / target_folder(one.name) / session["file"])
    return found


def _with_size(result: Result, size: int) -> Result:
    """Return a target's result with the size of the coded file in place of the size of what it decodes to."""
    runs = [{**run, "bytes": size} if run.get("compressed") else run for run in result.get("runs", ())]
    sized: Result = {
        **result,
        "compressed": {**result["compressed"], "bytes": size},
        "packed": {**result.get("packed", {}), "coded_bytes": size, "decoded_bytes": result["compressed"]["bytes"]},
    }
    return {**sized, "runs": runs} if runs else sized  # type: ignore[typeddict-item]
