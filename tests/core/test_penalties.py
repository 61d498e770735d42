import pytest
import torch

from microtome.core.penalties import Part, group_lasso, lasso, unit_lengths


def test_the_lasso_is_the_sum_of_magnitudes():
    weights = [torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([-0.5])]
    assert float(lasso(weights)) == pytest.approx(6.5)


def test_units_have_the_length_of_all_their_weights():
    # unit 0: row 0 of the first weight and columns 0 and 2 of the second; unit 1: row 1 and column 1; column 3: none
    rows = Part(torch.tensor([[3.0, 0.0], [0.0, 5.0]]), 0, torch.tensor([0, 1]))
    columns = Part(torch.tensor([[4.0, 12.0, 0.0, 100.0]]), 1, torch.tensor([0, 1, 0, -1]))
    torch.testing.assert_close(unit_lengths([rows, columns]), torch.tensor([5.0, 13.0]))
    assert float(group_lasso([[rows, columns], [rows]])) == pytest.approx(5 + 13 + 3 + 5)


def test_a_vector_is_one_value_per_unit():
    scale = Part(torch.tensor([3.0, -4.0, 0.0]), 0, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(unit_lengths([scale]), torch.tensor([3.0, 4.0]))


def test_the_gradient_is_finite_where_a_unit_is_zero_already():
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    group_lasso([[Part(weight, 0, torch.tensor([0, 1]))]]).backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
