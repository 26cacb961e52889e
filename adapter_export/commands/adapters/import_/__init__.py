"""Make an adapter of one that another library trained.

The base is needed for its sites alone, and the other library not at all. What cannot be expressed is refused by
name, and known defects of the formats are named. `docs/how-to/import-adapters.md` lists both.
"""

EXAMPLES = (
    "adapter-export import adapterhub saved/sentiment --base model.pt -o sentiment",
    "adapter-export import peft saved/lora --base model.pt -o lora",
    "adapter-export import adapterhub saved/sentiment --base model.pt -o sentiment --json",
)
