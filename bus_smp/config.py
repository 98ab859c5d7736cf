"""Settings: the defaults below, then a YAML file, then ``--set section.key=value``; the last one wins. Nothing else is read.

The merged result is written to the run folder as ``config.yaml`` and is all that training reads.
``configs/default.yaml`` is what ``Settings().describe()`` returns, below a line for people (a test compares the two).
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bus_smp.errors import ConfigError
from bus_smp.system.files import open_regular
from bus_smp.text import did_you_mean

# Size limit of a settings file; parsing takes a second per 200 kB.
_MOST_BYTES = 100_000

Probability = Annotated[float, Field(ge=0, le=1)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Section(BaseModel):
    # what stands below a setting is its description, for --show-settings and configs/default.yaml
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class DataSettings(_Section):
    """Which images are trained on."""

    train: Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)] = ("bus-uclm",)
    """Manifests to train on, by name or path; several are trained on together."""
    manifests: str = "data_manifests"
    """Folder of manifests."""
    size: Annotated[int, Field(ge=32, le=2048)] = 256
    """Side in pixels of the square that images are brought to; predictions are brought back."""
    geometry: Literal["stretch", "letterbox"] = "stretch"
    """How: stretched, or letterboxed, which keeps the shape of a lesion (the longest side becomes size, black padding)."""
    grey: bool = False
    """Average the three channels: without the tint of a scanner, and without Doppler colours."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """Cross-validation fold to test on (train --fold and --folds set it); null: the manifest's own splits."""


class AugmentSettings(_Section):
    """Random changes of training images; none depends on the class."""

    enabled: bool = True
    """Whether training images are changed at all."""
    implementation: Literal["fused", "albumentations"] = "fused"
    """One warp and one table per image, or the list of albumentations, which is the reference and slower."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Largest rotation in degrees, to both sides."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest change of size, as a fraction, up and down."""
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Largest shift, as a fraction of the image's side, in all directions."""
    horizontal_flip: Probability = 0.5
    """Probability of a left-right flip."""
    vertical_flip: Probability = 0.0
    """Probability of an upside-down flip: it would put the acoustic shadow above the lesion, where no scanner shows it."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest change of brightness, as a fraction, up and down."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest change of contrast, as a fraction, up and down."""
    elastic: Probability = 0.3
    """Probability of an elastic deformation."""
    zoom: Annotated[float, Field(ge=1, le=4)] = 1.0
    """Largest zoom: a factor from 1/zoom to zoom, log-uniform, times that of scale; e.g. 1.6."""
    aspect: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest change of width against height, as a fraction, log-uniform; e.g. 0.2."""
    gamma: Annotated[float, Field(ge=1, le=4)] = 1.0
    """Largest gamma: an exponent from 1/gamma to gamma, log-uniform; e.g. 1.6."""
    depth_gain: Annotated[float, Field(ge=0, le=4)] = 0.0
    """Brightness over depth: times exp(g y) at depth y (0 top, 1 bottom), g up to this to both sides; e.g. 1."""
    blur: Probability = 0.0
    """Probability of a Gaussian blur, sigma up to 1 px; e.g. 0.2."""
    low_resolution: Probability = 0.0
    """Probability that the image is shrunk, at most to half its size, and enlarged again; e.g. 0.2."""
    marks: Probability = 0.0
    """Probability of fake calipers, dotted lines, text and corner boxes at random places; e.g. 0.3."""
    lesion_free: Probability = 0.0
    """Probability of a zoomed part without any lesion, of a normal image too, in place of the whole; e.g. 0.15."""

    @model_validator(mode="after")
    def _has_reference(self) -> "AugmentSettings":
        only_fused = (
            "zoom", "aspect", "gamma", "depth_gain", "blur", "low_resolution", "marks", "lesion_free",
        )  # fmt: skip
        used = [name for name in only_fused if getattr(self, name) != type(self).model_fields[name].default]
        if self.implementation == "albumentations" and used:
            raise ValueError(f"implementation=albumentations has no {', '.join(used)}; use fused")
        return self


class ModelSettings(_Section):
    """The network."""

    encoder_name: str = "resnet50"
    """An encoder of segmentation_models_pytorch, or tu- and the name of a network of timm."""
    encoder_weights: str | None = "imagenet"
    """What the encoder starts from: imagenet (from the hub or an installed package), null (random), or a weights file."""
    deep_supervision: bool = True
    """Whether there are heads at 1/2, 1/4 and 1/8 of the input too: 128, 64 and 32 px."""
    attention: Literal["scse"] | None = None
    """Attention in each decoder block."""
    bottleneck: Literal["aspp"] | None = None
    """Layers between encoder and decoder."""
    decoder_norm: Literal["instance"] | None = None
    """Normalisation in the decoder: instance, of each image by itself, or null, batch norm."""
    perturb_norm: Probability = 0.0
    """Training only: probability that mean and spread of an image's shallow features are multiplied by random factors."""
    exchange_style: Probability = 0.0
    """Training only: probability that they are mixed with those of another image of the batch."""
    init: str | None = None
    """A run whose weights all layers start from (train --start-from); encoder_weights then has no effect."""


