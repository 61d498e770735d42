import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.core.packing import pack, packed_size, unpack

widths = st.integers(1, 16)
coded = widths.flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, (1 << bits) - 1), max_size=70)))


@given(coded)
def test_codes_come_back(case: tuple[int, list[int]]):
    bits, codes = case
    content = pack(torch.tensor(codes, dtype=torch.int64), bits)
    assert content.dtype == torch.uint8
    assert content.numel() == packed_size(len(codes), bits) == -(-len(codes) * bits // 8)
    again = unpack(content, bits, len(codes))
    assert again.dtype == torch.int32
    assert again.tolist() == codes


@given(coded)
def test_the_bytes_are_one_long_number(case: tuple[int, list[int]]):
    bits, codes = case
    number = sum(code << (bits * place) for place, code in enumerate(codes))
    assert bytes(pack(torch.tensor(codes, dtype=torch.int32), bits).tolist()) == number.to_bytes(
        packed_size(len(codes), bits), "little"
    )


def test_a_case_by_hand():
    assert pack(torch.tensor([[1, 2], [3, 0]]), 4).tolist() == [0x21, 0x03]
    assert pack(torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1]), 1).tolist() == [0b00001101, 1]
    assert pack(torch.tensor([0x1234]), 16).tolist() == [0x34, 0x12]


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_other_widths_are_refused(bits: int):
    with pytest.raises(ValueError, match="bits must be 1 to 16"):
        pack(torch.tensor([0]), bits)
    with pytest.raises(ValueError, match="bits must be 1 to 16"):
        unpack(torch.zeros(1, dtype=torch.uint8), bits, 1)


@pytest.mark.parametrize("code", [16, -1])
def test_a_code_that_does_not_fit_is_refused(code: int):
    with pytest.raises(ValueError, match="does not fit into 4 bits"):
        pack(torch.tensor([3, code]), 4)


@pytest.mark.parametrize("size", [2, 4])
def test_the_wrong_number_of_bytes_is_refused(size: int):
    with pytest.raises(ValueError, match=f"5 codes of 4 bits take 3 bytes, not {size}"):
        unpack(torch.zeros(size, dtype=torch.uint8), 4, 5)
