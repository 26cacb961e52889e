"""The NumPy lowering: forward and backward of every op. It defines what an op means."""
