"""What can be done with PEFT folders without a run."""
