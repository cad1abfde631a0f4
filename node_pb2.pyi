import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Backend(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKEND_UNSPECIFIED: _ClassVar[Backend]
    BACKEND_HOST: _ClassVar[Backend]
    BACKEND_NVML: _ClassVar[Backend]
    BACKEND_SIMULATED: _ClassVar[Backend]
BACKEND_UNSPECIFIED: Backend
BACKEND_HOST: Backend
BACKEND_NVML: Backend
BACKEND_SIMULATED: Backend

class HeartbeatRequest(_message.Message):
    __slots__ = ("node_id", "gpu_temp", "info", "sample", "backlog", "leaving", "clock_milliseconds", "processes", "round_trip_microseconds", "summary")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    GPU_TEMP_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    CLOCK_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    gpu_temp: float
    info: NodeInfo
    sample: Sample
    backlog: _containers.RepeatedCompositeFieldContainer[Sample]
    leaving: bool
    clock_milliseconds: int
    processes: ProcessList
    round_trip_microseconds: int
    summary: Summary
    def __init__(self, node_id: _Optional[str] = ..., gpu_temp: _Optional[float] = ..., info: _Optional[_Union[NodeInfo, _Mapping]] = ..., sample: _Optional[_Union[Sample, _Mapping]] = ..., backlog: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., leaving: bool = ..., clock_milliseconds: _Optional[int] = ..., processes: _Optional[_Union[ProcessList, _Mapping]] = ..., round_trip_microseconds: _Optional[int] = ..., summary: _Optional[_Union[Summary, _Mapping]] = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ("utilization_permille", "memory_permille", "memory_used_bytes", "memory_total_bytes", "temperature_celsius", "hottest_device", "power_milliwatts", "failed_devices", "without_utilization", "without_memory", "without_power", "readings", "cpu_percent", "energy_joules")
    UTILIZATION_PERMILLE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PERMILLE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    HOTTEST_DEVICE_FIELD_NUMBER: _ClassVar[int]
    POWER_MILLIWATTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_DEVICES_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_MEMORY_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_POWER_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    ENERGY_JOULES_FIELD_NUMBER: _ClassVar[int]
    utilization_permille: int
    memory_permille: int
    memory_used_bytes: int
    memory_total_bytes: int
    temperature_celsius: int
    hottest_device: int
    power_milliwatts: int
    failed_devices: int
    without_utilization: int
    without_memory: int
    without_power: int
    readings: bytes
    cpu_percent: int
    energy_joules: int
    def __init__(self, utilization_permille: _Optional[int] = ..., memory_permille: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., temperature_celsius: _Optional[int] = ..., hottest_device: _Optional[int] = ..., power_milliwatts: _Optional[int] = ..., failed_devices: _Optional[int] = ..., without_utilization: _Optional[int] = ..., without_memory: _Optional[int] = ..., without_power: _Optional[int] = ..., readings: _Optional[bytes] = ..., cpu_percent: _Optional[int] = ..., energy_joules: _Optional[int] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("acknowledged", "acknowledged_sequence", "heartbeat_interval_milliseconds", "reconnect_spread_milliseconds")
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    RECONNECT_SPREAD_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    acknowledged: bool
    acknowledged_sequence: int
    heartbeat_interval_milliseconds: int
    reconnect_spread_milliseconds: int
    def __init__(self, acknowledged: bool = ..., acknowledged_sequence: _Optional[int] = ..., heartbeat_interval_milliseconds: _Optional[int] = ..., reconnect_spread_milliseconds: _Optional[int] = ...) -> None: ...

class NodeInfo(_message.Message):
    __slots__ = ("hostname", "agent_version", "instance_id", "backend", "started_at", "host", "devices", "notice", "session_number", "last_error", "box_id", "id_is_drawn", "sampling_interval_milliseconds", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    SESSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    BOX_ID_FIELD_NUMBER: _ClassVar[int]
    ID_IS_DRAWN_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_INTERVAL_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    hostname: str
    agent_version: str
    instance_id: str
    backend: Backend
    started_at: _timestamp_pb2.Timestamp
    host: HostInfo
    devices: _containers.RepeatedCompositeFieldContainer[DeviceInfo]
    notice: str
    session_number: int
    last_error: str
    box_id: str
    id_is_drawn: bool
    sampling_interval_milliseconds: int
    labels: _containers.ScalarMap[str, str]
    def __init__(self, hostname: _Optional[str] = ..., agent_version: _Optional[str] = ..., instance_id: _Optional[str] = ..., backend: _Optional[_Union[Backend, str]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., host: _Optional[_Union[HostInfo, _Mapping]] = ..., devices: _Optional[_Iterable[_Union[DeviceInfo, _Mapping]]] = ..., notice: _Optional[str] = ..., session_number: _Optional[int] = ..., last_error: _Optional[str] = ..., box_id: _Optional[str] = ..., id_is_drawn: bool = ..., sampling_interval_milliseconds: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class HostInfo(_message.Message):
    __slots__ = ("model", "operating_system", "cpu_count", "memory_total_bytes", "disk_total_bytes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPERATING_SYSTEM_FIELD_NUMBER: _ClassVar[int]
    CPU_COUNT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    model: str
    operating_system: str
    cpu_count: int
    memory_total_bytes: int
    disk_total_bytes: int
    def __init__(self, model: _Optional[str] = ..., operating_system: _Optional[str] = ..., cpu_count: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., disk_total_bytes: _Optional[int] = ...) -> None: ...

class DeviceInfo(_message.Message):
    __slots__ = ("index", "uuid", "name", "memory_total_bytes", "power_limit_milliwatts", "slowdown_temperature_celsius", "unified_memory", "backend")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    POWER_LIMIT_MILLIWATTS_FIELD_NUMBER: _ClassVar[int]
    SLOWDOWN_TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    UNIFIED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    index: int
    uuid: str
    name: str
    memory_total_bytes: int
    power_limit_milliwatts: int
    slowdown_temperature_celsius: int
    unified_memory: bool
    backend: Backend
    def __init__(self, index: _Optional[int] = ..., uuid: _Optional[str] = ..., name: _Optional[str] = ..., memory_total_bytes: _Optional[int] = ..., power_limit_milliwatts: _Optional[int] = ..., slowdown_temperature_celsius: _Optional[int] = ..., unified_memory: bool = ..., backend: _Optional[_Union[Backend, str]] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("sequence", "taken_milliseconds", "host", "devices")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TAKEN_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    taken_milliseconds: int
    host: HostSample
    devices: _containers.RepeatedCompositeFieldContainer[DeviceSample]
    def __init__(self, sequence: _Optional[int] = ..., taken_milliseconds: _Optional[int] = ..., host: _Optional[_Union[HostSample, _Mapping]] = ..., devices: _Optional[_Iterable[_Union[DeviceSample, _Mapping]]] = ...) -> None: ...

class HostSample(_message.Message):
    __slots__ = ("cpu_percent", "memory_used_bytes", "disk_used_bytes", "network_received_bytes_per_second", "network_sent_bytes_per_second", "temperature_celsius", "load_1m", "uptime_seconds", "cpu_core_percents")
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_RECEIVED_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    NETWORK_SENT_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    LOAD_1M_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CPU_CORE_PERCENTS_FIELD_NUMBER: _ClassVar[int]
    cpu_percent: int
    memory_used_bytes: int
    disk_used_bytes: int
    network_received_bytes_per_second: int
    network_sent_bytes_per_second: int
    temperature_celsius: int
    load_1m: float
    uptime_seconds: int
    cpu_core_percents: bytes
    def __init__(self, cpu_percent: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., disk_used_bytes: _Optional[int] = ..., network_received_bytes_per_second: _Optional[int] = ..., network_sent_bytes_per_second: _Optional[int] = ..., temperature_celsius: _Optional[int] = ..., load_1m: _Optional[float] = ..., uptime_seconds: _Optional[int] = ..., cpu_core_percents: _Optional[bytes] = ...) -> None: ...

class DeviceSample(_message.Message):
    __slots__ = ("utilization_percent", "memory_used_bytes", "temperature_celsius", "power_milliwatts", "fan_percent", "sm_clock_mhz", "throttle_reasons", "error")
    UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    POWER_MILLIWATTS_FIELD_NUMBER: _ClassVar[int]
    FAN_PERCENT_FIELD_NUMBER: _ClassVar[int]
    SM_CLOCK_MHZ_FIELD_NUMBER: _ClassVar[int]
    THROTTLE_REASONS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    utilization_percent: int
    memory_used_bytes: int
    temperature_celsius: int
    power_milliwatts: int
    fan_percent: int
    sm_clock_mhz: int
    throttle_reasons: int
    error: str
    def __init__(self, utilization_percent: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., temperature_celsius: _Optional[int] = ..., power_milliwatts: _Optional[int] = ..., fan_percent: _Optional[int] = ..., sm_clock_mhz: _Optional[int] = ..., throttle_reasons: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class ProcessList(_message.Message):
    __slots__ = ("processes",)
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    processes: _containers.RepeatedCompositeFieldContainer[Process]
    def __init__(self, processes: _Optional[_Iterable[_Union[Process, _Mapping]]] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("device_index", "pid", "user", "name", "memory_used_bytes")
    DEVICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    device_index: int
    pid: int
    user: str
    name: str
    memory_used_bytes: int
    def __init__(self, device_index: _Optional[int] = ..., pid: _Optional[int] = ..., user: _Optional[str] = ..., name: _Optional[str] = ..., memory_used_bytes: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("epoch", "version", "open", "details", "processes", "forget", "clock_milliseconds", "moment_unix_milliseconds", "graph", "after")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    CLOCK_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    MOMENT_UNIX_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    version: int
    open: _containers.RepeatedScalarFieldContainer[str]
    details: bool
    processes: bool
    forget: _containers.RepeatedScalarFieldContainer[str]
    clock_milliseconds: int
    moment_unix_milliseconds: int
    graph: GraphRequest
    after: bool
    def __init__(self, epoch: _Optional[int] = ..., version: _Optional[int] = ..., open: _Optional[_Iterable[str]] = ..., details: bool = ..., processes: bool = ..., forget: _Optional[_Iterable[str]] = ..., clock_milliseconds: _Optional[int] = ..., moment_unix_milliseconds: _Optional[int] = ..., graph: _Optional[_Union[GraphRequest, _Mapping]] = ..., after: bool = ...) -> None: ...

class GraphRequest(_message.Message):
    __slots__ = ("node_id", "end_unix_milliseconds", "seconds", "steps")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    END_UNIX_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    end_unix_milliseconds: int
    seconds: int
    steps: int
    def __init__(self, node_id: _Optional[str] = ..., end_unix_milliseconds: _Optional[int] = ..., seconds: _Optional[int] = ..., steps: _Optional[int] = ...) -> None: ...

class WatchUpdate(_message.Message):
    __slots__ = ("epoch", "version", "is_snapshot", "clock_milliseconds", "unix_milliseconds", "echoed_clock_milliseconds", "server", "rows", "beats", "removed", "events", "details", "graph")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IS_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CLOCK_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    UNIX_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    ECHOED_CLOCK_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BEATS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    version: int
    is_snapshot: bool
    clock_milliseconds: int
    unix_milliseconds: int
    echoed_clock_milliseconds: int
    server: ServerStatus
    rows: _containers.RepeatedCompositeFieldContainer[NodeRow]
    beats: Beats
    removed: _containers.RepeatedScalarFieldContainer[int]
    events: _containers.RepeatedCompositeFieldContainer[FleetEvent]
    details: _containers.RepeatedCompositeFieldContainer[NodeDetails]
    graph: Graph
    def __init__(self, epoch: _Optional[int] = ..., version: _Optional[int] = ..., is_snapshot: bool = ..., clock_milliseconds: _Optional[int] = ..., unix_milliseconds: _Optional[int] = ..., echoed_clock_milliseconds: _Optional[int] = ..., server: _Optional[_Union[ServerStatus, _Mapping]] = ..., rows: _Optional[_Iterable[_Union[NodeRow, _Mapping]]] = ..., beats: _Optional[_Union[Beats, _Mapping]] = ..., removed: _Optional[_Iterable[int]] = ..., events: _Optional[_Iterable[_Union[FleetEvent, _Mapping]]] = ..., details: _Optional[_Iterable[_Union[NodeDetails, _Mapping]]] = ..., graph: _Optional[_Union[Graph, _Mapping]] = ...) -> None: ...

class ServerStatus(_message.Message):
    __slots__ = ("version", "is_secure", "may_forget", "journal", "has_past", "addresses", "past_unix_milliseconds")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IS_SECURE_FIELD_NUMBER: _ClassVar[int]
    MAY_FORGET_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_FIELD_NUMBER: _ClassVar[int]
    HAS_PAST_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    PAST_UNIX_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    version: str
    is_secure: bool
    may_forget: bool
    journal: str
    has_past: bool
    addresses: _containers.RepeatedScalarFieldContainer[str]
    past_unix_milliseconds: int
    def __init__(self, version: _Optional[str] = ..., is_secure: bool = ..., may_forget: bool = ..., journal: _Optional[str] = ..., has_past: bool = ..., addresses: _Optional[_Iterable[str]] = ..., past_unix_milliseconds: _Optional[int] = ...) -> None: ...

class NodeRow(_message.Message):
    __slots__ = ("number", "node_id", "address", "has_session", "left", "reason", "token_id", "interval_milliseconds", "heartbeat_age_milliseconds", "sample_age_milliseconds", "round_trip_microseconds", "info", "sample", "processes", "summary", "readings", "extremes", "awaited_milliseconds", "info_number", "node_readings")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HAS_SESSION_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_AGE_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_AGE_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    EXTREMES_FIELD_NUMBER: _ClassVar[int]
    AWAITED_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    INFO_NUMBER_FIELD_NUMBER: _ClassVar[int]
    NODE_READINGS_FIELD_NUMBER: _ClassVar[int]
    number: int
    node_id: str
    address: str
    has_session: bool
    left: bool
    reason: str
    token_id: str
    interval_milliseconds: int
    heartbeat_age_milliseconds: int
    sample_age_milliseconds: int
    round_trip_microseconds: int
    info: bytes
    sample: bytes
    processes: bytes
    summary: Summary
    readings: bytes
    extremes: bytes
    awaited_milliseconds: int
    info_number: int
    node_readings: bytes
    def __init__(self, number: _Optional[int] = ..., node_id: _Optional[str] = ..., address: _Optional[str] = ..., has_session: bool = ..., left: bool = ..., reason: _Optional[str] = ..., token_id: _Optional[str] = ..., interval_milliseconds: _Optional[int] = ..., heartbeat_age_milliseconds: _Optional[int] = ..., sample_age_milliseconds: _Optional[int] = ..., round_trip_microseconds: _Optional[int] = ..., info: _Optional[bytes] = ..., sample: _Optional[bytes] = ..., processes: _Optional[bytes] = ..., summary: _Optional[_Union[Summary, _Mapping]] = ..., readings: _Optional[bytes] = ..., extremes: _Optional[bytes] = ..., awaited_milliseconds: _Optional[int] = ..., info_number: _Optional[int] = ..., node_readings: _Optional[bytes] = ...) -> None: ...

class Beats(_message.Message):
    __slots__ = ("number_steps", "heartbeat_age_milliseconds", "sample_lag_milliseconds", "utilization_permille", "memory_permille", "memory_used_mebibytes", "temperature_celsius", "power_deciwatts", "cpu_percent", "energy_kilojoules", "round_trip_microseconds", "hottest_device")
    NUMBER_STEPS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_AGE_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_LAG_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_PERMILLE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PERMILLE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_MEBIBYTES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    POWER_DECIWATTS_FIELD_NUMBER: _ClassVar[int]
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    ENERGY_KILOJOULES_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    HOTTEST_DEVICE_FIELD_NUMBER: _ClassVar[int]
    number_steps: _containers.RepeatedScalarFieldContainer[int]
    heartbeat_age_milliseconds: _containers.RepeatedScalarFieldContainer[int]
    sample_lag_milliseconds: _containers.RepeatedScalarFieldContainer[int]
    utilization_permille: _containers.RepeatedScalarFieldContainer[int]
    memory_permille: _containers.RepeatedScalarFieldContainer[int]
    memory_used_mebibytes: _containers.RepeatedScalarFieldContainer[int]
    temperature_celsius: _containers.RepeatedScalarFieldContainer[int]
    power_deciwatts: _containers.RepeatedScalarFieldContainer[int]
    cpu_percent: _containers.RepeatedScalarFieldContainer[int]
    energy_kilojoules: _containers.RepeatedScalarFieldContainer[int]
    round_trip_microseconds: _containers.RepeatedScalarFieldContainer[int]
    hottest_device: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, number_steps: _Optional[_Iterable[int]] = ..., heartbeat_age_milliseconds: _Optional[_Iterable[int]] = ..., sample_lag_milliseconds: _Optional[_Iterable[int]] = ..., utilization_permille: _Optional[_Iterable[int]] = ..., memory_permille: _Optional[_Iterable[int]] = ..., memory_used_mebibytes: _Optional[_Iterable[int]] = ..., temperature_celsius: _Optional[_Iterable[int]] = ..., power_deciwatts: _Optional[_Iterable[int]] = ..., cpu_percent: _Optional[_Iterable[int]] = ..., energy_kilojoules: _Optional[_Iterable[int]] = ..., round_trip_microseconds: _Optional[_Iterable[int]] = ..., hottest_device: _Optional[_Iterable[int]] = ...) -> None: ...

class FleetEvent(_message.Message):
    __slots__ = ("unix_milliseconds", "kind", "node_id", "text")
    UNIX_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    unix_milliseconds: int
    kind: str
    node_id: str
    text: str
    def __init__(self, unix_milliseconds: _Optional[int] = ..., kind: _Optional[str] = ..., node_id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class NodeDetails(_message.Message):
    __slots__ = ("number", "sample", "processes", "readings")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    number: int
    sample: bytes
    processes: bytes
    readings: bytes
    def __init__(self, number: _Optional[int] = ..., sample: _Optional[bytes] = ..., processes: _Optional[bytes] = ..., readings: _Optional[bytes] = ...) -> None: ...

class Graph(_message.Message):
    __slots__ = ("devices", "lowest", "highest")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    LOWEST_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_FIELD_NUMBER: _ClassVar[int]
    devices: int
    lowest: bytes
    highest: bytes
    def __init__(self, devices: _Optional[int] = ..., lowest: _Optional[bytes] = ..., highest: _Optional[bytes] = ...) -> None: ...
