#!/usr/bin/env bash
# duckdb 1.0.0, 1.4.4, 2.0.0; pyarrow 15.0.2 and 26.0.1; polars 1.0.0; fastparquet 2026.9.0.
#
# Parquet's BYTE_STREAM_SPLIT packs columns of numbers well, and pyarrow writes integers with it as asked. The format allows
# that since 2.11 (2024) only, and many readers in use know it for floating point alone, or not at all. Seen for one and the same
# column of int32: duckdb 1.0 and 1.4, pyarrow 15 and fastparquet raise an error; duckdb 2.0, pyarrow 26 and polars 1.0 read it.
# As float32 all read it but fastparquet.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
install() { local target=$folder/$1; shift; "$folder/venv/bin/pip" install -qq --disable-pip-version-check --target "$target" "$@"; }
install writer pyarrow==26.0.1
install duckdb-1.0 duckdb==1.0.0
install duckdb-1.4 duckdb==1.4.4
install duckdb-2.0 duckdb==2.0.0
install polars-1.0 polars==1.0.0
install pyarrow-15 pyarrow==15.0.2 'numpy<2'
install fastparquet fastparquet==2026.9.0
cd "$folder"
PYTHONPATH=writer venv/bin/python - <<'PY'
import pyarrow as pa, pyarrow.parquet as pq
for name, kind in {"whole": pa.int32(), "float": pa.float32()}.items():
    table = pa.table({"x": pa.array(range(1000), kind)})
    pq.write_table(table, f"{name}.parquet", use_dictionary=False, column_encoding={"x": "BYTE_STREAM_SPLIT"})
PY
cat > read.py <<'PY'
import sys
library, file = sys.argv[1], sys.argv[2]
try:
    if library == "duckdb":
        import duckdb
        found = duckdb.sql(f"SELECT x FROM '{file}'").fetchall()
        found = [int(x) for (x,) in found]
    elif library == "polars":
        import polars
        found = [int(x) for x in polars.read_parquet(file)["x"]]
    elif library == "pyarrow":
        import pyarrow.parquet as pq
        found = [int(x) for x in pq.read_table(file)["x"].to_pylist()]
    else:
        import fastparquet
        found = [int(x) for x in fastparquet.ParquetFile(file).to_pandas()["x"]]
    print("read" if found == list(range(1000)) else "other values")
except Exception as e:
    print("error")
    print(f"  {type(e).__name__}: {str(e).splitlines()[0][:120]}", file=sys.stderr)
PY
expect() {  # folder, library, what becomes of integers, what becomes of floats
  local whole float
  whole=$(PYTHONPATH=$1 venv/bin/python read.py "$2" whole.parquet)
  float=$(PYTHONPATH=$1 venv/bin/python read.py "$2" float.parquet)
  echo "$1: int32 $whole, float32 $float"
  [ "$whole $float" = "$3 $4" ]
}
expect duckdb-1.0 duckdb error read
expect duckdb-1.4 duckdb error read
expect duckdb-2.0 duckdb read read
expect polars-1.0 polars read read
expect pyarrow-15 pyarrow error read
expect writer pyarrow read read
expect fastparquet fastparquet error error
echo "still so"
