"""Predictions as DICOM: a segmentation (SEG) and a structured report (SR, TID 1500) that belong to their source.

Both keep the patient and the study of the source and open a series of their own. Their UIDs follow from the source's
and from the weights, so what is made again replaces what was there. The extra ``dicom`` writes them (highdicom).
"""

import copy
import logging
import re
import uuid
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import bus_smp
from bus_smp.classes import LESIONS
from bus_smp.data.dicom import EXTRA, View, is_dicom, list_views, read_dicom, split_address
from bus_smp.data.images import read_mask
from bus_smp.errors import BusSmpError
from bus_smp.measures.dimensions import measure_lesions
from bus_smp.measures.regions import lesion_components
from bus_smp.system.files import replacing
from bus_smp.text import NOT_CLINICAL, counted

KINDS = ("seg", "sr")

# Codes of our own, where the standard has none.
_OWN = "99BUSSMP"


@dataclass(frozen=True)
class Maker:
    """The network that found it.

    Attributes:
        run: the name of the run.
        weights: SHA-256 of its weights.
        rule: how the decision follows from score and mask (``label_rule``).
    """

    run: str
    weights: str
    rule: str = ""


@dataclass(frozen=True, eq=False)
class Finding:
    """What was found in one view.

    Attributes:
        mask: uint8 (H, W) of class indices, of the view's size.
        decision: normal, benign or malignant.
        score: of malignancy, 0..1.
    """

    view: View
    mask: np.ndarray
    decision: str
    score: float


def make_segmentation(source: Any, findings: Sequence[Finding], maker: Maker) -> Any | None:
    """Return a binary segmentation of a still image or a clip, with a segment for each class that is found.

    Args:
        source: pydicom's ``Dataset`` of the file, without pixels.
        findings: of views of this file.

    Returns:
        highdicom's ``Segmentation``; None where no pixel is marked, as an empty one has no meaning.
    """
    hd = _import_highdicom()
    frames = _whole_frames(findings)
    present = [one for one in LESIONS if any((mask == one.index).any() for mask in frames.values())]
    if not present:
        return None
    is_clip = int(source.get("NumberOfFrames") or 1) > 1
    first = next(mask for mask in frames.values() if mask.any())
    numbers = np.zeros(1 + max(one.index for one in LESIONS), np.uint8)
    numbers[[one.index for one in present]] = np.arange(1, len(present) + 1)
    # highdicom writes single frames only: the clip is shown to it as one, and the others are added
    shown = copy.deepcopy(source)
    shown.pop("NumberOfFrames", None)
    shown.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    shown.PixelData = bytes(shown.Rows * shown.Columns * shown.SamplesPerPixel)
    made = hd.seg.Segmentation(
        [shown], numbers[first][None], hd.seg.SegmentationTypeValues.BINARY,
        [_describe_segment(number, one.name, maker) for number, one in enumerate(present, 1)],
        content_label="LESIONS", content_description=NOT_CLINICAL, series_number=_SERIES["seg"],
        manufacturer_model_name="bus_smp", software_versions=bus_smp.__version__, device_serial_number="0",
        **_identify(source, maker, "seg"),
    )  # fmt: skip
    # dciodvfy asks for it
    made.PatientOrientation = source.get("PatientOrientation", "")
    group = made.PerFrameFunctionalGroupsSequence[0]
    for item in (
        made.SourceImageSequence[0],
        made.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0],
        *(g.DerivationImageSequence[0].SourceImageSequence[0] for g in made.PerFrameFunctionalGroupsSequence),
    ):
        item.ReferencedSOPClassUID = source.SOPClassUID
    if is_clip:
        _add_frames(made, group, {frame: numbers[mask] for frame, mask in frames.items()}, len(present))
    return made


def _add_frames(made: Any, template: Any, frames: Mapping[int, np.ndarray], segments: int) -> None:
    """Give a segmentation one frame for each frame of the clip and each segment that is marked in it."""
    import pydicom
    from pydicom.pixels.utils import pack_bits

    time = pydicom.Dataset()
    time.DimensionIndexPointer, time.FunctionalGroupPointer = 0x00209128, 0x00209111
    time.DimensionOrganizationUID = made.DimensionIndexSequence[0].DimensionOrganizationUID
    time.DimensionDescriptionLabel = "Temporal Position Index"
    made.DimensionIndexSequence.append(time)
    # highdicom says it once for all frames where the classes are one
    made.SharedFunctionalGroupsSequence[0].pop("SegmentIdentificationSequence", None)
    groups, planes = [], []
    for segment in range(1, segments + 1):
        for frame, mask in frames.items():
            plane = mask == segment
            if not plane.any():
                continue
            group = copy.deepcopy(template)
            identified = pydicom.Dataset()
            identified.ReferencedSegmentNumber = segment
            group.SegmentIdentificationSequence = [identified]
            group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = frame
            content = group.FrameContentSequence[0]
            content.DimensionIndexValues = [segment, frame]
            content.TemporalPositionIndex = frame
            groups.append(group)
            planes.append(plane)
    made.PerFrameFunctionalGroupsSequence = groups
    made.NumberOfFrames = len(groups)
    made.PixelData = pack_bits(np.stack(planes))


