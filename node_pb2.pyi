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
    __slots__ = ("node_id", "gpu_temp", "info", "sample", "backlog", "leaving", "clock_milliseconds", "processes", "round_trip_microseconds")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    GPU_TEMP_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    CLOCK_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    gpu_temp: float
    info: NodeInfo
    sample: Sample
    backlog: _containers.RepeatedCompositeFieldContainer[Sample]
    leaving: bool
    clock_milliseconds: int
    processes: ProcessList
    round_trip_microseconds: int
    def __init__(self, node_id: _Optional[str] = ..., gpu_temp: _Optional[float] = ..., info: _Optional[_Union[NodeInfo, _Mapping]] = ..., sample: _Optional[_Union[Sample, _Mapping]] = ..., backlog: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., leaving: bool = ..., clock_milliseconds: _Optional[int] = ..., processes: _Optional[_Union[ProcessList, _Mapping]] = ..., round_trip_microseconds: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("hostname", "agent_version", "instance_id", "backend", "started_at", "host", "devices", "notice", "session_number", "last_error", "box_id", "id_is_drawn", "sampling_interval_milliseconds")
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
    def __init__(self, hostname: _Optional[str] = ..., agent_version: _Optional[str] = ..., instance_id: _Optional[str] = ..., backend: _Optional[_Union[Backend, str]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., host: _Optional[_Union[HostInfo, _Mapping]] = ..., devices: _Optional[_Iterable[_Union[DeviceInfo, _Mapping]]] = ..., notice: _Optional[str] = ..., session_number: _Optional[int] = ..., last_error: _Optional[str] = ..., box_id: _Optional[str] = ..., id_is_drawn: bool = ..., sampling_interval_milliseconds: _Optional[int] = ...) -> None: ...

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
