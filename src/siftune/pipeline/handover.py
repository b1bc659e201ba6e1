"""How to use a selection in the trainers people have."""

from __future__ import annotations

import json

from siftune.selection.selection import Selection


def trainer_lines(selection: Selection) -> dict[str, str]:
    """What to write in TRL (Python), Axolotl (YAML) and LLaMA-Factory (an entry of dataset_info.json)."""
    file = str(selection.file.resolve())
    entry = {
        f"siftune_{selection.path.name}": {
            "file_name": file,
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
    }
    return {
        "TRL": f'load_dataset("json", data_files={json.dumps(file)}, split="train").select_columns(["messages"])',
        "Axolotl": f"datasets: [{{path: {json.dumps(file)}, ds_type: json, type: chat_template, field_messages: messages}}]",
        "LLaMA-Factory": json.dumps(entry),
    }
