"""Synthetic breast-ultrasound data sets, written as raw trees exactly as the publishers' zip files unpack.

Every oddity of the real data sets that the readers must survive is in them, at fixed places named in the
constants below. The pictures only vaguely look like ultrasound, but a small network can learn from them: benign
lesions are smooth, wide and enhance what lies below; malignant ones are tall, spiculated and cast a shadow.
Pixels are a function of (seed, image name) only. Sizes are (width, height) in pixels.
"""

import csv
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from bus_smp.classes import LABELS
from bus_smp.data.images import color_mask

SIZE = (160, 120)

# BUS-UCLM: one letter per image (Normal, Benign, Malignant). Made-up letters under real codes: the codes carry the
# real oddities. CHCO is written as pixel-identical copies of four images of CHVI.
UCLM_PATIENTS = {
    "ALWI": "BBNBNB", "ANAT": "NNNNN", "ANFO": "NNMM", "CAWI": "NMMNM", "CHVI": "NBBMNBMN", "CHCO": "BMBM",
    "COPE": "NBBN", "COST": "MNMMNM", "CRCI": "NMM", "ELCO": "BNN", "FLKA": "NMMN", "FUHI": "BMNBM",
    "HESN": "NBB", "HUBL": "BBMNB", "LOTI": "NBBNBB", "ORPE": "MMNMN", "PAGY": "BNBBNN", "RODU": "MNMNMM",
    "SIBA": "BBNBN", "WAQU": "NNNN",
}  # fmt: skip
UCLM_SAME_PIXELS = {
    "CHCO_000": "CHVI_001",
    "CHCO_001": "CHVI_003",
    "CHCO_002": "CHVI_005",
    "CHCO_003": "CHVI_006",
}
UCLM_DOPPLER = {"ALWI_002": "Yes", "COST_004": "Yes", "PAGY_001": "Y"}
UCLM_COMBINED = ("LOTI_000", "RODU_002")
UCLM_TWO_LESIONS = ("ALWI_001", "HUBL_002", "LOTI_001")
UCLM_COPY_BESIDE = "SIBA_001"  # also there as "SIBA_001 (1).png"
UCLM_COPY_INSTEAD = "SIBA_003"  # there only as "SIBA_003 (1).png"
UCLM_RGBA = "HESN"  # RGBA images, smaller than their masks

# BUSI: (image, made from, how); images that are not written are left out.
BUSI_IDENTICAL = ("malignant (5)", "benign (4)")
BUSI_NEAR_DUPLICATES = (
    ("benign (6)", "benign (5)", "rescaled"),
    ("benign (8)", "benign (7)", "cropped"),
    ("malignant (7)", "malignant (6)", "marked"),
    ("benign (10)", "benign (9)", "brighter"),
    ("malignant (8)", "benign (11)", "rescaled"),
    ("normal (3)", "normal (2)", "cropped"),
)
BUSI_SEVERAL_MASKS = {"benign (3)": 2, "malignant (4)": 3}
BUSI_RGBA_MASKS = ("benign (2)", "malignant (2)")


# ---- one picture


