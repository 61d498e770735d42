"""Run a package on images, on a computer without PyTorch.

    pip install -c constraints.txt '.[openvino]'
    python examples/run_package.py PACKAGE IMAGE -o LABELS

IMAGE is a picture, a NIfTI file, a DICOM file, or a folder with one DICOM series. For segmentation, LABELS is the label
map on the image's own grid: .nii.gz for volumes, .png for pictures. A classifier's probabilities are printed.
"""

import argparse
import sys
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image as Picture

import microtome
from microtome.errors import MicrotomeError
from microtome.medical.read import read_image


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("-o", "--out", type=Path, help="where the label map goes")
    parser.add_argument("--threads", type=int, default=0, help="0 lets the runtime choose")
    arguments = parser.parse_args()
    try:
        package = microtome.open_package(arguments.package, threads=arguments.threads)
        image = read_image([arguments.image])
        prediction = package.predict(image)
    except MicrotomeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    assert "torch" not in sys.modules  # what this example is about

    classes = package.pipeline.classes
    if package.pipeline.task == "classification":
        for name, probability in zip(classes, prediction, strict=True):
            print(f"{name:24} {probability:.4f}")
        return 0
    prediction = package.label_map(prediction)
    voxel = float(np.prod(image.spacing))
    unit = "pixels" if image.affine is None else "mm³"
    for number, name in enumerate(classes[1:], start=1):
        print(f"{name:24} {np.count_nonzero(prediction == number) * voxel:,.0f} {unit}")
    if arguments.out is not None:
        if image.affine is None:
            Picture.fromarray(prediction).save(arguments.out)
        else:
            nibabel.save(nibabel.Nifti1Image(prediction, image.affine), arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