def make_report(source: Any, findings: Sequence[Finding], maker: Maker) -> Any:
    """Return a structured report: score and decision of a view, and outline and size in mm of each of its lesions.

    Of a clip, two frames of each pane are described, that with the highest score and that with the largest lesions: the
    segmentation has all of them. Where a pixel's size is not known beyond doubt, a lesion has an outline only.

    Args:
        source: pydicom's ``Dataset`` of the file, without pixels.
        findings: of views of this file.
    """
    hd = _import_highdicom()
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    sr = hd.sr
    is_clip = int(source.get("NumberOfFrames") or 1) > 1
    algorithm = sr.AlgorithmIdentification(
        name=f"bus_smp {maker.run}"[:64],
        version=bus_smp.__version__,
        parameters=[f"weights sha256 {maker.weights}", *([maker.rule] if maker.rule else []), NOT_CLINICAL],
        family=codes.DCM.ArtificialIntelligence,
    )
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_uid("device", maker.weights), name="bus_smp", model_name=maker.run[:64]
        ),
    )
    breast = [sr.FindingSite(codes.SCT.Breast)]
    decisions = {"normal": codes.SCT.Normal, "benign": codes.SCT.Benign, "malignant": codes.SCT.Malignant}
    groups: list[Any] = []
    for finding, why in _choose(findings, is_clip):
        view = finding.view
        where = f"frame {view.frame} of {view.file.frames}, {why}" if is_clip else "image"
        where = f"{where}, pane {view.number}" if len(view.file.panes) > 1 else where
        image = (str(source.SOPClassUID), str(source.SOPInstanceUID), [view.frame] if is_clip else None)
        score = sr.Measurement(
            Code("malignancy-score", _OWN, "Malignancy score"), round(finding.score, 6), codes.UCUM.NoUnits
        )
        decision = sr.QualitativeEvaluation(
            Code("decision", _OWN, "Decision of the network"), decisions[finding.decision]
        )
        groups.append(
            sr.MeasurementsAndQualitativeEvaluations(
                sr.TrackingIdentifier(_uid(view.file.uid, maker.weights, where), where),
                algorithm_id=algorithm, finding_sites=breast, measurements=[score],
                qualitative_evaluations=[decision], source_images=[sr.SourceImageForMeasurementGroup(*image)],
            )
        )  # fmt: skip
        for number, (points, name, sizes) in enumerate(_lesions(finding), 1):
            lesion = f"{where}, lesion {number}"
            measured = [
                sr.Measurement(getattr(codes.SCT, what), round(value, 2), unit)
                for what, value, unit in zip(
                    ("LongAxis", "ShortAxis", "Area"), sizes,
                    (codes.UCUM.Millimeter, codes.UCUM.Millimeter, codes.UCUM.SquareMillimeter), strict=False,
                )
            ]  # fmt: skip
            region = sr.ImageRegion(
                sr.GraphicTypeValues.POLYLINE,
                np.concatenate([points, points[:1]]),
                sr.SourceImageForRegion(*image),
            )
            groups.append(
                sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                    sr.TrackingIdentifier(_uid(view.file.uid, maker.weights, lesion), lesion),
                    referenced_region=region, finding_type=codes.SCT.Lesion, finding_sites=breast, measurements=measured or None,
                    qualitative_evaluations=[
                        sr.QualitativeEvaluation(Code("class", _OWN, "Class of the outline"), decisions[name])
                    ],
                )
            )  # fmt: skip
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=Code("47079000", "SCT", "Ultrasonography of breast"),
        imaging_measurements=groups,
    )
    return sr.ComprehensiveSR(
        [source], report, is_complete=False, is_verified=False, series_number=_SERIES["sr"],
        **_identify(source, maker, "sr"),
    )  # fmt: skip


def _choose(findings: Sequence[Finding], is_clip: bool) -> list[tuple[Finding, str]]:
    """The findings to describe, each with the reason."""
    if not is_clip:
        return [(finding, "") for finding in findings]
    chosen = []
    for number in sorted({finding.view.number for finding in findings}):
        pane = [finding for finding in findings if finding.view.number == number]
        worst = max(pane, key=lambda one: one.score)
        largest = max(pane, key=lambda one: np.count_nonzero(one.mask))
        if worst is largest or not largest.mask.any():
            chosen.append((worst, "highest score"))
        else:
            chosen += [(worst, "highest score"), (largest, "largest lesions")]
    return chosen


