"""``bus-smp clean`` removes what can be made again, and nothing else."""

from conftest import ended, invoke

from bus_smp.runs.layout import LOCK
from bus_smp.system.locks import hold_lock


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def example(folder):
    """Two run folders with a cache and leftovers; ``kept`` are the files that must stay, as ``tree`` gives them."""
    for name in ("outputs/run/best.safetensors", "outputs/run/eval-busi-all/per_image.csv", "outputs/run/.notes",
                 "outputs/.cache/mine/photo.png", "data_manifests/busi.csv", "data_manifests/busi.json"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("kept")
    kept = tree(folder)
    for name in ("outputs/.cache/0123456789abcdef/images.npy", "outputs/run/.last.0123abcd.ckpt",
                 "outputs/.cache/.0123456789abcdef.01234567.unfinished/images.npy",
                 "data_manifests/.fingerprints/busi-1.npz"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(1_000_000))
    return kept


def clean(folder, *options):
    return invoke("clean", "--out", folder / "outputs", "--manifests", folder / "data_manifests", *options)


def test_caches_are_shown_with_their_sizes_and_removed_only_when_wanted(tmp_path):
    kept = example(tmp_path)
    before = tree(tmp_path)
    shown = clean(tmp_path)
    assert "bus-smp clean --yes" in ended(shown, 0)
    assert (
        "4.0 MB  in all" in shown.stdout
        and f"{tmp_path / 'outputs/.cache'}: resized images (2)" in shown.stdout
    )
    assert tree(tmp_path) == before
    ended(clean(tmp_path, "--yes"), 0)
    assert tree(tmp_path) == kept
    assert clean(tmp_path).stdout == "Nothing to remove.\n"


def test_nothing_is_removed_while_a_training_runs(tmp_path):
    example(tmp_path)
    before = tree(tmp_path)
    lock = tmp_path / "outputs" / "run" / LOCK
    with hold_lock(lock, lambda: None):
        assert "a training is running in" in ended(clean(tmp_path, "--yes"), 1)
    assert tree(tmp_path) == before
    # a lock that a killed training left is no training
    lock.touch()
    ended(clean(tmp_path, "--yes"), 0)
    assert not (tmp_path / "outputs/.cache/0123456789abcdef").exists()
