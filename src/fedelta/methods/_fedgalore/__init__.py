"""The parts of FedGaLore: subspaces, a client's projection, sources of bases, synchronisation of second moments."""
