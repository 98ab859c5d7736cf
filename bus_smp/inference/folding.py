"""A network made ready for prediction: the full-size head only, batch norms folded into the convolutions before them."""

from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from bus_smp.model.hybrid import HybridResNet50
from bus_smp.model.shape_head import shapes_of


class MainHead(nn.Module):
    """A hybrid model as one function from images to what is predicted; auxiliary heads are not computed.

    Args:
        model: shared, not copied.
        features: whether the pooled features are returned too.

    Attributes:
        names: of what ``forward`` returns: ``logits``, ``image`` and ``shape`` where there are such heads, and ``features``.
    """

    def __init__(self, model: HybridResNet50, features: bool = False) -> None:
        super().__init__()
        self.model = model
        whole = {"image": model.image_head, "shape": model.shape_head}
        self.names = ("logits", *(name for name, head in whole.items() if head is not None))
        self.names += ("features",) if features else ()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits float (N, classes, H, W) of normalised images, float (N, 3, H, W).

        With a head for the whole image it is a tuple of ``names``: the logits; logits (N, 3) of normal, benign and malignant;
        the lesion's shape (N, 4), see ``shapes_of``; and features (N, channels), where they are wanted.
        """
        output = self.model.predict(images)
        if len(self.names) == 1:
            return output.logits
        shape = None if output.shape is None else shapes_of(output.shape.float())
        features = output.features if "features" in self.names else None
        return tuple(one for one in (output.logits, output.image, shape, features) if one is not None)


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` in which convolutions do the work of the batch norms after them.

    In evaluation mode a batch norm multiplies each channel by a constant and adds another, which the convolution's
    own weights can do (eq. 8 of https://arxiv.org/abs/1712.05877). A ResNet-50 U-Net then takes a seventh less time on
    a CPU. Sums are rounded differently: logits differ by some 1e-6 in float32.

    Args:
        module: in evaluation mode. If ``torch.fx`` cannot trace it, as some encoders of timm, it is returned as it is.
    """
    try:
        return fuse(module)
    except TraceError:
        return module
