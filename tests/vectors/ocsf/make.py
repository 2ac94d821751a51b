"""Takes from OCSF's own schema what the export is held against: its classes, and the objects in them.

    pip install ocsf-json-schema==1.2.0 && python3 tests/vectors/ocsf/make.py

The schema is Copyright OCSF, a Series of LF Projects, LLC, under the Apache License 2.0, as Cloister's LICENSE; the
package carries it unchanged, as schema.ocsf.io gives it out. Descriptions are left out here, nothing else is changed.
"""

import importlib.resources
import json
import pathlib

VERSION = "1.3.0"
CLASSES = ["api_activity", "application_lifecycle", "authentication", "entity_management", "event_log", "process_activity"]
OBJECTS = ["actor", "api", "device", "managed_entity", "metadata", "network_endpoint", "process", "product", "request",
           "service", "user"]


def attribute(whole):
    kept = {"type": whole["type"], "requirement": whole["requirement"]}
    for name in ["object_type", "is_array", "profile"]:
        if whole.get(name):
            kept[name] = whole[name]
    if "enum" in whole:
        kept["enum"] = {number: one["caption"] for number, one in whole["enum"].items()}
    return kept


def definition(whole):
    attributes = {name: attribute(one) for name, one in sorted(whole["attributes"].items())}
    kept = {"attributes": attributes, "constraints": whole.get("constraints") or {}}
    if "uid" in whole:
        kept["uid"] = whole["uid"]
    return kept


def lines(value, depth=0):
    """JSON with a line for each attribute."""
    if depth == 4 or not isinstance(value, dict) or not value:
        return json.dumps(value, sort_keys=True)
    rows = [f"{json.dumps(name)}: {lines(one, depth + 1)}" for name, one in sorted(value.items())]
    return "{\n" + ",\n".join(rows) + "\n}"


def main():
    source = importlib.resources.files("ocsf_json_schema") / "ocsf" / f"{VERSION}.json"
    whole = json.loads(source.read_text())
    assert whole["version"] == VERSION
    types = {name: one.get("type", name) for name, one in sorted(whole["types"].items())}
    kept = {
        "version": VERSION,
        "types": types,
        "classes": {name: definition(whole["classes"][name]) for name in CLASSES},
        "objects": {name: definition(whole["objects"][name]) for name in OBJECTS},
    }
    out = pathlib.Path(__file__).with_name(f"{VERSION}.json")
    out.write_text(lines(kept) + "\n")


if __name__ == "__main__":
    main()
