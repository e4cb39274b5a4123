"""Where predictions are written as they are made, so that a kill loses none that was written and the same command goes on.

They are appended to `FILE.partial` as CSV, a batch at a time. When all are there it gets its name, or is converted to
Parquet. Beside it, `FILE.partial.json` says of what it is a part.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitlight.errors import InputError
from vitlight.prediction.rows import Columns, Prediction

__all__ = ["PredictionFile", "check_output"]

_BLOCK_BYTES = 1 << 24  # a row of 21,000 probabilities has 250 kB


def check_output(path: Path, overwrite: bool) -> None:
    """InputError for a file that can't be written, is there already, or is neither .csv nor .parquet."""
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"--output={path} ends in {path.suffix!r}; what can be written ends in .csv or .parquet")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError as error:
            raise InputError(
                f"--output={path} needs pyarrow; pip install 'vitlight[parquet]', or write .csv"
            ) from error
    if not path.parent.is_dir():
        raise InputError(f"--output={path}: there is no folder {path.parent}")
    if path.exists() and not overwrite:
        raise InputError(f"--output={path} is there already; name another file, or give --overwrite")


class PredictionFile:
    """A table of predictions at `path`, begun, or gone on with where an earlier command was cut off.

    columns: its columns. identity: what decides which rows come in which order. `num_done` rows, `num_errors` of them with
    an error, are there. Raises InputError where it can't be written, where another process is writing it, and, without
    `overwrite`, where what is left has another identity or other columns.
    """

    def __init__(self, path: Path, columns: Columns, identity: Mapping[str, Any], overwrite: bool = False) -> None:
        self.path, self.columns, self.identity = path, columns, dict(identity)
        self.partial = path.with_name(f"{path.name}.partial")
        self._about = path.with_name(f"{path.name}.partial.json")
        self.num_done = self.num_errors = 0
        try:
            self._file = self.partial.open("a+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"--output={path} is being written by another process; name another file") from error
            self._begin_or_go_on(json.dumps(self.identity, sort_keys=True), overwrite)
        except InputError:
            self._file.close()
            raise
        except OSError as error:
            raise InputError(f"--output={path} can't be written: {error.strerror}") from error

    def _begin_or_go_on(self, about: str, overwrite: bool) -> None:
        header = self.columns.csv_header()
        self._file.seek(0)
        first, has_more = self._file.readline(), bool(self._file.readline())
        is_same = first == header and self._about.exists() and self._about.read_text() == about
        if has_more and not is_same and not overwrite:
            raise InputError(
                f"{self.partial} is what is left of another command (model, images, class names or columns differ); finish "
                f"that one, name another file, or give --overwrite"
            )
        if is_same:
            self._file.seek(len(header))
            end = self._file.tell()
            for line in self._file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                self.num_done += 1
                self.num_errors += not line.endswith(b",\n")  # the last column is the error
            self._file.truncate(end)
        else:
            self._file.truncate(0)
            self._file.write(header)
            self._file.flush()
            self._about.write_text(about)

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Append rows; when this returns, a kill of the process does not lose them."""
        self._file.write(self.columns.csv(predictions))
        self._file.flush()
        self.num_done += len(predictions)
        self.num_errors += sum(1 for prediction in predictions if prediction.error is not None)

    def close(self) -> None:
        """Leave it as it is, for another command to go on with."""
        self._file.close()

    def finish(self) -> None:
        """All rows are there: give the file its name."""
        os.fsync(self._file.fileno())
        if self.path.suffix == ".parquet":
            beside = self.path.with_name(f".{self.path.name}.tmp")
            try:
                _to_parquet(self.partial, beside, self.columns, self.identity)
                beside.replace(self.path)
            finally:
                beside.unlink(missing_ok=True)
            self.partial.unlink()
        else:
            self.partial.replace(self.path)
        self._file.close()
        self._about.unlink()


def _to_parquet(source: Path, target: Path, columns: Columns, identity: Mapping[str, Any]) -> None:
    """The same rows, block by block. `p_0`, `p_1`, ... become one column of lists, `probabilities`; what is empty, null."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    kinds = {"class": pa.int32(), "probability": pa.float32(), "p": pa.float32()}
    types = {name: kinds.get(name.rpartition("_")[0], pa.string()) for name in columns.names}
    reader = pyarrow.csv.open_csv(
        source,
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True),
    )
    single = [name for name in columns.names if name.rpartition("_")[0] != "p"]
    fields = [pa.field(name, types[name]) for name in single]
    if columns.num_all:
        fields.insert(-1, pa.field("probabilities", pa.list_(pa.float32(), columns.num_all)))
    about = {**identity, "class_names": columns.class_names}
    schema = pa.schema(fields, {"vitlight": json.dumps(about)})
    with reader, pyarrow.parquet.ParquetWriter(target, schema) as writer:
        for batch in reader:
            arrays = [batch.column(name) for name in single]
            if columns.num_all:
                parts = [batch.column(f"p_{i}").to_numpy(zero_copy_only=False) for i in range(columns.num_all)]
                values = np.stack(parts, 1).astype(np.float32)
                is_missing = pa.array(batch.column("p_0").is_null().to_numpy(zero_copy_only=False))
                lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), columns.num_all, mask=is_missing)
                arrays.insert(-1, lists)
            writer.write_batch(pa.record_batch(arrays, schema=schema))
