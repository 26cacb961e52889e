"""Import of adapters of other libraries, and of plain tensors."""
