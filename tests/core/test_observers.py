import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core.observers import OBSERVERS, LeastSquares, MinMax, make_observer
from microtome.types import QType

QTYPES = [QType(8, signed=False, symmetric=False), QType(8), QType(4, narrow=True), QType(2, signed=False)]
FORMATS = pytest.mark.parametrize("qtype", QTYPES, ids=lambda q: f"{q.name}{'-symmetric' if q.symmetric else ''}")

DISTRIBUTIONS = {
    "normal": lambda g: torch.randn(4000, generator=g),
    "heavy tails": lambda g: torch.randn(4000, generator=g) ** 5,
    "behind relu": lambda g: torch.randn(4000, generator=g).clamp(min=0),
    "behind silu": lambda g: torch.nn.functional.silu(2 * torch.randn(4000, generator=g)),
    "all negative": lambda g: -torch.rand(4000, generator=g) - 3,
    "one outlier": lambda g: torch.cat([torch.randn(4000, generator=g), torch.tensor([300.0])]),
    "constant": lambda g: torch.full((10,), 0.7),
    "zeros": lambda g: torch.zeros(10),
}
DATA = pytest.mark.parametrize(
    "values", [make(torch.Generator().manual_seed(0)) for make in DISTRIBUTIONS.values()], ids=list(DISTRIBUTIONS)
)


@FORMATS
@DATA
def test_least_squares_never_loses_to_min_max(values: torch.Tensor, qtype: QType):
    observer, extremes = LeastSquares(), MinMax()
    observer.update(values)
    extremes.update(values)
    assert observer.error(*observer.range(qtype), qtype) <= observer.error(*extremes.range(qtype), qtype)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30), st.sampled_from(QTYPES))
@settings(max_examples=60, deadline=None)
def test_least_squares_never_loses_on_any_values(values, qtype):
    observer = LeastSquares()
    observer.update(torch.tensor(values))
    assert observer.error(*observer.range(qtype), qtype) <= observer.error(observer.low, observer.high, qtype)


@pytest.mark.parametrize("qtype", [QType(4), QType(4, signed=False, symmetric=False)], ids=["symmetric", "asymmetric"])
def test_least_squares_clips_a_lone_outlier(qtype: QType):
    observer = make_observer("mse")
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    values[0] = 20.0  # clipping it to 5 costs 225; a grid that holds it costs about 1 for each of 100,000 values
    observer.update(values)
    low, high = observer.range(qtype)
    assert -5 < low < -2
    assert 2 < high < 5


@FORMATS
@DATA
@pytest.mark.parametrize("name", OBSERVERS)
def test_every_range_is_finite_and_inside_what_was_seen(name: str, values: torch.Tensor, qtype: QType):
    observer = make_observer(name)
    for batch in values.chunk(4):
        observer.update(batch)
    low, high = observer.range(qtype)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low <= high
    reach = float(values.abs().max()) if qtype.symmetric else 0.0
    # every observer may widen to zero, symmetric ones to both sides
    assert low >= min(float(values.min()), 0.0, -reach)
    assert high <= max(float(values.max()), 0.0, reach)


def test_min_max_sees_all_batches():
    observer = make_observer("minmax")
    for batch in ([1.0, 2.0], [-5.0], [0.5]):
        observer.update(torch.tensor(batch))
    assert observer.range(QType(8)) == (-5.0, 2.0)


def test_moving_average_by_hand():
    observer = make_observer("moving_average", momentum=0.25)
    for batch in ([0.0, 4.0], [-4.0, 8.0]):
        observer.update(torch.tensor(batch))
    assert observer.range(QType(8)) == (-1.0, 5.0)  # 0 + (−4 − 0)/4, 4 + (8 − 4)/4


def test_percentile_leaves_out_the_same_share_at_either_end():
    observer = make_observer("percentile", percentile=99.0)
    observer.update(torch.arange(-1000, 1001).float())
    low, high = observer.range(QType(8))
    assert low == pytest.approx(-980, abs=2)  # 1 % of 2,001 values at either end, and a bin of width 0.5
    assert high == pytest.approx(980, abs=2)


def test_percentile_of_one_hundred_is_min_max():
    observer = make_observer("percentile", percentile=100.0)
    observer.update(torch.tensor([-1.25, 0.0, 7.3]))
    assert observer.range(QType(8)) == pytest.approx((-1.25, 7.3), rel=1e-6)


def test_entropy_keeps_a_uniform_range_whole_and_cuts_a_long_tail():
    generator = torch.Generator().manual_seed(0)
    uniform, tail = make_observer("kl"), make_observer("kl")
    uniform.update(torch.rand(100_000, generator=generator))
    values = torch.rand(100_000, generator=generator)
    values[0] = 20.0
    tail.update(values)
    qtype = QType(8, signed=False, symmetric=False)
    assert uniform.range(qtype)[1] > 0.9
    assert tail.range(qtype)[1] < 10


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_update_refuses_what_is_not_finite(name: str, bad: float):
    with pytest.raises(ValueError, match="NaN or infinity"):
        make_observer(name).update(torch.tensor([1.0, bad]))


@pytest.mark.parametrize("name", OBSERVERS)
def test_the_state_does_not_grow_with_the_stream(name: str):
    observer = make_observer(name)

    def held() -> int:
        return sum(t.numel() for t in vars(observer).values() if isinstance(t, torch.Tensor))

    observer.update(torch.randn(10, generator=torch.Generator().manual_seed(0)))
    first = held()
    for step in range(30):
        observer.update(torch.full((100,), 2.0**step))
    assert held() == first
    assert all(isinstance(value, float | torch.Tensor) for value in vars(observer).values())


@pytest.mark.parametrize("name", [name for name in OBSERVERS if name != "moving_average"])
def test_the_range_does_not_depend_on_the_order(name: str):
    batches = torch.randn((6, 500), generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 6)[:, None]
    one, other = make_observer(name), make_observer(name)
    for batch in batches:
        one.update(batch)
    for batch in batches.flip(0):
        other.update(batch)
    for qtype in QTYPES:
        assert one.range(qtype) == other.range(qtype)


def test_an_unknown_name_is_refused_with_the_choice():
    with pytest.raises(ValueError, match="minmax, moving_average"):
        make_observer("median")


def test_entropy_does_not_mind_the_zeros_behind_a_relu():
    values = torch.randn(30_000, generator=torch.Generator().manual_seed(0))
    dense, sparse = make_observer("kl"), make_observer("kl")
    dense.update(values[values > 0])
    sparse.update(values.clamp(min=0))
    qtype = QType(8, signed=False, symmetric=False)
    assert sparse.range(qtype) == dense.range(qtype)


@pytest.mark.parametrize("name", [name for name in OBSERVERS if name != "moving_average"])
def test_merged_observers_have_seen_what_both_have(name: str):
    values = torch.randn((2, 500), generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [40.0]])
    for first, second in (values, values.flip(0)):
        one, other, both = make_observer(name), make_observer(name), make_observer(name)
        one.update(first)
        other.update(second)
        both.update(first)
        both.update(second)
        one.merge(other)
        for qtype in QTYPES:
            assert one.range(qtype) == both.range(qtype)
        alone = make_observer(name)
        alone.update(second)
        assert other.range(QType(8)) == alone.range(QType(8))  # the other is not changed
