"""Whether a network's inputs and outputs, by their names, are those that a pipeline speaks of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from microtome.errors import OptionError
from microtome.medical.inputs import IMAGE
from microtome.medical.pipeline import Pipeline

if TYPE_CHECKING:
    from microtome.graph.network import Network


def check_inputs(network: Network, pipeline: Pipeline | None) -> None:
    """Check that all that a network takes beside the image is declared, with as many channels or numbers.

    Raises:
        OptionError: what it takes otherwise.
    """
    declared = {name: (channels, spatial) for name, channels, spatial in (pipeline.apart if pipeline else ())}
    image, *others = network.inputs
    takes = {port.name: (port.shape[0] if port.shape else 0, len(port.shape) > 1) for port in others}
    missing = [name for name in takes if name not in declared]
    if missing:
        names = ", ".join(port.name for port in network.inputs)
        raise OptionError(
            f"the network takes {len(network.inputs)} inputs ({names}); nothing says where {missing[0]} comes from.",
            f'Declare it in pipeline.json: "inputs": {{"{missing[0]}": {{"columns": […]}}}}, or images, or labels.',
        )
    unknown = [name for name in declared if name not in takes]
    if unknown:
        raise OptionError(
            f"the pipeline declares the input '{unknown[0]}', which the network does not take.",
            f"It takes {', '.join([image.name, *takes])}.",
        )
    for name, (channels, spatial) in declared.items():
        if takes[name] != (channels, spatial):
            what = "channels" if spatial else "numbers"
            own = f"{takes[name][0]} {'channels' if takes[name][1] else 'numbers'}"
            raise OptionError(
                f"the network's input '{name}' takes {own}, the pipeline gives {channels} {what}.",
                f"Correct inputs.{name} in pipeline.json.",
            )


def with_names(pipeline: Pipeline, network: Network, output: str | None) -> Pipeline:
    """Return the pipeline with the names of what it reads, where there are several, or `output` was asked for."""
    if pipeline.apart or (pipeline.keep and network.inputs[0].name != IMAGE):
        pipeline = replace(pipeline, input=network.inputs[0].name)
    names = [port.name for port in network.outputs]
    if output is not None or len(names) > 1:
        pipeline = replace(pipeline, output=names[0])
    return pipeline
