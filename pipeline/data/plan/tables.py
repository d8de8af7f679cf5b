"""CSV and Parquet files of any size, local or s3://, a batch of rows at a time."""

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ...errors import UserError
from ...storage.files import resolve

BATCH = 2**16  # rows that are in memory at the same time


def read_table(path: str, required: dict[str, pa.DataType], optional: dict[str, pa.DataType]) -> Iterator[pa.Table]:
    """Read the columns `required` (text) and `optional` of a .parquet or .csv file, as those types, and no others.

    An empty field is "" in a required column and null in an optional one; an optional column that the file lacks is
    null. Raises UserError.
    """
    expected = f"expected a table with {', '.join(required)}" + (f" (and {', '.join(optional)})" if optional else "")
    schema = pa.schema(list((required | optional).items()))
    try:
        for part in (_parquet if path.lower().endswith(".parquet") else _csv)(path, schema):
            if missing := [name for name in required if name not in part.column_names]:
                raise UserError(f"{path}: has no column {' and '.join(sorted(missing))}; {expected}")
            yield conform(part, schema, dict.fromkeys(required, ""))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give it with data.annotations") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({why}); {expected}") from error


def conform(table: pa.Table, schema: pa.Schema, blank: Mapping[str, str | int]) -> pa.Table:
    """Return the columns of `schema`, as its types; what `table` does not say is the column's `blank`, else null."""
    arrays = []
    for field in schema:
        named = field.name in table.column_names
        array = table[field.name].cast(field.type) if named else pa.nulls(table.num_rows, field.type)
        arrays.append(pc.fill_null(array, blank[field.name]) if field.name in blank else array)
    return pa.table(arrays, schema=schema)


def _parquet(path: str, schema: pa.Schema) -> Iterator[pa.Table]:
    filesystem, inner = resolve(path)
    with filesystem.open_input_file(inner) as source:
        file = pq.ParquetFile(source)
        wanted = [name for name in schema.names if name in file.schema_arrow.names]
        yield from (pa.Table.from_batches([batch]) for batch in file.iter_batches(BATCH, columns=wanted))


def _csv(path: str, schema: pa.Schema) -> Iterator[pa.Table]:
    filesystem, inner = resolve(path)
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    with pa_csv.open_csv(filesystem.open_input_stream(inner, compression="detect"), parse_options=parse) as reader:
        wanted = [name for name in schema.names if name in reader.schema.names]
    convert = pa_csv.ConvertOptions(
        include_columns=wanted, column_types=schema, null_values=[""], strings_can_be_null=True
    )
    stream = filesystem.open_input_stream(inner, compression="detect")
    with pa_csv.open_csv(stream, parse_options=parse, convert_options=convert) as reader:
        yield from (pa.Table.from_batches([batch]) for batch in reader)
