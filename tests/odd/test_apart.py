"""What runs in a process of its own, called here in this one: its answers are those of the reader that it wraps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from microtome.medical.readers import apart_program


@pytest.mark.parametrize(("ending", "driver"), [("nrrd", "NrrdImageIO"), ("mha", "MetaImageIO")])
def test_itk_answers_with_values_and_place(tmp_path: Path, ending: str, driver: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.5, 1.0, 2.0))
    image.SetOrigin((1.0, 2.0, 3.0))
    path = tmp_path / f"image.{ending}"
    sitk.WriteImage(image, str(path))
    place, array = apart_program.itk(str(path), driver)
    assert np.array_equal(array, values[..., None])
    assert (place["spacing"], place["origin"]) == ((0.5, 1.0, 2.0), (1.0, 2.0, 3.0))
    assert len(place["direction"]) == 9


def test_itk_raises_on_what_is_no_image(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    (tmp_path / "image.nrrd").write_text("nothing")
    with pytest.raises(RuntimeError):
        apart_program.itk(str(tmp_path / "image.nrrd"), "NrrdImageIO")


def test_gdcm_answers_with_pixels(tmp_path: Path) -> None:
    pytest.importorskip("gdcm")
    import pydicom
    from pydicom.uid import JPEG2000Lossless

    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, pydicom.uid.generate_uid()
    dataset.Rows = dataset.Columns = 64
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.SamplesPerPixel, dataset.PixelRepresentation = 15, 1, 0
    dataset.PhotometricInterpretation, dataset.PixelData = "MONOCHROME2", values.tobytes()
    dataset.compress(JPEG2000Lossless)
    dataset.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    _, array = apart_program.gdcm(str(tmp_path / "image.dcm"))
    assert np.array_equal(array, values)
