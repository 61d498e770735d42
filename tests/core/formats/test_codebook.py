import itertools

import pytest
import torch

from microtome.core.formats import Codebook
from microtome.core.formats.codebook import k_means


def test_values_in_clusters_are_found():
    tensor = torch.tensor([0.9, 1.1, -2.0, -2.2, 5.0, 5.0, 8.0, 7.0])
    encoded = Codebook(2).encode(tensor)
    assert encoded.parameters["codebook"].tolist() == pytest.approx([-2.1, 1.0, 5.0, 7.5])
    assert encoded.codes.tolist() == [1, 1, 0, 0, 2, 2, 3, 3]


def test_the_start_is_linear():
    # the start is -1, 0, 1, 2; no value is near 0, so that it stays
    tensor = torch.tensor([-1.0, 2.0, 1.1, 0.9, -0.8])
    assert Codebook(2).encode(tensor).parameters["codebook"].tolist() == pytest.approx([-0.9, 0.0, 1.0, 2.0])


def test_centroids_are_the_means_of_their_values():
    tensor = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    encoded = Codebook(4).encode(tensor)
    for code, value in enumerate(encoded.parameters["codebook"].tolist()):
        assert float(tensor[encoded.codes == code].mean()) == pytest.approx(value, abs=1e-5)


def test_one_bit_is_the_best_cut():
    tensor = torch.randn(60, generator=torch.Generator().manual_seed(3)).sort().values
    error = float((Codebook(1).encode(tensor).decode() - tensor).square().sum())
    cuts = [tensor[:k].var(correction=0) * k + tensor[k:].var(correction=0) * (60 - k) for k in range(1, 60)]
    assert error == pytest.approx(float(min(cuts)), rel=0.02)  # Lloyd's rounds end in a local minimum


def test_a_codebook_for_each_channel_loses_less():
    tensor = torch.randn((4, 300), generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1.0], [2.0], [5.0], [9.0]]
    )
    one, each = (Codebook(3, per_channel=p).encode(tensor, 0) for p in (False, True))
    assert one.parameters["codebook"].shape == (8,)
    assert each.parameters["codebook"].shape == (4, 8)
    assert bool(((each.decode() - tensor).square().sum(1) < (one.decode() - tensor).square().sum(1)).all())


def test_one_codebook_for_several_tensors():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn((3, 50), generator=generator), torch.randn((2, 4, 9), generator=generator)]
    together = Codebook(3).encode(torch.cat([t.flatten() for t in tensors])).parameters["codebook"]
    for integer in (False, True):
        parameters = Codebook(3, integer=integer).fit_shared(tensors)
        decoded = [Codebook(3, integer=integer).encode(t, 0, parameters).decode() for t in tensors]
        assert len(torch.cat([d.flatten() for d in decoded]).unique()) <= 8
        if not integer:
            assert torch.equal(parameters["codebook"], together)
    for given, number_format in itertools.product((tensors, []), (Codebook(per_channel=True), Codebook())):
        if given and not number_format.per_channel:
            continue
        with pytest.raises(ValueError, match="shared codebook"):
            number_format.fit_shared(given)


def test_integers_are_near_the_centroids():
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    plain, snapped = (Codebook(4, integer=i).encode(tensor) for i in (False, True))
    scale = float(snapped.parameters["scale"])
    values = snapped.parameters["codebook"] * scale
    assert snapped.parameters["codebook"].dtype == torch.int8
    assert int(snapped.parameters["codebook"].abs().max()) == 127
    assert bool(((values - plain.parameters["codebook"]).abs() <= scale * 0.5001).all())


def test_rows_are_clustered_by_themselves():
    rows = torch.randn((3, 40), generator=torch.Generator().manual_seed(0))
    assert torch.equal(k_means(rows, 4), torch.cat([k_means(row[None], 4) for row in rows]))


@pytest.mark.parametrize("bits", [0, 9])
def test_other_widths_are_refused(bits: int):
    with pytest.raises(ValueError, match="bits must be 1 to 8"):
        Codebook(bits)


def test_zeros_stay_zero_beside_a_codebook_for_the_others():
    # of what is not 0, three means: -1.1, 2.1 and 4; with zeros among the weights plain k-means moves the middle
    tensor = torch.tensor([0.0, 0, 0, 0, 0, 0, -1.0, -1.2, 2.0, 2.2, 4.0])
    encoded = Codebook(2, zero=True).encode(tensor)
    assert encoded.parameters["codebook"].tolist() == pytest.approx([-1.1, 0.0, 2.1, 4.0])
    assert encoded.decode().tolist() == pytest.approx([0] * 6 + [-1.1, -1.1, 2.1, 2.1, 4.0])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_sparse_tensor_keeps_its_zeros(bits: int, integer: bool, per_channel: bool):
    generator = torch.Generator().manual_seed(bits)
    tensor = torch.randn(6, 50, generator=generator) * (torch.rand(6, 50, generator=generator) > 0.8)
    tensor[3] = 0
    number_format = Codebook(bits, per_channel, integer).keeping_zeros()
    encoded = number_format.encode(tensor, 0)
    decoded = encoded.decode()
    assert bool((decoded[tensor == 0] == 0).all())
    assert torch.equal(encoded.encoding.encode(decoded).decode(), decoded)
    plain = Codebook(bits, per_channel, integer).encode(tensor, 0).decode()
    if bits in (2, 4) and not (per_channel or integer):
        assert not bool((plain[tensor == 0] == 0).all())