def _lesions(finding: Finding) -> list[tuple[np.ndarray, str, tuple[float, ...]]]:
    """Each lesion, the largest first: its outline in the frame, float (N, 2); its class; longest and shortest axis in mm and area in mm2."""
    labels, stats = lesion_components(finding.mask)
    left, top = finding.view.pane.box[:2]
    pixel_mm = finding.view.pane.pixel_mm
    found = []
    # in the order of measure_lesions
    numbers = np.argsort(-stats[:, 4], kind="stable") + 1
    for number, lesion in zip(numbers, measure_lesions(finding.mask, pixel_mm)[0], strict=False):
        marked = (labels == number).astype(np.uint8)
        outlines, _ = cv2.findContours(marked, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        sizes: tuple[float, ...] = (lesion["longest"], lesion["shortest"], lesion["area"]) if pixel_mm else ()
        # the centre of the first pixel is (0.5, 0.5)
        found.append((outlines[0][:, 0] + np.array([left + 0.5, top + 0.5]), lesion["class"], sizes))
    return found


def _whole_frames(findings: Sequence[Finding]) -> dict[int, np.ndarray]:
    """Frame -> class indices (H, W) of the whole frame, in the order of the frames."""
    frames: dict[int, np.ndarray] = {}
    for finding in sorted(findings, key=lambda one: one.view.frame):
        file, (left, top, right, bottom) = finding.view.file, finding.view.pane.box
        whole = frames.setdefault(finding.view.frame, np.zeros((file.height, file.width), np.uint8))
        whole[top:bottom, left:right] = finding.mask
    return frames


_SERIES = {"seg": 9100, "sr": 9101}


def _identify(source: Any, maker: Maker, kind: str) -> dict[str, Any]:
    return {
        "series_instance_uid": _uid(str(source.SeriesInstanceUID), maker.weights, kind),
        "sop_instance_uid": _uid(str(source.SOPInstanceUID), maker.weights, kind),
        "instance_number": int(source.get("InstanceNumber") or 1),
        "series_description": f"bus_smp {maker.run[:16]}: {NOT_CLINICAL}"[:64],
        "manufacturer": "bus_smp",
    }


def _uid(*parts: str) -> str:
    """A UID that is the same for the same parts (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, ' '.join(parts)).int}"


def _describe_segment(number: int, name: str, maker: Maker) -> Any:
    hd = _import_highdicom()
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    kinds = {"benign": Code("52988006", "SCT", "Lesion"), "malignant": Code("108369006", "SCT", "Neoplasm")}
    return hd.seg.SegmentDescription(
        number, f"{name} (research only)", Code("49755003", "SCT", "Morphologically Altered Structure"), kinds[name],
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        hd.AlgorithmIdentificationSequence(
            f"bus_smp {maker.run}"[:64], codes.DCM.ArtificialIntelligence, bus_smp.__version__,
            parameters={"weights sha256": maker.weights},
        ),
        anatomic_regions=[codes.SCT.Breast],
    )  # fmt: skip


def write_dicom(
    table: Any,
    folder: Path,
    kinds: Sequence[str],
    maker: Maker,
    say: Callable[[str], object] = lambda text: None,
) -> list[Path]:
    """Write SEG and SR of the DICOM files among predictions: ``<name>_seg.dcm`` and ``<name>_sr.dcm``.

    Args:
        table: what ``predict_files`` returned and wrote to ``folder``; ``file`` names files as they can be opened.
        kinds: of ``KINDS``.
        say: receives a line for each thing that is not written.

    Returns:
        the files, in the order of the table.

    Raises:
        BusSmpError: if the extra is not installed, the disk is full or the folder cannot be written to.
    """
    _import_highdicom()
    import pydicom

    files: dict[Path, list[Mapping[str, Any]]] = defaultdict(list)
    others = 0
    for row in table[table["error"] == ""].to_dict("records"):
        if is_dicom(path := Path(row["file"])):
            files[split_address(path)[0]].append(row)
        else:
            others += 1
    if others:
        say(f"No SEG or SR of {counted(others, 'picture')}: the file is no DICOM")
    written = []
    for path, rows in files.items():
        # the patient's attributes go from file to file and are never shown
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = pydicom.dcmread(path, stop_before_pixels=True)
            views = {f"{path}{address}": view for address, view in list_views(read_dicom(path))}
            findings = [
                Finding(
                    view := views[row["file"]],
                    read_mask([folder / row["mask"]], "color", "", view.shape),
                    row["decision"],
                    row["malignant_score"],
                )
                for row in rows
            ]
            name = _ADDED.sub("", rows[0]["mask"])
            for kind in kinds:
                try:
                    made = (make_segmentation if kind == "seg" else make_report)(source, findings, maker)
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    # the words of the error could show a value, such as a name
                    say(
                        f"No {kind.upper()} of {path}: its header lacks what it needs ({type(error).__name__})"
                    )
                    continue
                if made is None:
                    say(f"No SEG of {path}: nothing is marked")
                    continue
                target = folder / f"{name}_{kind}.dcm"
                with replacing(target, durable=False) as temporary:
                    made.save_as(temporary, enforce_file_format=True)
                written.append(target)
    return written


# What the names of masks have after the name of their file.
_ADDED = re.compile(r"(_frame\d{3,})?(_pane\d{1,2})?_predicted\.png$")


def check_extra() -> None:
    """Raise a ``BusSmpError`` if what writes DICOM is not installed."""
    _import_highdicom()


def _import_highdicom() -> Any:
    try:
        import highdicom
        import highdicom.seg
        import highdicom.sr
    except ImportError:
        raise BusSmpError("writing DICOM needs an extra", hint=EXTRA) from None
    logging.getLogger("highdicom").disabled = True
    return highdicom
