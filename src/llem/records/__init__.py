"""The measurements: the HDF5 schema, its writer and its reader.

Public: `rank_writer`, `node_writer`, `RecordWriter`, `RecordWriteError` (writer), `read_rank`,
`read_node`, `RankRecord`, `NodeRecord`, `DeviceSeries`, `RecordError` (reader), `host_meta`
(host), `Phase`, `RequestStatus`, `SampleFlag`, `worst_quality` and the table layouts (schema),
`seal`, `check_seal`, `read_seal`, `digest`, `Sealed`, `RecordInUseError` (sealing), `Columns`
(columns), `latest_samples`, `Latest` (latest).
"""

from llem.records.columns import Columns
from llem.records.host import host_meta
from llem.records.latest import Latest, latest_samples
from llem.records.reader import (
    DeviceSeries,
    NodeRecord,
    RankRecord,
    RecordError,
    read_node,
    read_rank,
)
from llem.records.schema import (
    DOMAINS,
    ENGINE,
    FORWARDS,
    QUALITIES,
    REQUESTS,
    SAMPLES,
    SCHEMA,
    STEPS,
    TOKENS,
    Phase,
    RequestStatus,
    SampleFlag,
    worst_quality,
)
from llem.records.sealing import (
    RecordInUseError,
    Sealed,
    check_seal,
    digest,
    read_seal,
    seal,
)
from llem.records.writer import (
    RecordWriteError,
    RecordWriter,
    node_writer,
    rank_writer,
    samples_table,
)

__all__ = [
    "DOMAINS",
    "ENGINE",
    "FORWARDS",
    "QUALITIES",
    "REQUESTS",
    "SAMPLES",
    "SCHEMA",
    "STEPS",
    "TOKENS",
    "Columns",
    "DeviceSeries",
    "Latest",
    "NodeRecord",
    "Phase",
    "RankRecord",
    "RecordError",
    "RecordInUseError",
    "RecordWriteError",
    "RecordWriter",
    "RequestStatus",
    "SampleFlag",
    "Sealed",
    "check_seal",
    "digest",
    "host_meta",
    "latest_samples",
    "node_writer",
    "rank_writer",
    "read_node",
    "read_rank",
    "read_seal",
    "samples_table",
    "seal",
    "worst_quality",
]
