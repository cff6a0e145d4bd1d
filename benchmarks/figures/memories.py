r"""Figure 2: generated memories and true ones, organ by organ, at several stages of training.

Run from the bundle's folder, after a training with ``--snapshots "[25]"``, which keeps the prior after 25 iterations:

    python -m benchmarks.figures.memories \
        --config_file "['configs/train.json','configs/evaluate.json']" \
        --priors "{'25 iterations': 'runs/train/model_000025.pt', '500 iterations': 'runs/train/model.pt'}"

A t-SNE map shows neighbourhoods and no distances, and can be drawn until it pleases. So numbers stand beside it, of the
memories themselves, standardised per channel as the prior sees them:

* ``distance_to_own``: how far a generated memory is from the true one of its slice and organ, on average, divided by
  the mean distance between true memories of different organs. ``distance_within_organ`` is the same for true memories
  of one organ, another slice's in place of the generated one: what a prior would reach that knows the organ alone.
* ``organ_retrieved``, ``slice_retrieved``: share of generated memories whose nearest true memory, of all slices and
  organs shown, is of the right organ; is that of the very slice and organ.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scripts.networks.logits import mask_to_logits
from scripts.output.previews import COLOURS
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from tqdm import tqdm

from benchmarks.configuration import load_prior
from benchmarks.figures.common import open_configuration, volumes, write
from benchmarks.program import run_command

SETTINGS = ("backbone_name", "image_size", "inference_steps", "eta", "memory_samples")


def main(
    config_file,
    priors: Mapping[str, str],
    output: str | None = None,
    slices: int = 100,
    perplexity: float = 30.0,
    **overrides,
) -> dict[str, Any]:
    """Draws the figure, and writes its numbers.

    Args:
        config_file: config files as for ``monai.bundle run evaluating``.
        priors: files of trained priors by the name of their stage, in the order of the panels.
        output: folder of ``memories.png`` and ``memories.json``; by default ``figures`` in ``output_dir``.
        slices: whose memories are shown, spread evenly over those of all test cases that hold an organ.
        perplexity: of t-SNE, about the number of neighbours that a point keeps.
        overrides: values of the configuration to change, such as ``--test_cases``.
    """
    parser = open_configuration(config_file, overrides)
    organs, seed = parser.get_parsed_content("organs"), parser.get_parsed_content("seed")
    found = memories(parser, priors, slices)
    organ, true, generated = found.organ, found.true, found.generated
    settings = {key: parser.get_parsed_content(key) for key in (*SETTINGS, "seed")}
    content = {
        "settings": {**settings, "slices": slices, "perplexity": perplexity},
        "cases": found.cases,
        "organs": organs,
        "memories": torch.bincount(organ, minlength=len(organs)).tolist(),
        "distance_within_organ": distance_within_organ(true, organ),
        "stages": {
            stage: {"prior_file": str(priors[stage]), **agreement(each, true, organ)}
            for stage, each in generated.items()
        },
    }
    places = project(torch.cat([true, *generated.values()]), perplexity, seed).split(len(true))
    figure = draw(places[0], dict(zip(generated, places[1:])), organ, organs)
    write(output or f"{parser.get_parsed_content('output_dir')}/figures", "memories", figure, content)
    for stage, numbers in content["stages"].items():
        print(f"{stage}: " + ", ".join(f"{key} {numbers[key]:.3f}" for key in numbers if key != "prior_file"))
    print(f"true memories of one organ among themselves: {content['distance_within_organ']:.3f}")
    return content


@dataclass(frozen=True)
class Memories:
    """True and generated memories, standardised per channel and flattened.

    Attributes:
        cases: their names.
        organ: labels ``(N,)``.
        true: ``(N, d)``.
        generated: of each stage, ``(N, d)``.
    """

    cases: list[str]
    organ: Tensor
    true: Tensor
    generated: dict[str, Tensor]


@torch.no_grad()
def memories(parser, priors: Mapping[str, str], slices: int) -> Memories:
    """Of the organs that slices hold."""
    network = parser.get_parsed_content("network")
    stages = {}
    for stage, path in priors.items():
        load_prior(parser, path)
        stages[stage] = deepcopy(network.prior)
    cases, image, label = zip(*volumes(parser))
    image, label = torch.cat([network.backbone.shown(each) for each in image]), torch.cat(label)
    held = label.flatten(1).any(1).nonzero()[:, 0]
    chosen = held[torch.linspace(0, len(held) - 1, min(slices, len(held))).round().long()]
    device, count = next(network.parameters()).device, len(network.organs)
    organ, true, generated = [], [], {stage: [] for stage in stages}
    for index in tqdm(chosen.split(parser.get_parsed_content("encode_batch_size"))):
        features = network.backbone.encode_image(image[index].to(device))
        mask = (label[index] == torch.arange(1, count + 1).view(1, -1, 1, 1)).flatten(0, 1)[:, None]
        present = mask.flatten(1).any(1)
        memory = network.backbone.encode_memory(network.each_organ(features)[0], mask_to_logits(mask).to(device))
        organ.append(torch.arange(count).repeat(len(index))[present])
        true.append(network.prior.standardise(memory)[present].flatten(1).cpu())
        for stage, prior in stages.items():
            network.prior = prior
            memory = network.synthesise(features)
            # by the statistics of the training set, which are the same at every stage
            generated[stage].append(prior.standardise(memory)[present].flatten(1).cpu())
    by_stage = {stage: torch.cat(each) for stage, each in generated.items()}
    return Memories(list(cases), torch.cat(organ), torch.cat(true), by_stage)


def agreement(generated: Tensor, true: Tensor, organ: Tensor) -> dict[str, float]:
    """How well N generated memories agree with the N true ones ``(N, d)``; see the module's text."""
    distance = torch.cdist(generated, true)
    nearest = distance.argmin(1)
    return {
        "distance_to_own": (distance.diagonal().mean() / _between_organs(true, organ)).item(),
        "organ_retrieved": (organ[nearest] == organ).float().mean().item(),
        "slice_retrieved": (nearest == torch.arange(len(true))).float().mean().item(),
    }


