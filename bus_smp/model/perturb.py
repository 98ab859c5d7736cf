"""Changes of the style of shallow features during training, so that the network relies less on the look of one scanner.

The style of an image is the mean and the spread of each channel. All random numbers come from torch's generator, which
training seeds in each epoch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bus_smp.errors import ConfigError

# Standard deviation of the factors of Normalization Perturbation.
_SPREAD = 0.75

Change = Callable[[Tensor], Tensor]


def perturb_norm(feature: Tensor) -> Tensor:
    """Normalization Perturbation (Fan et al., 2022, https://arxiv.org/abs/2211.04393): mean and spread times random factors.

    ``a * x + (b - a) * mean(x)``, with a and b from N(1, .75^2) for each image and channel.

    Args:
        feature: float (N, C, h, w).
    """
    mean = feature.mean((2, 3), keepdim=True)
    spread, shift = (1 + _SPREAD * torch.randn_like(mean) for _ in range(2))
    return spread * feature + (shift - spread) * mean


def exchange_style(feature: Tensor) -> Tensor:
    """MixStyle (Zhou et al., ICLR 2021, https://arxiv.org/abs/2104.02008): mean and spread mixed with another image's.

    The other image is any of the batch; where several data sets are trained on, it is often of another one. The share of each
    is uniform in 0..1.

    Args:
        feature: float (N, C, h, w).
    """
    mean = feature.mean((2, 3), keepdim=True).detach()
    spread = (feature.var((2, 3), keepdim=True, unbiased=False) + 1e-6).sqrt().detach()
    other = torch.randperm(len(feature), device=feature.device)
    share = torch.rand(len(feature), 1, 1, 1, device=feature.device, dtype=mean.dtype)
    mixed_mean, mixed_spread = (torch.lerp(value[other], value, share) for value in (mean, spread))
    return (feature - mean) / spread * mixed_spread + mixed_mean


def change_shallow_features(encoder: nn.Module, change: Change, probability: float) -> None:
    """Let ``change`` replace an encoder's features at 1/2 and 1/4 of the image's size, during training only.

    Args:
        encoder: of ``load_encoder``.
        probability: that an image's features are changed at each of the two places.

    Raises:
        ConfigError: if a feature is not the output of one of the encoder's modules.
    """
    finished: list[tuple[nn.Module, object]] = []
    hooks = [
        part.register_forward_hook(lambda module, _, output: finished.append((module, output)))
        for part in encoder.modules()
    ]
    trained = encoder.training
    with torch.no_grad():
        features = encoder.eval()(torch.zeros(1, 3, 64, 64, device=next(encoder.parameters()).device))
    encoder.train(trained)
    for hook in hooks:
        hook.remove()
    for feature in features[1:3]:
        # Of nested modules with the same output the outermost finishes last.
        place = next((module for module, output in reversed(finished) if output is feature), None)
        if place is None:
            raise ConfigError(
                "this encoder does not show its shallow features, so model.perturb_norm and model.exchange_style cannot "
                "change them",
                hint="leave both at 0, or use --set model.encoder_name=resnet50",
            )
        # First: timm collects the features of some encoders by hooks of its own.
        place.register_forward_hook(_Changed(change, probability), prepend=True)


class _Changed:
    """A forward hook; an object, so that a copy of the network can be made and pickled."""

    def __init__(self, change: Change, probability: float) -> None:
        self.change, self.probability = change, probability

    def __call__(self, module: nn.Module, _: tuple, output: Tensor) -> Tensor | None:
        if not module.training:
            return None
        chosen = torch.rand(len(output), 1, 1, 1, device=output.device) < self.probability
        return torch.where(chosen, self.change(output), output)
