"""CSV and Parquet files of any size, local or s3://, a batch of rows at a time."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ...errors import UserError
from ...storage.files import resolve

BATCH = 2**16


def read_table(path: str, required: dict[str, pa.DataType], optional: dict[str, pa.DataType]) -> Iterator[pa.Table]:
    """The columns `required` and `optional` of a .parquet or .csv file, of those types; others are not read.

    Columns of `optional` that the file has not are all null, and so are empty fields of a CSV there. Raises UserError.
    """
    expected = f"expected a table with {', '.join(required)}" + (f" (and {', '.join(optional)})" if optional else "")
    columns = required | optional
    try:
        for part in (_parquet if path.lower().endswith(".parquet") else _csv)(path, columns):
            if missing := [name for name in required if name not in part.column_names]:
                raise UserError(f"{path}: has no column {' and '.join(sorted(missing))}; {expected}")
            yield _conform(part, columns, required)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give it with data.annotations") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({why}); {expected}") from error


def _parquet(path: str, columns: dict[str, pa.DataType]) -> Iterator[pa.Table]:
    filesystem, inner = resolve(path)
    with filesystem.open_input_file(inner) as source:
        file = pq.ParquetFile(source)
        wanted = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH, columns=wanted):
            yield pa.Table.from_batches([batch])


def _csv(path: str, columns: dict[str, pa.DataType]) -> Iterator[pa.Table]:
    filesystem, inner = resolve(path)
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    with pa_csv.open_csv(filesystem.open_input_stream(inner, compression="detect"), parse_options=parse) as reader:
        wanted = [name for name in columns if name in reader.schema.names]
    convert = pa_csv.ConvertOptions(
        include_columns=wanted, column_types=columns, null_values=[""], strings_can_be_null=True
    )
    stream = filesystem.open_input_stream(inner, compression="detect")
    with pa_csv.open_csv(stream, parse_options=parse, convert_options=convert) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _conform(part: pa.Table, columns: dict[str, pa.DataType], required: dict[str, pa.DataType]) -> pa.Table:
    """All the columns, of their types; text that a row lacks is "" where it is required."""
    arrays = []
    for name, kind in columns.items():
        array = part[name].cast(kind) if name in part.column_names else pa.nulls(part.num_rows, kind)
        arrays.append(pc.fill_null(array, "") if name in required and kind == pa.string() else array)
    return pa.table(arrays, names=list(columns))
