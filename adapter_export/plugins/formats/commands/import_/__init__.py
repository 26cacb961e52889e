"""Import an adapter that another library trained, or a fine-tuned model.

The import needs the base for its sites. It does not need PEFT or AdapterHub's library. Inputs that cannot be expressed
are refused by name. `docs/reference/adapterhub.md` and `docs/reference/peft.md` list them, with defects of the formats.
"""

EXAMPLES = (
    "adapter-export import adapterhub saved/sentiment --base model.pt -o sentiment",
    "adapter-export import peft saved/lora --base model.pt -o lora",
    "adapter-export import finetuned saved/merged --base model.pt -o merged",
    "adapter-export import adapterhub saved/sentiment --base model.pt -o sentiment --json",
)

COLLECTION = "importers"
"""Collection to which plug-ins add further libraries, each a module with a command."""
