"""Writes small DICOM files."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

FLAT = (1, 0, 0, 0, 1, 0)


def write_slice(path: Path, pixels: np.ndarray, *, position=(0.0, 0.0, 0.0), orientation=FLAT, **elements) -> Path:
    """One file; `position=None` leaves the geometry out, `elements` adds or (None) removes elements."""
    dataset = FileDataset(str(path), {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = "CT"
    dataset.PatientID = "Secret^Name"
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.StudyInstanceUID = "1.2"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if position is not None:
        dataset.ImagePositionPatient = [float(p) for p in position]
        dataset.ImageOrientationPatient = [float(o) for o in orientation]
        dataset.PixelSpacing = [0.5, 0.25]  # between rows, between columns
    for keyword, element in elements.items():
        if element is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, element)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, volume: np.ndarray, *, heights=None, **elements) -> list[Path]:
    """A volume (slices, rows, columns) as one file per slice, 2 mm apart along z; their names show another order."""
    folder.mkdir(parents=True, exist_ok=True)
    heights = 2.0 * np.arange(len(volume)) if heights is None else heights
    names = [f"IM{(7 * k) % 97:03d}" for k in range(len(volume))]
    return [
        write_slice(folder / name, pixels, position=(10.0, 20.0, height), **elements)
        for name, pixels, height in zip(names, volume, heights, strict=True)
    ]


def functional_groups(heights) -> dict:
    """The elements that give the frames of an enhanced object a place."""

    def item(**elements) -> Dataset:
        dataset = Dataset()
        for keyword, element in elements.items():
            setattr(dataset, keyword, element)
        return dataset

    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.25])],
        PlaneOrientationSequence=[item(ImageOrientationPatient=list(FLAT))],
        PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-1)],
    )
    frames = [item(PlanePositionSequence=[item(ImagePositionPatient=[0.0, 0.0, float(h)])]) for h in heights]
    return {
        "NumberOfFrames": len(heights),
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": frames,
    }
