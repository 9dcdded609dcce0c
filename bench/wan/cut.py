"""Writes a GGUF without some of its layers: cut.py IN OUT FIRST LAST leaves out FIRST to LAST, both included."""

import re
import sys

import gguf

source, target, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
reader = gguf.GGUFReader(source)
architecture = reader.get_field("general.architecture").contents()
writer = gguf.GGUFWriter(target, architecture)
for field in reader.fields.values():
    # The writer makes these itself.
    if field.name == "general.architecture" or field.name.startswith("GGUF."):
        continue
    value, kind = field.contents(), field.types[0]
    if field.name == f"{architecture}.block_count":
        value -= last - first + 1
    elements = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(field.name, value, kind, sub_type=elements)
for tensor in reader.tensors:
    name = tensor.name
    layer = re.match(r"blk\.(\d+)\.(.*)", name)
    if layer:
        number = int(layer[1])
        if first <= number <= last:
            continue
        if number > last:
            name = f"blk.{number - (last - first + 1)}.{layer[2]}"
    writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
