import json

import pandas as pd
import pytest
from synthetic import Scenario, write_synthetic_run

from halocast.errors import MisuseError, RunError
from halocast.traces.export.tables import export_tables
from halocast.traces.trace import read_trace


@pytest.fixture
def trace(tmp_path):
    write_synthetic_run(tmp_path / "trace", Scenario(epochs=2))
    return read_trace(tmp_path / "trace")


def test_csv_holds_every_cell(trace, tmp_path):
    spans_path, messages_path = export_tables(trace, tmp_path / "out", "csv")
    aligned = trace.aligned()
    spans = pd.read_csv(spans_path, keep_default_na=False)
    assert spans.to_dict("records") == aligned.spans.to_dict("records")
    messages = pd.read_csv(messages_path, converters={"bits_out": json.loads, "bits_in": json.loads})
    expected = aligned.messages.to_dict("records")
    for row in expected:
        for column in ("bits_out", "bits_in"):
            row[column] = {str(bits): rows for bits, rows in row[column]}
    assert messages.to_dict("records") == expected


def test_parquet_holds_every_cell(trace, tmp_path):
    spans_path, messages_path = export_tables(trace, tmp_path / "out", "parquet")
    aligned = trace.aligned()
    assert pd.read_parquet(spans_path).to_dict("records") == aligned.spans.to_dict("records")
    assert pd.read_parquet(messages_path).to_dict("records") == aligned.messages.to_dict("records")


def test_errors_are_one_line(trace, tmp_path):
    with pytest.raises(MisuseError, match=r"unknown table format 'parqet'; did you mean 'parquet'\?"):
        export_tables(trace, tmp_path, "parqet")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write tables to"):
        export_tables(trace, tmp_path / "file")
