"""Settings: the defaults below, then a YAML file, then ``--set section.key=value``; the last one wins. Nothing else is read.

The merged result is written to the run folder as ``config.yaml`` and is all that training reads.
``configs/default.yaml`` lists the same defaults for people (a test compares the two).
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bus_smp.errors import ConfigError
from bus_smp.system.files import open_regular

# Size limit of a settings file; parsing takes a second per 200 kB.
_MOST_BYTES = 100_000

Probability = Annotated[float, Field(ge=0, le=1)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class DataSettings(_Section):
    """Which manifests to train on, and the square size in pixels that images are stretched to.

    ``fold``: null for the manifest's own splits, else the cross-validation fold that is tested on.
    """

    train: Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)] = ("bus-uclm",)
    manifests: str = "data_manifests"
    size: Annotated[int, Field(ge=32, le=2048)] = 256
    fold: Annotated[int, Field(ge=0)] | None = None


class AugmentSettings(_Section):
    """Random changes of training images; none depends on the class.

    ``rotate`` in degrees; ``scale``, ``shift``, ``brightness``, ``contrast`` as fractions (drawn
    from plus or minus that much); flips and ``elastic`` as probabilities. The vertical flip is off:
    it would put the acoustic shadow above the lesion, where no scanner shows it.
    ``implementation``: one fused warp, or albumentations' list, which is the reference and slower.
    """

    enabled: bool = True
    implementation: Literal["fused", "albumentations"] = "fused"
    rotate: Annotated[float, Field(ge=0, le=180)] = 15.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.05
    horizontal_flip: Probability = 0.5
    vertical_flip: Probability = 0.0
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.2
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    elastic: Probability = 0.3


class ModelSettings(_Section):
    """The network. ``encoder_weights``: ``imagenet``, null, or the path of a weights file. ``init``: null, or a run
    whose weights are the start (of all layers; ``encoder_weights`` then has no effect).

    ``encoder_name``: an encoder of segmentation_models_pytorch, or ``tu-`` and the name of a network of timm.
    """

    encoder_name: str = "resnet50"
    encoder_weights: str | None = "imagenet"
    deep_supervision: bool = True
    attention: Literal["scse"] | None = None
    bottleneck: Literal["aspp"] | None = None
    init: str | None = None


class LossSettings(_Section):
    """Weights of cross entropy and Dice, and of the heads at full, 1/2, 1/4, 1/8 size (normalised to sum 1)."""

    cross_entropy: Annotated[float, Field(ge=0)] = 1.0
    dice: Annotated[float, Field(ge=0)] = 1.0
    head_weights: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=4, max_length=4)] = (
        1.0,
        0.5,
        0.25,
        0.125,
    )

    @model_validator(mode="after")
    def _some_loss(self) -> "LossSettings":
        if self.cross_entropy + self.dice <= 0:
            raise ValueError("cross_entropy and dice cannot both be 0")
        return self


class TrainSettings(_Section):
    """The schedule. ``batch_size`` counts all processes together, where ``torchrun`` starts several.

    ``patience``: epochs without a better validation lesion Dice before stopping (0: never). ``accumulate``: batches
    whose mean gradient makes one update of the weights. ``ema``: decay of a moving average of the weights, which
    is then validated and kept (0: none). ``compile``: let ``torch.compile`` fuse the network. ``sync_batchnorm``:
    batch norm over the whole batch, where several GPUs share it.
    """

    epochs: Annotated[int, Field(ge=1)] = 50
    batch_size: Annotated[int, Field(ge=1)] = 8
    lr: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    patience: Annotated[int, Field(ge=0)] = 15
    balanced_sampling: bool = True
    accumulate: Annotated[int, Field(ge=1)] = 1
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    sync_batchnorm: bool = False
    deterministic: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42


class RuntimeSettings(_Section):
    """Settings that may change between two starts of one run, because they do not change the result.

    ``workers``: loader processes, -1 chooses. ``device``: ``auto``, ``cpu``, ``cuda``, ``cuda:1``;
    another device continues a run, but not bit-identically.
    """

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    workers: Annotated[int, Field(ge=-1, le=64)] = -1
    cache: str = "outputs/.cache"


class Settings(_Section):
    """All settings of a training run."""

    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    train: TrainSettings = TrainSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    def flat(self) -> dict[str, Any]:
        """``{"train.lr": 0.0001, ...}``, JSON-like values."""
        return {
            f"{section}.{key}": value
            for section, fields in self.model_dump(mode="json").items()
            for key, value in fields.items()
        }

    def to_yaml(self) -> str:
        """YAML text that ``load_settings`` reads back as the same settings."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_settings(path: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Merge defaults, a YAML file and ``section.key=value`` texts (values are read as YAML).

    The setting decides how a value is read: 010 is ten for a seed and a name for a data set; ``yes`` is true for a
    switch and an error for a number.

    Raises:
        ConfigError: naming every unknown key (and the nearest right one) and every wrong value.
    """
    tree = _read_yaml(path) if path is not None else {}
    for text in overrides:
        key, equals, value = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and section and name):
            raise ConfigError(
                f"--set {text}: expected section.key=value", hint="for example: --set train.lr=3e-4"
            )
        try:
            parsed = _parse_yaml(value)
        except ValueError:
            raise ConfigError(f"--set {text[:200]}: {value[:100]!r} is not a YAML value") from None
        if _has_comment(value):
            raise ConfigError(
                f"--set {text[:200]}: YAML takes what follows # for a comment",
                hint=f"remove it; or, if it belongs to the value, use quotes: --set '{key.strip()}=\"{value.strip()}\"'",
            )
        fields = tree.setdefault(section, {})
        if not isinstance(fields, dict):
            raise ConfigError(f"{path}: {section} must hold keys and values, not {fields!r}")
        fields[name] = parsed
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        where = f"{path}: " if path is not None else ""
        raise ConfigError(where + "; ".join(_explain(error))) from None


def differing_keys(old: Settings, new: Settings) -> list[tuple[str, Any, Any]]:
    """``(key, old value, new value)`` of every setting that changes a result (``runtime`` does not)."""
    before, after = old.flat(), new.flat()
    return [
        (key, before[key], after[key])
        for key in before
        if before[key] != after[key] and not key.startswith("runtime.")
    ]


_NULL = "tag:yaml.org,2002:null"
# None: everything else is refused.
_TAGS = (_NULL, *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")), None)


class _Loader(yaml.SafeLoader):
    """Only texts, lists, maps and null: the settings' types convert texts to numbers and switches.

    YAML 1.1 itself reads 010 as eight, 1:30 as ninety and the name ``no`` as false. Aliases are refused, because a few
    lines of them can mean billions of values, and so is a key that comes twice.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag == _NULL]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _TAGS}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "found an alias; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "found a key twice", node.start_mark)
        return mapping


