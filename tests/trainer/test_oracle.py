"""What oracles answer, and how wrong answers are refused."""

import numpy as np
import pytest

from trainer.errors import DataError
from trainer.oracle import CallableOracle, DatasetOracle, missing_classes

INDICES = np.array([4, 0])


def test_a_data_set_answers_with_its_labels():
    oracle = DatasetOracle(np.array([3, 1, 4, 1, 5]))
    assert oracle(INDICES).tolist() == [5, 3]


@pytest.mark.parametrize("index", [-1, 5])
def test_a_data_set_is_not_asked_beyond_its_end(index):
    oracle = DatasetOracle(np.array([3, 1, 4, 1, 5]))
    with pytest.raises(DataError, match=f"asked for image {index} and knows 0 to 4"):
        oracle(np.array([0, index]))


@pytest.mark.parametrize("answers", [[2, 1], (2, 1), np.array([2, 1], np.uint8)])
def test_a_function_is_asked_with_dataset_level_indices(answers):
    asked = []
    oracle = CallableOracle(lambda indices: asked.append(indices.tolist()) or answers, 3)
    labels = oracle(INDICES)
    assert (labels.tolist(), labels.dtype, asked) == ([2, 1], np.int64, [[4, 0]])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([1], r"answers of shape \(1,\) to 2 images; one label for each"),
        (1, r"answers of shape \(\) to 2 images"),
        ([[1, 2]], r"answers of shape \(1, 2\) to 2 images"),
        ([1.0, 2.0], r"labels of type float64 \(image 4: .*1\.0.*integers from 0 to 2"),
        (["cat", "dog"], r"labels of type <U3 \(image 4: .*'cat'"),
        ([None, 1], r"labels of type object \(image 4: None\)"),
        ([True, False], r"labels of type bool"),
        ([1, 3], r"label out of range: the oracle gave image 0 the label 3, and 3 classes"),
        ([-1, 9], r"gave image 4 the label -1, .* \(2 such answers\)"),
    ],
)
def test_a_wrong_answer_is_refused(answers, message):
    with pytest.raises(DataError, match=message):
        CallableOracle(lambda indices: answers, 3)(INDICES)


def test_classes_without_a_label_are_named_in_class_order():
    assert missing_classes(np.array([2, 0, 2]), ("ape", "bee", "cat", "dog")) == ("bee", "dog")
    assert missing_classes(np.array([0, 1]), ("ape", "bee")) == ()
