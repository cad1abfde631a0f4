"""A reading for programs and pipes: what --json and --once print."""

from __future__ import annotations

import json
import re
import time

from google.protobuf import json_format

import node_pb2 as pb
from edge.drawing import Line, plain
from edge.panels import Subject, device_table, host_readings, host_words
from edge.terminal import writable
from edge.text import visible


def reading_json(node_id: str, info: pb.NodeInfo, sample: pb.Sample) -> str:
    """A reading as one line of JSON, in protobuf's JSON mapping with the proto's own field names."""
    info_json, sample_json = (json_format.MessageToDict(message, preserving_proto_field_name=True) for message in (info, sample))
    return json.dumps({"time": round(time.time(), 3), "node_id": node_id, "info": info_json, "sample": sample_json})


def reading_text(node_id: str, subject: Subject) -> str:
    """The same in lines for a person."""
    info = subject.info
    labels = " ".join(f"{name}={value}" for name, value in sorted(info.labels.items()))
    texts = (info.hostname, info.host.model, info.host.operating_system, labels, info.notice)
    about = " · ".join(visible(text, 2000) for text in texts if text)
    lines: list[Line] = [[(f"{node_id}  {about}", "")]]
    if info.devices:
        lines += device_table(subject, 140)
    lines += [[(f" {label:8}{text}", "")] for label, _, text, _ in host_readings(subject)]
    lines.append([(f" {host_words(subject)}", "")])
    return writable(re.sub(r" +$", "", plain(lines), flags=re.MULTILINE))
