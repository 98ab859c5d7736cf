"""Settings: defaults < YAML < --set, and errors that name the key."""

from pathlib import Path

import pytest
from conftest import ended, invoke, settings_options

from bus_smp.config import Settings, differing_keys, load_settings
from bus_smp.errors import ConfigError

DEFAULTS = Path(__file__).resolve().parents[1] / "configs" / "default.yaml"


def test_the_classic_recipe_is_still_the_default():
    assert load_settings(DEFAULTS.with_name("classic.yaml")) == Settings()


def test_the_default_file_spells_out_exactly_the_built_in_defaults():
    import yaml

    text = DEFAULTS.read_text(encoding="utf-8")
    written = yaml.safe_load(text)
    assert load_settings(DEFAULTS) == Settings()
    assert text.partition("\n\n")[2] == Settings().describe(), (
        "bus-smp train --show-settings prints the new text"
    )
    assert {f"{s}.{k}" for s, fields in written.items() for k in fields} == set(Settings().flat())


def test_the_defaults_are_those_of_the_description():
    plan = Settings()
    assert (plan.train.lr, plan.train.batch_size, plan.train.epochs, plan.train.seed) == (1e-4, 8, 50, 42)
    assert (plan.data.size, plan.model.encoder_name, plan.model.encoder_weights) == (
        256,
        "resnet50",
        "imagenet",
    )
    assert plan.model.deep_supervision
    assert plan.loss.head_weights == tuple(sorted(plan.loss.head_weights, reverse=True))


def test_set_overrides_the_file_which_overrides_the_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  lr: 1e-3\n  epochs: 7\n", encoding="utf-8")
    settings = load_settings(file, ["train.epochs=9"])
    assert settings.train.lr == 1e-3  # PyYAML alone reads 1e-3 as a text
    assert settings.train.epochs == 9
    assert settings.train.batch_size == Settings().train.batch_size


def test_settings_survive_a_round_trip_through_yaml(tmp_path):
    settings = load_settings(None, ["data.train=[a,b]", "model.encoder_weights=null", "train.lr=3e-5"])
    (tmp_path / "config.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    assert load_settings(tmp_path / "config.yaml") == settings


def test_one_data_set_needs_no_brackets():
    assert load_settings(None, ["data.train=busi"]).data.train == ("busi",)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lrr=1", "did you mean train.lr?"),
        ("trian.lr=1", "did you mean train?"),
        ("train.learning_rate=1", "train has epochs, batch_size, lr"),
        ("train.lr=abc", "train.lr: "),
        ("train.lr=-1", "train.lr: "),
        ("train.lr=.nan", "train.lr: "),
        ("train.epochs=2.5", "train.epochs: "),
        ("loss.head_weights=[1,0,1,1]", "loss.head_weights: "),
        ("loss.head_weights=[1,1]", "loss.head_weights: "),
        ("train.precision=int8", "train.precision: "),
        ("train=3", "expected section.key=value"),
        ("train.lr", "expected section.key=value"),
        ("train.lr=[", "is not a YAML value"),
        ("train.lr=yes", "train.lr: "),
        ("train.epochs=true", "train.epochs: "),
        ("train.epochs=1:30", "train.epochs: "),
        ("train.epochs=0x10", "train.epochs: "),
        ("train.seed=!!int 010", "is not a YAML value"),
        ("train.lr=!!bool yes", "is not a YAML value"),
        ("train.lr=null", "train.lr: must be neither empty nor null"),
        (
            "data.train=[null]",
            "data.train: must be neither empty nor null; a name that is the word null needs quotes",
        ),
        ("data.manifests=", "data.manifests: must be neither empty nor null"),
        ("data.manifests=my #1", "--set 'data.manifests=\"my #1\"'"),
        ("data.manifests=#1", "for a comment"),
        ("data.train=[a, #b\n c]", "for a comment"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(override, said):
    with pytest.raises(ConfigError) as caught:
        load_settings(None, [override])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.seed=010", 10),
        ("train.epochs=1_000", 1000),
        ("train.lr=1e-3", 1e-3),
        ("train.lr=+.5", 0.5),
        ("runtime.workers=-1", -1),
        ("data.train=[2024, 007, 1.50]", ["2024", "007", "1.50"]),
        ("data.train=2024-01-01", ["2024-01-01"]),
        ("data.train=no", ["no"]),
        ("data.train=['null']", ["null"]),
        ("data.manifests=my#1", "my#1"),
        ("data.manifests='my #1'", "my #1"),
        ("augment.enabled=no", False),
        ("augment.enabled=False", False),
        ("train.compile=on", True),
        ("data.fold=~", None),
        ("model.encoder_weights=null", None),
    ],
)
def test_a_value_is_what_its_setting_takes_it_for(override, meant, tmp_path):
    """YAML 1.1 alone reads 010 as eight, 2024 as no name, and the name no as false."""
    key, _, value = override.partition("=")
    section, _, name = key.partition(".")
    file = tmp_path / "own.yaml"
    file.write_text(f"{section}:\n  {name}: {value}\n", encoding="utf-8")
    for settings in (load_settings(None, [override]), load_settings(file)):
        assert settings.flat()[key] == meant
        (tmp_path / "config.yaml").write_text(settings.to_yaml(), encoding="utf-8")
        assert load_settings(tmp_path / "config.yaml") == settings


