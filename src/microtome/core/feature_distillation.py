"""What a student should lose when its feature maps differ from its teacher's. All are 0 where both maps are the same.

Maps are (N, C, *S) of the same N and S; only `hint` asks for the same C.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST = 1e-6
MOST_PLACES = 256  # of a map, between which affinities are compared


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference over the teacher's mean square.

    Source: Romero et al., "FitNets", ICLR 2015, equation 3; relative here.
    """
    student, teacher = student.float(), teacher.float()
    return (student - teacher).square().mean() / teacher.square().mean().clamp(min=SMALLEST)


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared distance of maps of activity, each of length 1.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, equation 2 with p = 2: the map is
    the sum of squares over channels.
    """
    maps = (functional.normalize(v.float().square().sum(1).flatten(1), dim=1) for v in (student, teacher))
    one, other = maps
    return (one - other).square().sum(1).mean()


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how differently the images of a batch resemble one another.

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, equation 4. 0 for one image alone.
    """
    grams = (functional.normalize(v.float().flatten(1) @ v.float().flatten(1).T, dim=1) for v in (student, teacher))
    one, other = grams
    return (one - other).square().sum() / len(student) ** 2


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber loss of distances between the images of a batch, each relative to their mean.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 5 to 7. 0 for fewer than three
    images: the distance of two is always their mean.
    """
    if len(student) < 3:
        return student.sum() * 0.0

    def distances(maps: Tensor) -> Tensor:
        found = functional.pdist(maps.float().flatten(1))
        return found / found.mean().clamp(min=SMALLEST)

    return functional.smooth_l1_loss(distances(student), distances(teacher))


def affinity(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the cosines between all places of an image.

    Source: Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, equation 2. Maps of
    more than `MOST_PLACES` places are averaged over squares first.
    """

    def cosines(maps: Tensor) -> Tensor:
        places = functional.normalize(_pooled(maps.float()).flatten(2), dim=1)
        return places.transpose(1, 2) @ places

    return (cosines(student) - cosines(teacher)).square().mean()


def variation(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Return the mean squared difference of how much each place resembles the mean of its class.

    Source: Wang et al., "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020, equations 1
    and 2.

    Args:
        student: (N, C, *S).
        teacher: (N, C', *S).
        labels: class of each place, (N, *S'); taken at the nearest place of the maps.
    """
    labels = functional.interpolate(labels[:, None].float(), student.shape[2:], mode="nearest").long().flatten()
    names, numbers = torch.unique(labels, return_inverse=True)

    def resemblance(maps: Tensor) -> Tensor:
        places = maps.float().movedim(1, -1).flatten(0, -2)
        sums = places.new_zeros(len(names), places.shape[1]).index_add(0, numbers, places)
        means = sums / torch.bincount(numbers, minlength=len(names))[:, None]
        return functional.cosine_similarity(places, means[numbers], dim=1)

    return (resemblance(student) - resemblance(teacher)).square().mean()


def _pooled(maps: Tensor) -> Tensor:
    """Average squares of a map until it has at most `MOST_PLACES` places."""
    dims = maps.ndim - 2
    pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[dims]
    while maps[0, 0].numel() > MOST_PLACES:
        maps = pool(maps, [min(2, n) for n in maps.shape[2:]])
    return maps
