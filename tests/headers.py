"""Changed headers of safetensors files."""

import json
import struct


def rewrite_header(source, path, change):
    data = source.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


def change_about(**changes):
    def change(header):
        about = json.loads(header["__metadata__"]["bus_smp"])
        header["__metadata__"]["bus_smp"] = json.dumps(about | changes)

    return change


def header_only(text):
    return struct.pack("<Q", len(text)) + text