class HeadSettings(_Section):
    """Heads for the whole image, next to the segmentation. Weight 0: there is no such head."""

    image: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the image head's loss: normal, benign or malignant; 0.2 is a start."""
    shape: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the shape head's loss: the lesion's area, depth to width, circularity and solidity; 0.2 is a start."""
    consistency: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a loss where the image head's malignancy and that of the mask's shape differ; needs the image head."""
    detached: bool = True
    """Whether the heads only read the encoder's features, without training the encoder."""

    @model_validator(mode="after")
    def _has_class(self) -> "HeadSettings":
        if self.consistency and not self.image:
            raise ValueError("consistency needs the image head: heads.image > 0")
        return self


class LossSettings(_Section):
    """The loss: cross entropy plus Dice at every head."""

    cross_entropy: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the cross entropy."""
    dice: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the Dice loss."""
    head_weights: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=4, max_length=4)] = (
        1.0,
        0.5,
        0.25,
        0.125,
    )
    """Weights of the heads at full, 1/2, 1/4 and 1/8 size; normalised to sum 1."""

    @model_validator(mode="after")
    def _some_loss(self) -> "LossSettings":
        if self.cross_entropy + self.dice <= 0:
            raise ValueError("cross_entropy and dice cannot both be 0")
        return self


class TrainSettings(_Section):
    """The schedule: AdamW, cosine annealing to 0 over all steps after the warm-up."""

    epochs: Annotated[int, Field(ge=1)] = 50
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Images per step, of all processes together where torchrun starts several."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate at the start, or after the warm-up."""
    encoder_lr: Annotated[float, Field(gt=0)] | None = None
    """The same of the encoder, which often starts from trained weights and then needs a lower one; null: lr."""
    warmup: Annotated[float, Field(ge=0)] = 0.0
    """Epochs in which the rates rise to these, may be a fraction; 0: none."""
    clip: Annotated[float, Field(ge=0)] = 0.0
    """Gradients of a larger norm, over all weights together, are scaled down to it; 0: never."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay of AdamW."""
    patience: Annotated[int, Field(ge=0)] = 15
    """Stop after so many epochs without a better validation lesion Dice; 0: never."""
    balanced_sampling: bool | Literal["source"] = True
    """Draw normal, benign and malignant images equally often; source: those of each data set equally often."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose mean gradient makes one update of the weights."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of a moving average of the weights, which is then validated and kept, e.g. 0.999; 0: none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto is mixed precision where the hardware gains from it: bf16, else fp16 (CUDA), else fp32."""
    compile: bool = False
    """Let torch.compile fuse the network: for GPUs; on a CPU it needs a C++ compiler and gains nothing."""
    sync_batchnorm: bool = False
    """Batch norm over the whole batch, where several GPUs share it."""
    deterministic: bool = True
    """The same bits each time on the same machine."""
    save_every: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between two writes of last.ckpt, 0: after every epoch; may change between two starts of one run."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Decides everything random: weights, order, augmentation."""

    @model_validator(mode="after")
    def _warm_before_the_end(self) -> "TrainSettings":
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup={self.warmup:g} must be less than epochs={self.epochs}")
        return self