def distance_within_organ(true: Tensor, organ: Tensor) -> float:
    """Mean distance of two true memories ``(N, d)`` of one organ, relative to two of different organs."""
    same = (organ[:, None] == organ).fill_diagonal_(False)
    return (torch.cdist(true, true)[same].mean() / _between_organs(true, organ)).item()


def _between_organs(true: Tensor, organ: Tensor) -> Tensor:
    return torch.cdist(true, true)[organ[:, None] != organ].mean()


def project(memories: Tensor, perplexity: float, seed: int) -> Tensor:
    """One t-SNE map of all memories ``(N, d)``, after the customary reduction to 50 principal components."""
    components = min(50, *memories.shape)
    reduced = PCA(components, random_state=seed).fit_transform(memories.numpy())
    perplexity = min(perplexity, (len(memories) - 1) / 3)
    return torch.from_numpy(TSNE(perplexity=perplexity, random_state=seed).fit_transform(reduced))


def draw(true: Tensor, generated: Mapping[str, Tensor], organ: Tensor, organs) -> Figure:
    """A panel for each stage: true memories, the same in all panels, as rings, generated ones as crosses."""
    figure = Figure(figsize=(4.6 * len(generated), 4.9), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(generated), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (stage, points) in zip(axes, generated.items()):
        for value in range(len(organs)):
            colour, chosen = COLOURS[value % len(COLOURS)], organ == value
            axis.scatter(*true[chosen].T, s=22, facecolors="none", edgecolors=colour, linewidths=0.8)
            axis.scatter(*points[chosen].T, s=16, marker="x", c=colour, linewidths=0.8)
        axis.set_title(stage, fontsize=10)
        axis.set(xticks=[], yticks=[])
    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], lw=3, label=name) for i, name in enumerate(organs)]
    for marker, name in (("o", "true"), ("x", "generated")):
        handles.append(Line2D([], [], color="black", marker=marker, mfc="none", ls="none", label=name))
    columns = min(len(handles), 3 * len(generated))  # a single panel needs two lines
    figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


if __name__ == "__main__":
    run_command(main, serialize=lambda result: None)
