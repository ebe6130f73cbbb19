"""Selected inverse: equal to the dense inverse wherever a row of the matrix asks for it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.grid.selected_inverse import SelectedInverse, symmetric_factor


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 80))
def test_diagonal_and_quadratic_forms_equal_the_dense_inverse(seed: int, states: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    rows = sp.random(count, states, density=min(1.0, 3 / states), random_state=rng, format="csr")
    rows.data = rng.choice([-2.0, -1.0, 1.0, 2.0], rows.nnz)  # whole numbers: entries cancel exactly
    matrix = (rows.T @ rows + sp.identity(states)).tocsc()
    selected = SelectedInverse(symmetric_factor(matrix), rows)
    inverse = np.linalg.inv(matrix.toarray())
    np.testing.assert_allclose(selected.diagonal, np.diag(inverse), rtol=1e-8)
    dense = rows.toarray()
    np.testing.assert_allclose(selected.quadratic(rows), np.einsum("ri,ij,rj->r", dense, inverse, dense), atol=1e-9)


def test_columns_that_cancel_exactly_are_still_there() -> None:
    rows = sp.csr_matrix(np.array([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 1.0, 1.0]]))
    matrix = (rows.T @ rows + sp.identity(3)).tocsc()
    assert matrix[0, 1] == 0
    selected = SelectedInverse(symmetric_factor(matrix), rows)
    inverse, dense = np.linalg.inv(matrix.toarray()), rows.toarray()
    np.testing.assert_allclose(selected.quadratic(rows), np.einsum("ri,ij,rj->r", dense, inverse, dense))


def test_an_indefinite_matrix_is_refused() -> None:
    matrix = sp.csc_matrix(np.array([[0.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(ArithmeticError, match="not positive definite"):
        SelectedInverse(symmetric_factor(matrix), sp.csr_matrix(np.ones((1, 2))))
