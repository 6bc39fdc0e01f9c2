"""Federated averaging of a LoRA adapter with Flower."""
