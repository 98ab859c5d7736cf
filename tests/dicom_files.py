"""DICOM ultrasound files of every kind, written for tests: what a scanner or an archive would hand over."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian

NAME, PATIENT, BIRTH = "SECRET^NAME", "SECRET-ID-77", "19010203"

STILL, CLIP = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"


def region(box: Sequence[int], cm: float | tuple[float, float] = 0.01, **changes: Any) -> Dataset:
    """An item of SequenceOfUltrasoundRegions: tissue in ``box`` (ends included), pixels of ``cm``."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, 1, 2
    item.RegionLocationMinX0, item.RegionLocationMinY0, item.RegionLocationMaxX1, item.RegionLocationMaxY1 = (
        box
    )
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    across, down = cm if isinstance(cm, tuple) else (cm, cm)
    item.PhysicalDeltaX, item.PhysicalDeltaY = across, down
    for keyword, value in changes.items():
        setattr(item, keyword, value)
    return item


def dataset(
    pixels: np.ndarray, photometric: str = "", regions: Sequence[Dataset] = (), **changes: Any
) -> Dataset:
    """An uncompressed ultrasound image or clip of uint8 or uint16 (N?, H, W) or (N?, H, W, 3)."""
    colour = pixels.shape[-1] == 3
    frames = pixels.shape[0] if pixels.ndim == (4 if colour else 3) else 0
    height, width = pixels.shape[1:3] if frames else pixels.shape[:2]
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.SOPClassUID = CLIP if frames else STILL
    found.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{abs(hash(pixels.tobytes())) % 10**20}"
    found.StudyInstanceUID, found.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.5"
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
    found.Modality, found.PatientName, found.PatientID, found.PatientBirthDate = "US", NAME, PATIENT, BIRTH
    found.PatientSex, found.StudyDate, found.StudyTime, found.AccessionNumber = (
        "F",
        "20200102",
        "101112",
        "A1",
    )
    found.StudyID, found.SeriesNumber, found.InstanceNumber, found.ReferringPhysicianName = "1", 1, 1, ""
    found.Manufacturer, found.ImageType, found.PatientOrientation = "test", ["ORIGINAL", "PRIMARY"], ""
    found.Rows, found.Columns, found.SamplesPerPixel = height, width, 3 if colour else 1
    found.BitsAllocated = found.BitsStored = 8 * pixels.itemsize
    found.HighBit, found.PixelRepresentation = found.BitsStored - 1, 0
    found.PhotometricInterpretation = photometric or ("RGB" if colour else "MONOCHROME2")
    if colour:
        found.PlanarConfiguration = 0
    if frames:
        found.NumberOfFrames, found.FrameTime, found.FrameIncrementPointer = frames, 40, 0x00181063
    if regions:
        found.SequenceOfUltrasoundRegions = list(regions)
    found.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
    for keyword, value in changes.items():
        setattr(found, keyword, value)
    return found


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    """One image as a JPEG stream; ``format="JPEG2000"`` for that one."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, options.pop("format", "JPEG"), **options)
    return data.getvalue()


def encapsulated(found: Dataset, streams: Sequence[bytes], syntax: str, photometric: str) -> Dataset:
    """Replace the pixels by streams of another transfer syntax, one for each frame."""
    found.file_meta.TransferSyntaxUID = UID(syntax)
    found.PhotometricInterpretation = photometric
    found.PixelData = encapsulate(list(streams))
    found["PixelData"].is_undefined_length = True
    found["PixelData"].VR = "OB"
    return found


def transcoded(source: Path, target: Path, syntax: str) -> Path:
    """Compress a file with GDCM: ``JPEGLosslessProcess14_1``, ``JPEGLSLossless``, ``JPEG2000Lossless`` and others."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target


def write(path: Path, found: Dataset) -> Path:
    """Write a data set as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, found, enforce_file_format=True)
    return path