def _parse_yaml(text: str) -> Any:
    """The value; ValueError with the reason on one line if there is none."""
    try:
        return yaml.load(text, _Loader)  # nosec B506 - a SafeLoader, with less
    # PyYAML does not catch KeyError, AttributeError, RecursionError and others of its constructors
    except Exception as error:
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from None


def _has_comment(text: str) -> bool:
    """Whether a YAML value holds a comment: only a comment has a # between two tokens."""
    end = 0
    for token in yaml.scan(text, _Loader):
        if "#" in text[end : token.start_mark.index]:
            return True
        end = token.end_mark.index
    return False


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"{path}: is too large for a settings file (limit {_MOST_BYTES} bytes)")
        tree = _parse_yaml(data.decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such settings file", hint="leave out --config to use the defaults"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read as YAML settings ({reason})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections (data, model, train, ...), found {type(tree).__name__}")
    # "train:" with nothing below it means an empty section
    return {str(key): {} if value is None else value for key, value in tree.items()}


def _explain(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        place = [str(part) for part in fault["loc"] if not isinstance(part, int)]
        key = ".".join(place[:2])
        if fault["type"] == "extra_forbidden":
            yield f"unknown setting {key}{_nearest(place)}"
        elif fault["input"] is None:
            named = "; a name that is the word null needs quotes" if fault["type"] == "string_type" else ""
            yield f"{key}: must be neither empty nor null{named}"
        else:
            found = repr(fault["input"])
            yield f"{key}: {fault['msg']} (got {found if len(found) < 200 else found[:200] + '...'})"


def _nearest(place: Sequence[str]) -> str:
    known: Mapping[str, Any] = Settings().flat()
    sections = list(dict.fromkeys(key.split(".")[0] for key in known))
    if len(place) == 1:
        inside = [key for key in known if key.split(".")[1] == place[0]]
        close = inside or difflib.get_close_matches(place[0], sections, 1)
        return f"; did you mean {close[0]}?" if close else f"; sections are {', '.join(sections)}"
    close = difflib.get_close_matches(".".join(place), known, 1, cutoff=0.7)
    if close:
        return f"; did you mean {close[0]}?"
    names = [key.split(".")[1] for key in known if key.startswith(place[0] + ".")]
    return f"; {place[0]} has {', '.join(names)}"
