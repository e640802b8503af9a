"""Feature maps and class activation maps of a trained model, drawn over the picture it sees.

The maps are drawn by MMEngine's ``Visualizer``; Grad-CAM is Captum's.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

import numpy as np
import torch
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from mmlk.analysis.samples import as_picture
from mmlk.inference.checkpointed import CheckpointedModel


def last_stage(model: CheckpointedModel) -> str:
    """Name of the last stage that the backbone runs, as backbones of this package name them."""
    return f'backbone.stages.{max(getattr(model.module.backbone, "out_indices", (3,)))}'


def find_layer(model: CheckpointedModel, name: str) -> nn.Module:
    """The module of the network called ``name``.

    Raises:
        ValueError: If there is none, with the closest names.
    """
    layers = dict(model.module.named_modules())
    if name not in layers or not name:
        close = ', '.join(get_close_matches(name, filter(None, layers), n=5, cutoff=0.4))
        raise ValueError(f'the network has no layer {name!r}; close to it: {close or "none"}')
    return layers[name]


@torch.no_grad()
def feature_map(model: CheckpointedModel, image: Tensor, layer: str) -> Tensor:
    """What a layer hands on for one image.

    Args:
        model: The model.
        image: Its input (1, C, H, W), see :meth:`CheckpointedModel.network_input`.
        layer: Name of a module of the network.

    Returns:
        The map (C', H', W'); of several maps the last.

    Raises:
        ValueError: If there is no such layer, or it hands on no map.
    """
    outputs: list = []
    handle = find_layer(model, layer).register_forward_hook(lambda *args: outputs.append(args[2]))
    try:
        model.module.backbone(image)
    finally:
        handle.remove()
    found = outputs[-1] if outputs else None
    found = found[-1] if isinstance(found, (tuple, list)) else found
    if not isinstance(found, Tensor) or found.ndim != 4:
        raise ValueError(
            f'layer {layer!r} is not run by the backbone, or hands on no map (N, C, H, W)'
        )
    return found[0]


def class_activation(
    model: CheckpointedModel, image: Tensor, layer: str, label: int | None = None
) -> tuple[Tensor, int]:
    """Grad-CAM (Selvaraju et al., 2017): where a layer speaks for a class.

    Args:
        model: A classifier or a segmentor; of a segmentor the score of a class is its mean over the
            pixels.
        image: Its input (1, C, H, W).
        layer: Name of a module of the backbone that hands on a map.
        label: Index of the class; None takes the one with the highest score.

    Returns:
        The map (1, H', W'), none negative, and the class.

    Raises:
        ValueError: If the model is a detector, or there is no such class or layer.
        ImportError: If Captum is not installed.
    """
    scores = _scores(model)
    feature_map(model, image, layer)  # refuses a layer that hands on none
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        raise ImportError(
            f"Grad-CAM needs Captum ({error}); pip install 'mmlk[analysis]'"
        ) from error
    with torch.no_grad():
        count = scores(image).shape[1]
        label = int(scores(image).argmax()) if label is None else label
    if not 0 <= label < count:
        raise ValueError(f'class {label} is not one of the {count} of the model')
    attribution = LayerGradCam(scores, find_layer(model, layer)).attribute(
        image, label, relu_attributions=True
    )
    return attribution[0].detach(), label


def _scores(model: CheckpointedModel) -> Callable[[Tensor], Tensor]:
    """Function from images (N, C, H, W) to one score per class (N, K)."""
    network = model.module
    if model.task == 'classification':
        return lambda images: network(images, mode='tensor')
    if model.task == 'segmentation':
        return lambda images: network(images, mode='tensor').mean((2, 3))
    raise ValueError(f'class activation maps need a classifier or a segmentor, not {model.task}')


def overlay(image: Tensor, values: Tensor) -> np.ndarray:
    """A map as colours over the image.

    Args:
        image: Input of the network (1, C, H, W).
        values: (C', H', W'); the mean over its channels is shown, stretched to the whole range.

    Returns:
        uint8 array (H, W, 3), RGB.
    """
    size = image.shape[2:]
    fitted = nn.functional.interpolate(values[None].cpu().float(), size, mode='bilinear')[0]
    return Visualizer.draw_featmap(fitted, as_picture(image[0].cpu(), swap=False))
