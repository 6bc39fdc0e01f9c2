"""The parts of FedGaLore."""