class RuntimeSettings(_Section):
    """What may change between two starts of one run, because it does not change the result."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """auto, cpu, cuda or cuda:1; another device continues a run, but not bit-identically."""
    workers: Annotated[int, Field(ge=-1, le=64)] = -1
    """Loader processes; -1 chooses."""
    cache: str = "outputs/.cache"
    """Folder of the resized images."""
    graph: bool = False
    """Record the training step once as a CUDA graph and replay it: for one GPU; not measured yet."""


class Settings(_Section):
    """All settings of a training run."""

    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    model: ModelSettings = ModelSettings()
    heads: HeadSettings = HeadSettings()
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

    def describe(self) -> str:
        """YAML that ``load_settings`` reads back; comments give the meaning and the type of every setting."""
        lines = []
        for section, field in type(self).model_fields.items():
            values = getattr(self, section)
            lines += ["", *_comment(str(field.annotation.__doc__)), f"{section}:"]
            for key, about in type(values).model_json_schema()["properties"].items():
                value = values.model_dump(mode="json")[key]
                changed = "" if value == about["default"] else f"; default {_one_line(about['default'])}"
                lines += _comment(about["description"], "  ")
                lines.append(f"  {key}: {_one_line(value)}  # {_type_words(about)}{changed}")
        return "\n".join(lines[1:]) + "\n"


def _one_line(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, 80, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
    )


def _type_words(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words: ``whole number, >= 1``."""
    if "anyOf" in schema:
        return " or ".join(map(_type_words, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        count = f" of {schema['minItems']}" if schema.get("maxItems") else ""
        return f"list{count}: {_type_words(schema['items'])}"
    names = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema]
    return ", ".join([names.get(schema["type"], schema["type"]), *bounds])


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
            close = _nearest([section]).removeprefix("; ") if equals and not dot else ""
            raise ConfigError(
                f"--set {text}: expected section.key=value", hint=close or "for example: --set train.lr=3e-4"
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
    """``(key, old value, new value)`` of every setting that changes a result (``runtime`` and ``train.save_every`` do not)."""
    before, after = old.flat(), new.flat()
    return [
        (key, before[key], after[key])
        for key in before
        if before[key] != after[key] and not key.startswith("runtime.") and key != "train.save_every"
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
        elif fault["type"] == "value_error":
            yield f"{key}: {fault['ctx']['error']}"
        elif fault["input"] is None:
            named = "; a name that is the word null needs quotes" if fault["type"] == "string_type" else ""
            yield f"{key}: must be neither empty nor null{named}"
        else:
            found = repr(fault["input"])
            yield f"{key}: {fault['msg']} (got {found if len(found) < 200 else found[:200] + '...'})"


def _nearest(place: Sequence[str]) -> str:
    known: Mapping[str, Any] = Settings().flat()
    sections = list(dict.fromkeys(key.split(".")[0] for key in known))
    names = {key.split(".")[1]: key for key in known}
    if len(place) == 1:
        if place[0] in names:
            return f"; did you mean {names[place[0]]}?"
        return f"; {did_you_mean(place[0], sections) or 'sections are ' + ', '.join(sections)}"
    if close := did_you_mean(names.get(place[1], ".".join(place)), known, 0.7):
        return f"; {close}"
    inside = [key.split(".")[1] for key in known if key.startswith(place[0] + ".")]
    return f"; {place[0]} has {', '.join(inside)}"