@pytest.mark.parametrize("text", ["[1, 2]", "train: [", "train: {lr: 1", "\x00"])
def test_a_file_that_is_not_settings_is_refused_by_name(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="bad.yaml"):
        load_settings(file)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="absent.yaml"):
        load_settings(tmp_path / "absent.yaml")


def test_yaml_cannot_construct_objects(tmp_path):
    file = tmp_path / "hostile.yaml"
    file.write_text(f"train: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        load_settings(file)
    assert not (tmp_path / "made").exists()


def test_show_settings_explains_every_setting_and_can_be_trained_with(tmp_path):
    result = invoke("train", "--set", "train.lr=3e-4", "--data", "busi", "--data", "007", "--epochs", "7",
                    "--start-from", "no", "--show-settings")  # fmt: skip
    assert ended(result, 0) == ""
    lines = result.stdout.splitlines()
    for key in Settings().flat():
        (place,) = [n for n, line in enumerate(lines) if line.startswith(f"  {key.partition('.')[2]}: ")]
        assert lines[place - 1].startswith("  # "), key
    assert "  lr: 0.0003  # number, > 0; default 0.0001" in lines
    assert "  precision: auto  # auto, fp32, bf16, fp16" in lines
    assert max(map(len, lines)) <= 80
    (tmp_path / "mine.yaml").write_text(result.stdout, encoding="utf-8")
    settings = load_settings(tmp_path / "mine.yaml")
    assert (settings.data.train, settings.train.epochs, settings.model.init) == (("busi", "007"), 7, "no")


def test_names_that_are_nearly_right_are_named(tmp_path, trained, manifests):
    """Runs, manifests, data sets of --root and encoders; settings above."""
    options = settings_options(manifests, "model.encoder_name=resnet5O")
    folder = ("--manifests", manifests / "data_manifests")
    for arguments, meant in (
        (("evaluate", "--out", trained.parent, "--run", "Fisrt"), "first"),
        (("crosseval", "--out", trained.parent, "--run", "first", "--target", "BUSI_", *folder), "busi"),
        (("evaluate", "--out", trained.parent, "--run", "first", "--root", "bus-ucml=x"), "bus-uclm"),
        (("train", "--out", tmp_path, *options), "resnet50"),
        (("train", "--out", tmp_path, *options, "--data", "bussi"), "busi"),
        (("train", "--out", tmp_path, "--set", "lr=1"), "train.lr"),
    ):
        assert f"did you mean {meant}?" in ended(invoke(*arguments), 1)


def test_only_settings_that_change_a_result_count_as_different():
    old = load_settings(None, ["runtime.workers=0"])
    new = load_settings(None, ["runtime.workers=3", "train.lr=1e-3"])
    assert differing_keys(old, new) == [("train.lr", 1e-4, 1e-3)]
