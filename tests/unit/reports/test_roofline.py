"""Bytes that operations are taken to move, counted by hand."""

import pandas as pd

from halocast.reports.roofline import INDEX_BYTES, moved_bytes


def spans(op, *, rows, nnz, dim_in, dim_out):
    return pd.DataFrame([{"op": op, "rows": rows, "nnz": nnz, "dim_in": dim_in, "dim_out": dim_out}])


def test_products_read_their_rows_and_the_weights_once():
    (moved,) = moved_bytes(spans("Transform", rows=10, nnz=0, dim_in=3, dim_out=5), 4)
    assert moved == 4 * (10 * 3 + 3 * 5 + 10 * 5)


def test_products_with_sparse_features_read_nonzeros_and_no_row_of_weights_twice():
    (moved,) = moved_bytes(spans("Transform", rows=10, nnz=7, dim_in=4000, dim_out=5), 8)
    assert moved == 7 * (8 + INDEX_BYTES) + 8 * (4000 * 5 + 10 * 5)


def test_aggregations_read_a_row_a_nonzero():
    (moved,) = moved_bytes(spans("Aggregate", rows=10, nnz=7, dim_in=5, dim_out=5), 4)
    assert moved == 4 * (7 + 10) * 5 + 7 * INDEX_BYTES
