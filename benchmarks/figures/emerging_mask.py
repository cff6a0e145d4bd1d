r"""Figure 3: the mask as it emerges while the memory is sampled, from noise to the last step.

Run from the bundle's folder, with one list of config files for each block of columns:

    DEMO="'configs/train.json','configs/evaluate.json'"
    python -m benchmarks.figures.emerging_mask --output runs/figures \
        --config_files "{'CT': [$DEMO], 'MR': [$DEMO,'configs/sf_uda.json','configs/sf_uda_demo.json']}"

Slices are decoded each by itself (no 3D). The first row reads pure noise as a memory; each further row reads the memory
as it is after that step of one and the same chain, with noise in it until the last step, or with ``--show prediction``
the clean memory that the prior predicts at that step. Below a panel stands the mean Dice of the organs in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.metrics import compute_dice
from scripts.networks.logits import resize_logits, with_background
from scripts.output.previews import add_legend, draw_slice
from torch import Tensor

from benchmarks.configuration import load_prior
from benchmarks.figures.common import open_configuration, volumes, write
from benchmarks.program import run_command


@dataclass(frozen=True)
class Block:
    """The columns of one configuration.

    Attributes:
        name: such as "MR".
        case: its test case that is shown.
        organs: of the label values 1, 2, ...
        slices: numbers of the n slices shown.
        image: ``(n, S, S)`` in [0, 1].
        true: ``(n, S, S)`` label values.
        predicted: ``(rows, n, S, S)`` label values: from noise, and after each step shown.
        dice: ``(rows, n)``, the mean of the organs that a slice holds or is said to hold.
        about: what it was made with.
    """

    name: str
    case: str
    organs: list[str]
    slices: list[int]
    image: Tensor
    true: Tensor
    predicted: Tensor
    dice: Tensor
    about: dict[str, Any]


def main(
    config_files: Mapping[str, Sequence[str]],
    output: str,
    steps: int = 10,
    shown: Sequence[int] = (6, 7, 8, 9, 10),
    columns: int = 2,
    show: str = "sample",
    **overrides,
) -> dict[str, Any]:
    """Draws the figure, and writes its numbers.

    Args:
        config_files: for each block of columns its name and its config files, as for ``monai.bundle run evaluating``.
            The first test case is shown; ``prior_file`` is the prior.
        output: folder of ``emerging_mask.png`` and ``emerging_mask.json``.
        steps: of the chain.
        shown: steps that get a row, after the noise.
        columns: slices of each block, spread evenly over those that hold an organ.
        show: "sample" or "prediction", see above.
        overrides: values to change in all configurations, such as ``--eta``.
    """
    if show not in ("sample", "prediction"):
        raise ValueError(f"show must be 'sample' or 'prediction', got {show!r}.")
    shown = list(shown)
    if not shown or sorted(set(shown)) != shown or not 1 <= shown[0] <= shown[-1] <= steps:
        raise ValueError(f"shown must be steps from 1 to {steps}, each after the one before, got {shown}.")
    blocks = [
        open_block(name, config_file, overrides=overrides, steps=steps, shown=shown, columns=columns, show=show)
        for name, config_file in config_files.items()
    ]
    content = {
        "steps": steps,
        "rows": [0, *shown],
        "show": show,
        "blocks": {
            each.name: {"case": each.case, "slices": each.slices, "dice": each.dice.tolist(), **each.about}
            for each in blocks
        },
    }
    write(output, "emerging_mask", draw(blocks, ["noise"] + [f"step {step} of {steps}" for step in shown]), content)
    return content


@torch.no_grad()
def open_block(name, config_file, *, overrides, steps: int, shown: Sequence[int], columns: int, show: str) -> Block:
    """Segments the slices of one configuration, once for each row."""
    parser = open_configuration(config_file, overrides)

    network, prior_file = load_prior(parser), parser.get_parsed_content("prior_file")
    case, image, label = next(volumes(parser))
    held = label.flatten(1).any(1).nonzero()[:, 0]
    slices = held[torch.linspace(0, len(held) - 1, columns + 2).round().long()[1:-1].unique()]
    seen = network.backbone.shown(image)
    features = network.backbone.encode_image(seen[slices].to(next(network.parameters()).device))
    predicted = torch.stack(
        [
            with_background(resize_logits(network.segment(features, memory), label.shape[-1])).argmax(1).cpu()
            for memory in chain(network, features, steps, shown, show)
        ]
    )
    true = label[slices, 0]
    return Block(
        name=name,
        case=case,
        organs=network.organs,
        slices=slices.tolist(),
        image=image[slices, 0],
        true=true,
        predicted=predicted,
        dice=torch.stack([slice_dice(row, true, len(network.organs)) for row in predicted]),
        about={"prior_file": str(prior_file), "backbone": network.backbone.name},
    )


def chain(network, features, steps: int, shown: Sequence[int], show: str) -> list[Tensor]:
    """Memories ``(n * organs, M, h, w)``: noise, and after each of the steps shown. Noise as inference draws it."""
    prior, (repeated, organ) = network.prior, network.each_organ(features)
    generator = network.generator()
    shape = (len(network.organs), prior.memory_channels, *features.embedding.shape[-2:])
    noise = torch.randn(shape, generator=generator).repeat(len(features), 1, 1, 1).to(features.embedding)
    memories = [prior.destandardise(noise)]
    walk = prior.denoise(repeated, organ, steps=steps, eta=network.eta, generator=generator, noise=noise)
    for step, (prediction, sample) in enumerate(walk, start=1):
        if step in shown:
            memories.append(prediction if show == "prediction" else sample)
    return memories


def slice_dice(predicted: Tensor, true: Tensor, organs: int) -> Tensor:
    """Mean Dice ``(n,)`` of the organs that are in either of two label maps ``(n, S, S)``; NaN where none is."""
    values = torch.arange(1, organs + 1).view(1, -1, 1, 1)
    masks = [(labels[:, None] == values).float() for labels in (predicted, true)]
    dice = compute_dice(*masks, include_background=True, ignore_empty=False)
    there = (masks[0] + masks[1]).flatten(2).any(2)
    return torch.where(there, dice, torch.nan).nanmean(1)


def draw(blocks: Sequence[Block], rows: Sequence[str]) -> Figure:
    """Rows of the chain, columns of slices; the blocks side by side."""
    columns = sum(len(block.slices) for block in blocks)
    figure = Figure(figsize=(1.8 * columns + 0.3, 1.95 * len(rows) + 0.6), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    shown = ((block, index) for block in blocks for index in range(len(block.slices)))
    for column, (block, index) in enumerate(shown):
        axes[0, column].set_title(f"{block.name}: {block.case}, slice {block.slices[index]}", color="white", fontsize=8)
        for row, axis in enumerate(axes[:, column]):
            predicted, true = block.predicted[row, index].numpy(), block.true[index].numpy()
            draw_slice(axis, block.image[index].numpy(), predicted, true=true, organs=len(block.organs), window=(0, 1))
            below = {"transform": axis.transAxes, "ha": "center", "va": "top", "color": "white", "fontsize": 8}
            axis.text(0.5, -0.02, f"Dice {block.dice[row, index]:.3f}", **below)
    for axis, text in zip(axes[:, 0], rows):
        beside = {"transform": axis.transAxes, "ha": "right", "va": "center", "color": "white", "fontsize": 8}
        axis.text(-0.04, 0.5, text, rotation=90, **beside)
    add_legend(figure, blocks[0].organs, with_truth=True)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


if __name__ == "__main__":
    run_command(main, serialize=lambda result: None)
