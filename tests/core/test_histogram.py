import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core.histogram import BINS, Histogram

values = st.lists(st.floats(-1e6, 1e6, width=32).filter(lambda v: v == 0 or abs(v) > 1e-20), min_size=1, max_size=20)


def fill(*batches: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(batch)
    return histogram


@given(st.lists(values, min_size=1, max_size=5), st.randoms())
@settings(max_examples=200, deadline=None)
def test_the_order_of_the_stream_does_not_matter(batches, random):
    tensors = [torch.tensor(batch) for batch in batches]
    one = fill(*tensors)
    random.shuffle(tensors)
    other = fill(*tensors)
    assert torch.equal(one.counts, other.counts)
    assert (one.low, one.high, one.width) == (other.low, other.high, other.width)


def test_a_value_on_a_bin_edge_stays_in_its_bin_when_bins_merge():
    assert torch.equal(fill(torch.tensor([1.0]), torch.tensor([3.0])).counts, fill(torch.tensor([3.0, 1.0])).counts)


@given(st.lists(values, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_the_counts_are_those_of_numpy(batches):
    histogram = fill(*(torch.tensor(batch) for batch in batches))
    reach = histogram.width * BINS / 2
    everything = np.concatenate([np.array(batch, np.float32) for batch in batches]).astype(np.float64)
    edges = np.arange(BINS + 1) * histogram.width - reach
    expected, _ = np.histogram(everything, edges)
    assert np.array_equal(histogram.counts.numpy(), expected)
    assert (histogram.low, histogram.high) == (everything.min(), everything.max())


def test_many_equal_values_are_counted_exactly():
    histogram = Histogram()
    zeros = torch.zeros(1 << 22)
    for _ in range(5):  # float32 counters stop at 2^24
        histogram.update(zeros)
    assert float(histogram.counts.sum()) == 5 * 2**22


def test_the_memory_does_not_grow():
    histogram = Histogram()
    generator = torch.Generator().manual_seed(0)
    for exponent in range(20):
        histogram.update(torch.randn(50, generator=generator) * 2.0**exponent)
        assert sum(t.numel() for t in vars(histogram).values() if isinstance(t, torch.Tensor)) == BINS
    assert float(histogram.counts.sum()) == 1000


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_and_leaves_no_trace(bad: float):
    histogram = fill(torch.tensor([1.0, 2.0]))
    before = histogram.counts.clone()
    with pytest.raises(ValueError, match="NaN or infinity"):
        histogram.update(torch.tensor([0.5, bad]))
    assert torch.equal(histogram.counts, before)
    assert (histogram.low, histogram.high) == (1.0, 2.0)


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.9, 0.999])
def test_quantiles_lie_within_a_bin_of_numpy(share: float):
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    histogram = fill(*x.split(1000))
    # numpy interpolates between neighbouring values, the histogram within a bin
    gap = float(np.diff(np.sort(x.numpy()))[[int(share * 9_999) - 1, int(share * 9_999)]].max())
    assert histogram.quantile(share) == pytest.approx(np.quantile(x.numpy(), share), abs=histogram.width + gap)


@given(values, st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_quantiles_lie_inside_what_was_seen(batch, share):
    histogram = fill(torch.tensor(batch))
    assert histogram.low <= histogram.quantile(share) <= histogram.high


def test_zeros_alone_and_the_smallest_values():
    assert fill(torch.zeros(3)).quantile(0.5) == 0.0
    tiny = fill(torch.tensor([1e-42, -1e-42]))
    assert float(tiny.counts.sum()) == 2
    assert tiny.quantile(1.0) == tiny.high


def test_half_precision_is_counted_too():
    assert float(fill(torch.tensor([1.0, 2.0], dtype=torch.bfloat16)).counts.sum()) == 2


def test_the_layout_in_memory_does_not_matter():
    x = torch.randn((2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    for other in (x.contiguous(memory_format=torch.channels_last), x.movedim(0, 2).contiguous().movedim(2, 0)):
        assert torch.equal(fill(x).counts, fill(other).counts)
    assert torch.equal(fill(x[:, ::2]).counts, fill(x[:, ::2].clone()).counts)
    assert float(fill(torch.ones(1).expand(7)).counts.sum()) == 7
