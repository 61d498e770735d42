"""Transforms of MONAI by name: which change nothing that a pipeline would have to say, and what others do.

The third table, of those that are translated, is `transforms.TRANSLATED`, `inferers.TRANSLATED` and
`outputs.TRANSLATED`. What is in none of the three is noted as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping

SAME_FILE = "microtome reads the file itself"
SAME_VALUES = "changes the form in memory, not the values"
OWN_OUTPUT = "microtome writes its own files"

# Before the network and after it. Why each is harmless.
HARMLESS: Mapping[str, str] = {
    "EnsureChannelFirst": SAME_FILE,
    "AddChannel": SAME_FILE,
    "AsChannelFirst": SAME_FILE,
    "AsChannelLast": SAME_VALUES,
    "EnsureType": SAME_VALUES,
    "CastToType": SAME_VALUES,
    "ToTensor": SAME_VALUES,
    "ToDevice": SAME_VALUES,
    "ToNumpy": SAME_VALUES,
    "ToPIL": SAME_VALUES,
    "ToCupy": SAME_VALUES,
    "FromMetaTensor": SAME_VALUES,
    "ToMetaTensor": SAME_VALUES,
    "Identity": "does nothing",
    "SimulateDelay": "does nothing",
    "DataStats": "prints",
    "CopyItems": "leaves the original as it is",
    "DeleteItems": "the item is not used any more",
    "SelectItems": "the items that are left out are not used any more",
    "FlattenSubKeys": "names, not values",
    "ClassesToIndices": "for choosing training patches",
    "FgBgToIndices": "for choosing training patches",
    "SaveImage": OWN_OUTPUT,
    "SaveClassification": OWN_OUTPUT,
}

# What known transforms do that no field of a pipeline says.
UNSUPPORTED: Mapping[str, str] = {
    "AddClickSignals": "it makes channels of a user's clicks",
    "AddPointGuidanceSignal": "it makes channels of a user's clicks",
    "AddGuidanceFromPointsDeepEdit": "it makes channels of a user's clicks",
    "AddGuidanceSignalDeepEdit": "it makes channels of a user's clicks",
    "AddGuidanceSignal": "it makes channels of a user's clicks",
    "ResizeGuidanceMultipleLabelDeepEdit": "it moves a user's clicks",
    "AddLabelAsGuidance": "it makes a channel of a mask",
    "AddCoordinateChannels": "it makes channels of the voxels' places",
    "ExtractDataKeyFromMetaKey": "it takes data from the file's header",
    "CenterSpatialCrop": "it keeps the middle of the image, whatever lies around it",
    "SpatialCrop": "it cuts out a fixed place of the image",
    "CenterScaleCrop": "it keeps the middle of the image, whatever lies around it",
    "ResizeWithPadOrCrop": "it cuts the image to a size, or pads it",
    "BoundingRect": "it looks for a box",
    "BorderPad": "it adds a border",
    "Flip": "it mirrors the image",
    "Rotate90": "it turns the image",
    "Rotate": "it turns the image",
    "Zoom": "it resizes the image by a factor",
    "Affine": "it moves the image",
    "SpatialResample": "it resamples to another image's grid",
    "ResampleToMatch": "it resamples to another image's grid",
    "SqueezeDim": "it takes away an axis",
    "SplitDim": "it takes the image apart",
    "GaussianSmooth": "it smooths",
    "MedianSmooth": "it smooths",
    "GaussianSharpen": "it sharpens",
    "SavitzkyGolaySmooth": "it smooths",
    "AdjustContrast": "it bends the values by a power",
    "ThresholdIntensity": "it replaces values beyond a number",
    "HistogramNormalize": "it equalizes the histogram",
    "StdShiftIntensity": "it shifts by standard deviations",
    "ScaleIntensityFixedMean": "it scales about the mean",
    "MaskIntensity": "it blanks what a mask leaves out",
    "ForegroundMask": "it looks for tissue",
    "ToGrayscale": "it turns colour into gray in a way of its own",
    "TorchVision": "it is torchvision's",
    "GridSplit": "it cuts the image into tiles",
    "GridPatch": "it cuts the image into tiles",
    "OneOf": "it chooses at random",
    "MapLabelValue": "it renames labels",
    "ConvertToMultiChannelBasedOnBratsClasses": "it is for references",
    "LabelFilter": "it keeps some labels",
    "LabelToContour": "it keeps borders",
    "VoteEnsemble": "it takes the majority of several networks",
    "MeanEnsemble": "it takes the mean of several networks",
    "ProbNMS": "it looks for the highest points",
    "DistanceTransformEDT": "it measures distances",
    "HoVerNetInstanceMapPostProcessing": "it makes single nuclei of three outputs",
    "HoVerNetNuclearTypePostProcessing": "it gives single nuclei their types",
    "VistaPreTransform": "it makes prompts",
    "VistaPostTransform": "it makes labels of the prompts' scores",
    "ClipBoxToImage": "it is for boxes",
    "AffineBoxToWorldCoordinate": "it is for boxes",
    "AffineBoxToImageCoordinate": "it is for boxes",
    "ConvertBoxMode": "it is for boxes",
}


def why_not(kind: str) -> str:
    """Say what a transform does that is in no other table."""
    if kind.startswith("Rand"):
        return "it is random"
    return UNSUPPORTED.get(kind, "microtome does not know it")
