import numpy as np
import pytest

from microtome.core.pareto import Predictor, best, crowding, fronts


def test_fronts_by_hand():
    points = np.array([[1, 4], [2, 2], [4, 1], [3, 3], [4, 4], [2, 2]])  # the last is the second again
    assert [front.tolist() for front in fronts(points)] == [[0, 1, 2, 5], [3], [4]]


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_no_candidate_of_a_front_dominates_another_and_each_later_one_is_dominated(objectives: int):
    points = np.random.default_rng(0).integers(0, 6, (40, objectives))
    found = fronts(points)
    assert sorted(np.concatenate(found)) == list(range(40))
    for place, front in enumerate(found):
        for k in front:
            worse = [j for j in front if (points[k] <= points[j]).all() and (points[k] < points[j]).any()]
            assert not worse
            if place:
                above = points[found[place - 1]]
                assert any((one <= points[k]).all() and (one < points[k]).any() for one in above)


def test_crowding_by_hand():
    points = np.array([[0.0, 4.0], [1.0, 2.0], [3.0, 1.0], [4.0, 0.0]])
    np.testing.assert_allclose(crowding(points), [np.inf, 3 / 4 + 3 / 4, 3 / 4 + 2 / 4, np.inf])
    assert crowding(np.ones((3, 2))).tolist() == [np.inf, 0, np.inf]


def test_the_best_come_front_by_front_and_the_crowded_last():
    points = np.array([[0.0, 4.0], [1.0, 2.0], [1.1, 1.9], [4.0, 0.0], [5.0, 5.0]])
    assert best(points, 2).tolist() == [0, 3]
    assert set(best(points, 4)) == {0, 1, 2, 3}
    assert best(points, 9).tolist()[-1] == 4


def test_the_predictor_learns_what_is_smooth():
    rng = np.random.default_rng(1)
    features = rng.uniform(0, 1, (60, 4))

    def values(x):
        return np.stack([3 * x[:, 0] - x[:, 1], np.exp(x[:, 2])], 1)

    predict = Predictor(features[:50], values(features[:50]))
    error = np.abs(predict(features[50:]) - values(features[50:])).mean(0) / values(features).std(0)
    assert (error < 0.15).all()


def test_the_predictor_of_one_row_says_that_row():
    predict = Predictor(np.ones((1, 3)), np.array([[2.0, 5.0]]))
    np.testing.assert_allclose(predict(np.ones((2, 3))), [[2, 5]] * 2, rtol=0.02)
