"""Train adapters: tables of labelled texts, objectives, the loop, its checkpoints."""