def _random(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _field(rng: np.random.Generator, size: tuple[int, int], grain: float) -> np.ndarray:
    """Smooth random field float32 (H, W), mean 0, deviation 1; ``grain`` is its coarseness in pixels."""
    noise = rng.standard_normal((size[1], size[0]), np.float32)
    field = cv2.GaussianBlur(noise, (0, 0), sigmaX=grain * 1.6, sigmaY=grain, borderType=cv2.BORDER_REFLECT)
    return (field - field.mean()) / (field.std() + 1e-6)


def _outline(
    rng: np.random.Generator, label: str, size: tuple[int, int], slot: tuple[float, float]
) -> np.ndarray:
    """One lesion as a bool mask (H, W); its centre lies in the part ``slot`` of the width."""
    width, height = size
    x = width * rng.uniform(*slot)
    y = height * rng.uniform(0.34, 0.6)
    unit = min(height, width * (slot[1] - slot[0]) * 4)  # smaller where several share the width
    if label == "malignant":
        rx = unit * rng.uniform(0.11, 0.16)
        ry = rx * rng.uniform(1.25, 1.6)
    else:
        rx = unit * rng.uniform(0.16, 0.24)
        ry = rx * rng.uniform(0.5, 0.7)
    tilt = rng.uniform(-0.25, 0.25)
    dy, dx = np.mgrid[:height, :width].astype(np.float32) - np.array([y, x], np.float32)[:, None, None]
    along = (dx * np.cos(tilt) + dy * np.sin(tilt)) / rx
    across = (dy * np.cos(tilt) - dx * np.sin(tilt)) / ry
    angle = np.arctan2(across, along)
    wobble = 0.09 if label == "malignant" else 0.03
    reach = 1 + sum(
        wobble * rng.uniform(0.5, 1) * np.sin(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)
    )
    if label == "malignant":
        spicules = np.abs(np.sin(angle * rng.integers(3, 6) + rng.uniform(0, np.pi))) ** 6
        uneven = 0.5 + 0.5 * np.sin(2 * angle + rng.uniform(0, 2 * np.pi)) * np.sin(
            angle + rng.uniform(0, 2 * np.pi)
        )
        reach = reach * (0.9 + 0.6 * spicules * uneven)
    return np.hypot(along, across) <= reach


def draw(
    rng: np.random.Generator, label: str, size: tuple[int, int] = SIZE, lesions: int = 1
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw one picture.

    Args:
        label: normal (no lesion is drawn), benign or malignant.
        size: width and height in pixels.
        lesions: how many lesions, side by side.

    Returns:
        The grey image uint8 (H, W), and the bool mask (H, W) of every lesion.
    """
    width, height = size
    unit = height / 120
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    across = columns / width

    # Layers of tissue: skin, then three to six bands whose depth, tilt and brightness are this image's own.
    echo = np.full((height, width), rng.uniform(0.35, 0.6), np.float32)
    depth = np.sort(rng.uniform(0.1, 0.95, rng.integers(3, 7)))
    for share in depth:
        wave = sum(
            rng.uniform(-0.05, 0.05) * np.sin(2 * np.pi * (k * across + rng.uniform())) for k in (1, 2, 3)
        )
        border = height * (share + rng.uniform(-0.2, 0.2) * (across - 0.5) + wave)
        echo = np.where(rows > border, np.float32(rng.uniform(0.25, 0.75)), echo)
        # bright fascia
        echo += rng.uniform(0, 0.35) * np.exp(-(((rows - border) / (1.5 * unit)) ** 2))
    echo[rows < 0.05 * height] = 0.85

    # Lobules and streaks at two scales, so that no two images share their coarse structure.
    echo *= np.exp(0.28 * _field(rng, size, 9 * unit) + 0.15 * _field(rng, size, 3 * unit))

    masks = []
    if label != "normal":
        for k in range(lesions):
            slot = (0.28, 0.72) if lesions == 1 else ((k + 0.35) / lesions, (k + 0.65) / lesions)
            masks.append(_outline(rng, label, size, slot))
    for mask in masks:
        below = (np.cumsum(mask, axis=0) > 0) & ~mask
        edge = cv2.GaussianBlur(below.astype(np.float32), (0, 0), 2 * unit)
        echo *= 1 + edge * (-0.6 if label == "malignant" else 0.45)
        inside = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7 * unit)
        echo = echo * (1 - inside) + inside * (0.13 if label == "malignant" else 0.09)

    # Speckle: Rayleigh noise multiplies the echo; wider than deep, as the beam is. Then log compression.
    speckle = rng.rayleigh(0.8, (height, width)).astype(np.float32)
    speckle = cv2.GaussianBlur(speckle, (0, 0), sigmaX=0.9, sigmaY=0.55)
    grey = np.log1p(6 * echo * speckle) / np.log1p(6 * 1.2)
    return np.clip(grey * 235, 0, 255).astype(np.uint8), masks


def _union(masks: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return np.any(masks, axis=0) if len(masks) else np.zeros((size[1], size[0]), bool)


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def _rgba(mask: np.ndarray) -> np.ndarray:
    """Binary mask as the odd RGBA files have it: (0,0,0,0) and (255,255,255,255)."""
    return np.repeat(mask[..., None], 4, axis=2).astype(np.uint8) * 255


def _mark(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Burn in what a sonographer leaves behind: two calipers on a dotted line, and a text."""
    image = image.copy()
    height, width = image.shape[:2]
    arm = max(2, height // 40)
    ends = [
        (int(width * rng.uniform(a, b)), int(height * rng.uniform(0.35, 0.65)))
        for a, b in ((0.2, 0.4), (0.6, 0.8))
    ]
    for end in ends:
        cv2.drawMarker(image, end, (255, 255, 255), cv2.MARKER_CROSS, 2 * arm + 1, 1)
    for share in np.linspace(0.1, 0.9, 12):
        x, y = (int(a + (b - a) * share) for a, b in zip(*ends, strict=True))
        image[y, x] = 255
    text = f"{rng.uniform(5, 25):.1f}mm"
    cv2.putText(image, text, (2, height - 4), cv2.FONT_HERSHEY_PLAIN, height / 150, (255, 255, 255), 1)
    return image


def _doppler(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a flow box with red and blue blobs."""
    image = image.copy()
    height, width = image.shape[:2]
    left, top, right, bottom = width // 4, height // 4, 3 * width // 4, 3 * height // 4
    flow = _field(rng, (right - left, bottom - top), height / 30)
    box = image[top:bottom, left:right]
    box[flow > 1.6] = (220, 40, 20)
    box[flow < -1.6] = (30, 60, 230)
    cv2.rectangle(image, (left, top), (right, bottom), (240, 240, 240), 1)
    return image


def _save(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG; a bool array becomes a 1-bit file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def _save_xlsx(path: Path, rows: Sequence[Sequence[object]]) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(list(row))
    book.save(path)


def _save_csv(
    path: Path, rows: Sequence[Sequence[object]], separator: str = ",", encoding: str = "utf-8"
) -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator, lineterminator="\n").writerows(rows)


# ---- the data sets


def write_bus_uclm(
    root: Path, patients: Mapping[str, str] = UCLM_PATIENTS, size: tuple[int, int] = SIZE, seed: int = 0
) -> Path:
    """Write ``root/BUS-UCLM`` and return it. ``patients``: code -> one of the letters N, B, M per image."""
    folder = Path(root) / "BUS-UCLM"
    rows = [("Image", "Resolution", "Label", "Doppler", "Marks", "Combined")]
    labels = {letter.upper(): label for label in LABELS for letter in label[0]}
    for code, letters in sorted(patients.items()):
        for number, letter in enumerate(letters):
            name, label = f"{code}_{number:03d}", labels[letter]
            source = UCLM_SAME_PIXELS.get(name, name)  # what two names share, they share entirely
            marked = zlib.crc32(source.encode()) % 5 == 0
            image, mask = _uclm_image(source, label, marked, size, seed)
            if code == UCLM_RGBA:
                small = (size[0] * 3 // 4, size[1] * 3 // 4)
                image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
                image = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
            file = f"{name} (1)" if name == UCLM_COPY_INSTEAD else name
            _save(folder / "images" / f"{file}.png", image)
            _save(folder / "masks" / f"{file}.png", mask)
            if name == UCLM_COPY_BESIDE:
                _save(folder / "images" / f"{name} (1).png", image)
                _save(folder / "masks" / f"{name} (1).png", mask)
            combined = "Yes" if source in UCLM_COMBINED else "No"
            marks = "Yes" if marked else "No"
            resolution = f"{size[0]}x{size[1]}"
            rows.append(
                (
                    f"{name}.png",
                    resolution,
                    label.capitalize(),
                    UCLM_DOPPLER.get(source, "No"),
                    marks,
                    combined,
                )
            )
    _save_csv(folder / "INFO.csv", rows, ";", "utf-8-sig")
    return folder


def _uclm_image(
    name: str, label: str, marked: bool, size: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """RGB image and RGB colour mask, both uint8 (H, W, 3)."""
    rng = _random(seed, name)
    lesions = 2 if name in UCLM_TWO_LESIONS else 1
    if name in UCLM_COMBINED:  # two views side by side, the lesion in the left one
        left = (size[0] // 2, size[1])
        grey, masks = draw(rng, label, left)
        other, _ = draw(rng, "normal", (size[0] - left[0], size[1]))
        mask = np.hstack([_union(masks, left), np.zeros(other.shape, bool)])
        grey = np.hstack([grey, other])
    else:
        grey, masks = draw(rng, label, size, lesions)
        mask = _union(masks, size)
    image = _rgb(grey)
    if name in UCLM_DOPPLER:
        image = _doppler(image, rng)
    if marked:
        image = _mark(image, rng)
    return image, color_mask(mask * np.uint8(LABELS.index(label)))


def write_busi(
    root: Path,
    benign: int = 30,
    malignant: int = 20,
    normal: int = 10,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> Path:
    """Write ``root/Dataset_BUSI_with_GT`` and return it; sizes vary by a fifth around ``size``."""
    folder = Path(root) / "Dataset_BUSI_with_GT"
    derived = {name: (source, how) for name, source, how in BUSI_NEAR_DUPLICATES}
    derived[BUSI_IDENTICAL[0]] = (BUSI_IDENTICAL[1], "identical")
    for label, count in (("benign", benign), ("malignant", malignant), ("normal", normal)):
        for number in range(1, count + 1):
            name = f"{label} ({number})"
            source, how = derived.get(name, (name, "identical"))
            grey, masks = _busi_image(source, size, seed)
            image, masks = _altered(_rgb(grey), masks, how, _random(seed, f"{name} {how}"))
            _save(folder / label / f"{name}.png", image)
            if label == "normal":
                _save(folder / label / f"{name}_mask.png", np.zeros_like(image))
            for k, mask in enumerate(masks):
                suffix = f"_{k}" if k else ""
                _save(
                    folder / label / f"{name}_mask{suffix}.png",
                    _rgba(mask) if name in BUSI_RGBA_MASKS else mask,
                )
    return folder


def _busi_image(name: str, size: tuple[int, int], seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = _random(seed, name)
    size = (int(size[0] * rng.uniform(0.8, 1.2)), int(size[1] * rng.uniform(0.8, 1.2)))
    return draw(rng, name.split()[0], size, BUSI_SEVERAL_MASKS.get(name, 1))


def _altered(
    image: np.ndarray, masks: list[np.ndarray], how: str, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The same picture as it returns in BUSI: rescaled, cropped, marked or brighter."""
    height, width = image.shape[:2]
    if how == "rescaled":
        size = (int(width * 0.8), int(height * 0.85))
        masks = [cv2.resize(m.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for m in masks]
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA), masks
    if how == "cropped":
        part = np.s_[int(height * 0.06) : int(height * 0.97), int(width * 0.05) : int(width * 0.94)]
        return np.ascontiguousarray(image[part]), [np.ascontiguousarray(m[part]) for m in masks]
    if how == "marked":
        return _mark(image, rng), masks
    if how == "brighter":
        return np.clip(image * 1.15 + 18, 0, 255).astype(np.uint8), masks
    return image, masks


def write_udiat(
    root: Path, images: int = 12, layout: str = "original", size: tuple[int, int] = SIZE, seed: int = 0
) -> Path:
    """Write ``root/DatasetB`` (layout "original") or ``root/DatasetB2`` (layout "refoldered") and return it.

    Every third image is malignant.
    """
    folder = Path(root) / ("DatasetB" if layout == "original" else "DatasetB2")
    rows: list[tuple[str, str]] = [("Image", "Type")]
    for number in range(1, images + 1):
        name, label = f"{number:06d}", "benign" if number % 3 else "malignant"
        grey, masks = draw(_random(seed, f"udiat {name}"), label, size)
        mask = _union(masks, size).astype(np.uint8) * 255
        rows.append((name, label.capitalize()))
        if layout == "original":
            places = "original", "GT"
        else:
            places = label.capitalize(), "all_masks" if label == "benign" else "Malignant_mask"
        _save(folder / places[0] / f"{name}.png", grey)
        _save(folder / places[1] / f"{name}.png", mask)
    if layout == "original":
        _save_xlsx(folder / "DatasetB.xlsx", rows)
    return folder


def write_bus_bra(root: Path, cases: int = 8, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """Write ``root/BUSBRA`` and return it; every fourth case is malignant and has one image, the others two."""
    folder = Path(root) / "BUSBRA"
    rows: list[list[object]] = [
        ["ID", "Case", "Histology", "Pathology", "BIRADS", "Device", "Width", "Height", "Side", "BBOX"]
    ]
    folds: list[list[object]] = [
        ["ID", "Pathology", "kFold", "valid_1", "valid_2", "valid_3", "valid_4", "valid_5"]
    ]
    for case in range(1, cases + 1):
        label = "benign" if case % 4 else "malignant"
        for side in "lr" if case % 4 else "s":
            name = f"{case:04d}-{side}"
            grey, masks = draw(_random(seed, f"bus-bra {name}"), label, size)
            mask = _union(masks, size)
            _save(folder / "Images" / f"bus_{name}.png", grey)
            _save(folder / "Masks" / f"mask_{name}.png", mask)
            x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
            histology = "Cyst" if label == "benign" else "Invasive ductal carcinoma"
            sides = {"l": "left", "r": "right", "s": "single"}[side]
            box = f"[{x},{y},{w},{h}]"  # commas inside the cell, as published
            rows.append(
                [
                    f"bus_{name}",
                    case,
                    histology,
                    label,
                    3 if label == "benign" else 5,
                    "Synthetic",
                    *size,
                    sides,
                    box,
                ]
            )
            folds.append([f"bus_{name}", label, case % 5 + 1, *(int(case % 5 == k) for k in range(5))])
    _save_csv(folder / "bus_data.csv", rows)
    _save_csv(folder / "5-fold-cv.csv", folds)
    return folder


def write_breast(root: Path, cases: int = 8, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """Write ``root/BrEaST`` (table) and return its folder of images.

    Case 2 has another finding, case 3 is normal, case 4 has two tumour masks, every second case is malignant.
    """
    folder = Path(root) / "BrEaST" / "BrEaST-Lesions_USG-images_and_masks"
    columns = "CaseID,Image_filename,Mask_tumor_filename,Mask_other_filename,Pixel_size,BIRADS,Classification"
    rows: list[list[object]] = [[*columns.split(",")]]
    for case in range(1, cases + 1):
        label = "normal" if case == 3 else ("benign", "malignant")[case % 2 == 0]
        name = f"case{case:03d}"
        rng = _random(seed, f"breast {name}")
        grey, masks = draw(rng, label, size, 2 if case == 4 else 1)
        _save(folder / f"{name}.png", np.dstack([_rgb(grey), np.full(grey.shape, 255, np.uint8)]))
        tumours = [f"{name}_tumor{k + 1 if len(masks) > 1 else ''}.png" for k in range(len(masks))]
        for file, mask in zip(tumours, masks, strict=True):
            _save(folder / file, _rgba(mask))
        other = f"{name}_other1.png" if case == 2 else ""
        if other:
            _save(folder / other, _rgba(_outline(rng, "benign", size, (0.1, 0.2))))
        birads = {"normal": "1", "benign": "3", "malignant": "5"}[label]
        rows.append([case, f"{name}.png", "&".join(tumours), other, 0.007, birads, label])
    _save_xlsx(folder.parent / "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx", rows)
    return folder


def write_all(root: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> dict[str, Path]:
    """Write what the demo trains on and tests on: BUS-UCLM and BUSI. Returns name -> data set folder."""
    root = Path(root)
    return {
        "bus-uclm": write_bus_uclm(root, size=size, seed=seed),
        "busi": write_busi(root / "BUSI", size=size, seed=seed),
    }
