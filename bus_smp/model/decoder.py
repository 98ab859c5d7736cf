"""The U-Net decoder with the output of every block, and the bottleneck in front of it."""

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn


class StagedUnetDecoder(UnetDecoder):
    """smp's U-Net decoder; ``forward`` returns the output of every block, smallest first."""

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the blocks' outputs, at 1/16, 1/8, 1/4, 1/2 and 1/1 of the first feature's size.

        Args:
            features: the encoder's (N, C, h, w), largest first; the first one gives only its size.
                Each block takes the size of its skip connection, so sizes need not be divisible.
        """
        stages = []
        stage = self.center(features[-1])
        for block, level in zip(self.blocks, range(len(features) - 2, -1, -1), strict=True):
            height, width = features[level].shape[2:]
            stage = block(stage, height, width, skip_connection=features[level] if level else None)
            stages.append(stage)
        return stages

    def drop_unused(self) -> None:
        """Remove what no forward pass uses: the last block's attention to a skip connection, which it does not have.

        Several processes would wait for its gradient.
        """
        self.blocks[-1].attention1 = nn.Identity()


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., DeepLabv3, 2017) for feature maps at 1/32 of the image.

    Differs from smp's: the rates suit the 8x8 map of a 256 px image, where the usual 6, 12 and 18 would see
    padding only; mean instead of AdaptiveAvgPool2d and no dropout, so that training is deterministic; no batch
    norm on the pooled branch, so that a batch of one can be trained on.

    Takes (N, in_channels, h, w), returns (N, 256, h, w).
    """

    OUT_CHANNELS = 256
    RATES = (1, 2, 4)

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        width = self.OUT_CHANNELS
        self.branches = nn.ModuleList(
            [_conv_bn_relu(in_channels, width, kernel=1)]
            + [_conv_bn_relu(in_channels, width, kernel=3, dilation=rate) for rate in self.RATES]
        )
        self.pooled = nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.ReLU())
        self.project = _conv_bn_relu(width * (len(self.RATES) + 2), width, kernel=1)

    def forward(self, feature: Tensor) -> Tensor:
        branches = [branch(feature) for branch in self.branches]
        pooled = self.pooled(feature.mean((2, 3), keepdim=True)).expand_as(branches[0])
        return self.project(torch.cat([*branches, pooled], dim=1))


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())
