"""Adapter folders that PEFT wrote, LoRA and IA3, become adapters. PEFT itself is not needed."""
